"""The charts of a report: a study's record or curves in; figures for plotly and for matplotlib out.

What Optuna draws, Optuna draws, of a study in memory that is rebuilt from the record; curves and the timeline are ours.
One number: 300 trials at most are drawn, evenly chosen, and 200 points of a curve. Choice not taken: the storage's own study.
"""

import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations
from typing import Any

import matplotlib
import optuna
import plotly.graph_objects as go
from matplotlib import dates, pyplot, ticker
from optuna.distributions import CategoricalDistribution, json_to_distribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial
from plotly.offline import get_plotlyjs as drawing_code

from gpt2_lightning.report.page import Figure
from gpt2_lightning.report.record import StudyRecord

__all__ = [
    "COLOURS", "STATES", "Series", "Span", "Study", "curves", "drawing_code", "frozen", "importances", "of_optuna", "pair",
    "rebuilt", "target", "thinned", "timeline",
]  # fmt: skip

MOST_TRIALS, MOST_POINTS = 300, 200
FEW = 30  # points that are marked, since a line through one is none
COLOURS = {"best": "#228833", "complete": "#4477aa", "pruned": "#ee8833", "failed": "#cc3311", "running": "#888888",
           "waiting": "#bbbbbb", "baseline": "#aa3377"}  # fmt: skip
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL,
          "running": TrialState.RUNNING, "waiting": TrialState.WAITING}  # fmt: skip
GROUND = "#dfe5ec"  # white is the worst colour of Optuna's scales, and has to be seen
LAYOUT = {"template": "plotly_white", "paper_bgcolor": "#ffffff", "plot_bgcolor": GROUND, "title": None,
          "margin": {"l": 60, "r": 30, "t": 70, "b": 50}, "autosize": True, "width": None,
          "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#9198a1", "activecolor": "#1f2328"}}  # fmt: skip
AXIS = {"gridcolor": "#f6f8fa", "zeroline": False, "automargin": True}
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a chart; None breaks it. ``names``: what each point is called. ``marks``: points only."""

    label: str
    colour: str
    xs: Sequence[Any]
    ys: Sequence[int | float | None]
    names: Sequence[str] | str = ""
    width: int | float = 2
    opacity: int | float = 1
    dash: bool = False
    marks: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """A trial in a slot, from when to when."""

    lane: str
    begun: datetime
    ended: datetime
    state: str
    name: str


def rebuilt(record: StudyRecord) -> Study:
    """The study's own trials, in memory; failed ones without the value they were told with. Raises ValueError."""
    with quiet():
        study = optuna.create_study(directions=record.asked["directions"])
        few = thinned(record.own, MOST_TRIALS)
        for row in [*few, *(row for row in record.best[:1] if row not in few)]:
            values = [row.values[name] for name in record.objectives] if row.state == "complete" else None
            made = frozen(row.told, row.state, values)
            for name in row.outcome.get("broken", []):
                made.set_constraint(name, 1.0)  # that it is broken, not by how much
            study.add_trial(made)
        return study


def frozen(trial: dict[str, Any], state: str, values: list[float] | None, **attrs: Any) -> FrozenTrial:
    """A trial of the record as Optuna has it, begun and ended now."""
    distributions = {name: json_to_distribution(text) for name, text in trial["distributions"].items()}
    reports = {int(step): value for step, value in trial["reports"].items()}
    return create_trial(state=STATES[state], values=values, params=trial["params"], distributions=distributions,
                        intermediate_values=reports, **attrs)  # fmt: skip


def of_optuna(name: str, caption: str, what: str, study: Study, **options: Any) -> Figure:
    """What Optuna's visualisation of that name draws."""
    with quiet():
        drawn = getattr(optuna.visualization, f"plot_{what}")(study, **options)
    drawn.update_xaxes(AXIS)
    drawn.update_yaxes(AXIS)
    drawn.for_each_annotation(lambda note: note.update(bgcolor=None))

    def png() -> None:
        getattr(optuna.visualization.matplotlib, f"plot_{what}")(study, **options)
        shape = pyplot.gcf()
        shape.set_size_inches(max(10.0, shape.get_size_inches()[0]), 4.8)

    return figure(name, caption, drawn, png)


def figure(name: str, caption: str, drawn: go.Figure, draw: Callable[[], None]) -> Figure:
    """The figure in both forms."""
    drawn.update_layout(LAYOUT)
    return Figure(name, caption, json.loads(drawn.to_json()), lambda: as_png(draw))


def as_png(draw: Callable[[], None]) -> bytes:
    """What is drawn on matplotlib's current figure, as a file's content. No name is read as mathematics, so no tick can be."""
    matplotlib.use("agg")
    with quiet(), matplotlib.rc_context({"text.parse_math": False}):
        pyplot.close("all")
        draw()
        drawn = pyplot.gcf()
        drawn.suptitle("")
        for axes in drawn.axes:
            axes.set_facecolor(GROUND)
            axes.set_title("")
            axes.set_title("", loc="left")
            for axis in (axis for axis in (axes.xaxis, axes.yaxis) if axis.get_scale() == "log"):
                axis.set_major_formatter(ticker.LogFormatter())
                axis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(1, 0.4)))
        file = io.BytesIO()
        drawn.savefig(file, dpi=90, bbox_inches="tight", facecolor=GROUND)
        pyplot.close("all")
    return file.getvalue()


