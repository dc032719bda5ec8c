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
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs

from gpt2_lightning.report.page import Figure
from gpt2_lightning.report.record import StudyRecord

__all__ = [
    "COLOURS",
    "Series",
    "Span",
    "Study",
    "curves",
    "drawing_code",
    "front",
    "history",
    "importances",
    "of_optuna",
    "pair",
    "rebuilt",
    "timeline",
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


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a chart; None breaks it. ``names``: what each point is called. ``marks``: points only."""

    label: str
    xs: Sequence[Any]
    ys: Sequence[int | float | None]
    colour: str
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


def drawing_code() -> str:
    """Plotly's own JavaScript, whole."""
    return get_plotlyjs()


def rebuilt(record: StudyRecord) -> Study:
    """The study's own trials, in memory; failed ones without the value they were told with. Raises ValueError."""
    with quiet():
        study = optuna.create_study(directions=record.asked["directions"])
        pairs = [(trial, row) for trial, row in zip(record.trials, record.rows, strict=True) if row.place is not None]
        few = thinned(pairs, MOST_TRIALS)
        few += [pair for pair in pairs if pair[1] in record.best[:1] and pair not in few]
        for number, (trial, row) in enumerate(few):
            study.add_trial(frozen(number, trial, row, record.objectives))
        return study


def frozen(number: int, trial: dict[str, Any], row: Any, objectives: list[str]) -> FrozenTrial:
    """One trial as Optuna has it; a broken constraint is told by how it is, not by how much."""
    values = [row.values[name] for name in objectives] if row.state == "complete" else None
    begun, ended = (datetime.fromisoformat(trial[key]) if trial[key] else None for key in ("started", "ended"))
    distributions = {name: json_to_distribution(text) for name, text in trial["distributions"].items()}
    over = row.state in ("complete", "pruned", "failed")
    made = FrozenTrial(number, STATES[row.state], None, begun or (datetime.now() if row.state == "running" else None),
                       (ended or datetime.now()) if over else None, trial["params"], distributions, {}, {},
                       {int(step): value for step, value in trial["reports"].items()}, number, values=values)  # fmt: skip
    for name in row.outcome.get("broken", []):
        made.set_constraint(name, 1.0)
    return made


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


def target(record: StudyRecord) -> dict[str, Any]:
    """How Optuna's plots are told to go by the first objective."""
    if len(record.objectives) == 1:
        return {"target_name": record.objectives[0]}
    return {"target": lambda trial: trial.values[0], "target_name": record.objectives[0]}


def history(record: StudyRecord, study: Study, i: int) -> Figure:
    """One objective's values in the order of the trials."""
    name = record.objectives[i]
    options = target(record) if i == 0 else {"target": lambda trial: trial.values[i], "target_name": name}
    better = "Lower" if record.asked["directions"][i] == "minimize" else "Higher"
    best = ", and the line is the best so far" if len(record.objectives) == 1 else ""
    caption = f"Each point is a complete trial{best}. {better} is better."
    return of_optuna(f"history-{i + 1}" if i else "history", caption, "optimization_history", study, **options)


def importances(record: StudyRecord, study: Study) -> tuple[dict[str, float], Figure | None]:
    """How much of each parameter decides whether a trial is a good one, and its plot; nothing where no trial differs."""
    sign = -1 if record.asked["directions"][0] == "maximize" else 1
    evaluator = PedAnovaImportanceEvaluator()

    def value(trial: FrozenTrial) -> float:
        return sign * trial.values[0]

    with quiet():
        found = evaluator.evaluate(study, target=value)
    if not sum(found.values()):
        return {}, None
    caption = (
        "The longer the bar, the more this parameter tells the best tenth of the complete trials from the others (Optuna's "
    )
    caption += "PedAnovaImportanceEvaluator). Of few trials it is a hint."
    options = {"evaluator": evaluator, "target": value, "target_name": record.objectives[0]}
    return dict(sorted(found.items(), key=lambda one: -one[1])), of_optuna(
        "importance", caption, "param_importances", study, **options
    )


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


def front(record: StudyRecord, study: Study) -> Figure:
    """The Pareto front of two or three objectives."""
    caption = "Each point is a complete trial; of those on the front, no other is better in every objective."
    return of_optuna("front", caption, "pareto_front", study, target_names=record.objectives)


def curves(name: str, caption: str, x: str, y: str, series: list[Series], log: bool = False) -> Figure:
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
    drawn.update_yaxes(AXIS | {"title": y, "type": "log" if log else "-"})
    drawn.update_layout(showlegend=True, hovermode="closest", legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})

    def draw() -> None:
        axes = pyplot.subplots(figsize=(10, 4.8))[1]
        places = {value: i for i, value in enumerate(dict.fromkeys(v for s in series for v in s.xs if isinstance(v, str)))}
        for s in series:
            xs = [places.get(value, value) for value in s.xs]
            line, point = ("none", "x") if s.marks else ("--" if s.dash else "-", "." if len(s.xs) <= FEW else "")
            ys = [float("nan") if value is None else value for value in s.ys]
            axes.plot([float("nan") if value is None else value for value in xs], ys, color=s.colour, alpha=s.opacity,
                      linewidth=s.width, label=s.label, linestyle=line, marker=point)  # fmt: skip
        if places:
            axes.set_xticks(list(places.values()), list(places))
        axes.set(xlabel=x, ylabel=y, yscale="log" if log else "linear")
        axes.grid(color="#f6f8fa")
        legend_above(axes)

    return figure(name, caption, drawn, draw)


def timeline(caption: str, spans: list[Span]) -> Figure:
    """What each slot was doing when."""
    drawn, lanes = go.Figure(), list(dict.fromkeys(span.lane for span in spans))
    for state in dict.fromkeys(span.state for span in spans):
        of_state = [span for span in spans if span.state == state]
        drawn.add_bar(
            base=[span.begun for span in of_state], y=[span.lane for span in of_state], orientation="h", name=state,
            x=[(span.ended - span.begun) / timedelta(milliseconds=1) for span in of_state], width=0.7,
            text=[span.name for span in of_state], textposition="none",
            marker={"color": COLOURS[state], "line": {"color": "rgba(255,255,255,0.8)", "width": 1}},
            hovertemplate="%{text}: %{base|%H:%M:%S} to %{x|%H:%M:%S}<extra></extra>",
        )  # fmt: skip
    drawn.update_xaxes(AXIS | {"type": "date"})
    drawn.update_yaxes(AXIS | {"categoryorder": "array", "categoryarray": lanes[::-1]})
    drawn.update_layout(barmode="overlay", showlegend=True, height=180 + 32 * min(len(lanes), 24),
                        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})  # fmt: skip

    def draw() -> None:
        axes = pyplot.subplots(figsize=(10, 1.2 + 0.3 * min(len(lanes), 24)))[1]
        for state in dict.fromkeys(span.state for span in spans):
            of_state = [span for span in spans if span.state == state]
            widths = [(span.ended - span.begun) / timedelta(days=1) for span in of_state]
            axes.barh([lanes.index(s.lane) for s in of_state], widths, left=[dates.date2num(s.begun) for s in of_state],
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