def target(record: StudyRecord, i: int = 0) -> dict[str, Any]:
    """How Optuna's plots are told to go by an objective."""
    name = record.objectives[i]
    return {"target_name": name} | ({"target": lambda trial: trial.values[i]} if len(record.objectives) > 1 else {})


def importances(record: StudyRecord, study: Study) -> tuple[dict[str, float], dict[str, Any]]:
    """How much of each parameter decides whether a trial is good, all 0 where none differs; and what its plot is told."""
    sign = -1 if record.asked["directions"][0] == "maximize" else 1
    evaluator = PedAnovaImportanceEvaluator()

    def value(trial: FrozenTrial) -> float:
        return sign * trial.values[0]

    with quiet():
        found = evaluator.evaluate(study, target=value)
    options = {"evaluator": evaluator, "target": value, "target_name": record.objectives[0]}
    return dict(sorted(found.items(), key=lambda one: -one[1])), options


def pair(study: Study, order: list[str], fewest: int) -> list[str]:
    """beta and learning rate, or else the first two in an order, that are numbers and vary together; none without such."""
    points = [
        {name: value for name, value in t.params.items() if not isinstance(t.distributions[name], CategoricalDistribution)}
        for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ]

    def vary(a: str, b: str) -> bool:
        both = [(point[a], point[b]) for point in points if a in point and b in point]
        return len(both) >= fewest and all(len(set(values)) > 1 for values in zip(*both, strict=True))

    pairs = [("loss.beta", "optimizer.lr"), *combinations(order, 2)]
    return list(next((names for names in pairs if vary(*names)), ()))


def curves(name: str, caption: str, x: str, y: str, series: list[Series]) -> Figure:
    """Lines, ours."""
    drawn = go.Figure()
    for s in series:
        named = [] if isinstance(s.names, str) else s.names
        alone = "+markers" if len(s.xs) <= FEW else ""
        look = {"color": s.colour, "width": s.width, "dash": "dash" if s.dash else "solid"}
        drawn.add_scatter(x=s.xs, y=s.ys, name=s.label, text=named, opacity=s.opacity, line=look,
                          mode="markers" if s.marks else f"lines{alone}",
                          marker={"color": s.colour, "symbol": s.marks or "circle", "size": 8 if s.marks else 5},
                          hovertemplate=("%{text}: " if named else "") + "%{y:.4g} at %{x}<extra></extra>")  # fmt: skip
    kind = "category" if any(isinstance(value, str) for s in series for value in s.xs) else "-"
    drawn.update_xaxes(AXIS | {"title": x, "type": kind})
    drawn.update_yaxes(AXIS | {"title": y, "type": "-"})
    drawn.update_layout(showlegend=True, hovermode="closest", legend=LEGEND)

    def draw() -> None:
        axes = pyplot.subplots(figsize=(10, 4.8))[1]
        for s in series:
            line, point = ("none", "x") if s.marks else ("--" if s.dash else "-", "." if len(s.xs) <= FEW else "")
            axes.plot(s.xs, [float("nan") if value is None else value for value in s.ys], color=s.colour, alpha=s.opacity,
                      linewidth=s.width, label=s.label, linestyle=line, marker=point)  # fmt: skip
        axes.set(xlabel=x, ylabel=y)
        axes.grid(color="#f6f8fa")
        legend_above(axes)

    return figure(name, caption, drawn, draw)


def timeline(caption: str, spans: list[Span]) -> Figure:
    """What each slot was doing when."""
    drawn, lanes = go.Figure(), list(dict.fromkeys(span.lane for span in spans))
    by_state = {state: [span for span in spans if span.state == state] for state in dict.fromkeys(s.state for s in spans)}
    for state, found in by_state.items():
        drawn.add_bar(
            base=[span.begun for span in found], y=[span.lane for span in found], orientation="h", name=state,
            x=[(span.ended - span.begun) / timedelta(milliseconds=1) for span in found], width=0.7,
            text=[span.name for span in found], textposition="none",
            marker={"color": COLOURS[state], "line": {"color": "rgba(255,255,255,0.8)", "width": 1}},
            hovertemplate="%{text}: %{base|%H:%M:%S} to %{x|%H:%M:%S}<extra></extra>",
        )  # fmt: skip
    drawn.update_xaxes(AXIS | {"type": "date"})
    drawn.update_yaxes(AXIS | {"categoryorder": "array", "categoryarray": lanes[::-1]})
    drawn.update_layout(barmode="overlay", showlegend=True, height=180 + 32 * min(len(lanes), 24), legend=LEGEND)

    def draw() -> None:
        axes = pyplot.subplots(figsize=(10, 1.2 + 0.3 * min(len(lanes), 24)))[1]
        for state, found in by_state.items():
            days = [(span.ended - span.begun) / timedelta(days=1) for span in found]
            axes.barh([lanes.index(s.lane) for s in found], days, left=[dates.date2num(s.begun) for s in found],
                      color=COLOURS[state], label=state, edgecolor="white", height=0.7)  # fmt: skip
        axes.set_yticks(range(len(lanes)), lanes)
        axes.invert_yaxis()
        axes.xaxis_date()
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(axes.xaxis.get_major_locator()))
        legend_above(axes)

    return figure("timeline", caption, drawn, draw)


def legend_above(axes: Any) -> None:
    """A legend that hides nothing."""
    axes.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)


def thinned(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, evenly chosen, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna says nothing meanwhile: what a plot lacks, the page says."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
