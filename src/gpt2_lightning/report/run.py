"""What the report of a run, or of several beside each other, says: their folders in; a page out.

One number: 1 chart for the cross-entropy of training and of validation: they are read against each other.
Choice not taken: a chart for every metric; TensorBoard has those.
"""

import json
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gpt2_lightning.errors import ConfigError, first_line
from gpt2_lightning.lock import living_holder
from gpt2_lightning.report.charts import MOST_POINTS, Series, curves, thinned
from gpt2_lightning.report.page import Block, Page, Section, Table, Verbatim, duration, number
from gpt2_lightning.report.record import read_result
from gpt2_lightning.settings.setting import flat

__all__ = ["RunLog", "read_log", "runs_page"]

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999", "#dd7733")
CHARTS = {
    "Learning rate": ("learning-rate", "optimizer/learning_rate", "The learning rate at each logged step."),
    "Gradient norm": (
        "gradient-norm",
        "optimizer/gradient_norm",
        "The gradient's 2-norm before clipping; a spike is a warning.",
    ),
    "Speed": ("speed", "speed/tokens_per_second", "Tokens trained per second, validation not counted."),
}
MOST_TEXT = 20_000
WHERE = ("run.", "resume")  # keys that say where a run is, not what


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLog:
    """A run as its files tell it. ``place``: its folder where commands are typed; ``yaml``: its config.yaml, and flat."""

    label: str
    place: str
    state: str
    yaml: str
    config: dict[str, Any]
    result: dict[str, Any]
    lines: list[dict[str, Any]]
    samples: str

    def curve(self, name: str) -> tuple[list[int], list[float | None]]:
        """Steps and values of a metric, as many as are drawn."""
        found = [(line["step"], line[name]) for line in self.lines if isinstance(line.get(name), int | float)]
        points = thinned(found, MOST_POINTS)
        return [step for step, _ in points], [value for _, value in points]

    def last(self, name: str) -> Any:
        """The metric's last value."""
        return next((line[name] for line in reversed(self.lines) if name in line), None)


def read_log(folder: Path, place: str) -> RunLog:
    """The run in a folder; raises ConfigError where its settings cannot be read."""
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        config = flat(dict(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            "run", key="run", value=place, rule=f"has no config.yaml that can be read: {first_line(error)}"
        ) from error
    result = read_result(folder)
    state = "finished" if result else "unfinished" if living_holder(folder) is None else "running"
    samples = ""
    with suppress(OSError):
        samples = (folder / "samples.txt").read_text(encoding="utf-8", errors="replace")
    return RunLog(label=f"{folder.absolute().parent.name}/{folder.absolute().name}", place=place, state=state, yaml=text,
                  config=config, result=result, lines=read_lines(folder / "metrics.jsonl"), samples=samples)  # fmt: skip


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    lines = []
    with suppress(OSError), path.open("rb") as file:
        for text in file:
            with suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    lines.append(line)
    return lines


def runs_page(runs: list[RunLog]) -> Page:
    """The page of a run, or of several side by side."""
    alone = len(runs) == 1
    sections = [
        Section("Result", [result_table(runs)]),
        Section("Loss", loss_blocks(runs)),
        *(Section(title, chart_blocks(runs, *chart)) for title, chart in CHARTS.items()),
        Section("Samples", sample_blocks(runs)),
        *([] if alone else [Section("What differs", difference_blocks(runs))]),
        Section("Go on, or again", [Verbatim("\n".join(line for run in runs for line in commands(run)))]),
        Section(
            "Configuration",
            [Verbatim(runs[0].yaml)] if alone else [block for r in runs for block in (r.label, Verbatim(r.yaml))],
        ),
    ]
    return Page(f"Run {runs[0].label}" if alone else f"{len(runs)} runs", lead(runs), sections)


def best_of(run: RunLog) -> float | None:
    """The lowest validation cross-entropy."""
    values = [line["val/cross_entropy"] for line in run.lines if isinstance(line.get("val/cross_entropy"), int | float)]
    return min((value for value in values if value == value), default=None)


def lead(runs: list[RunLog]) -> str:
    """The report in a sentence."""
    found = [(value, run) for run in runs if (value := best_of(run)) is not None]
    if not found:
        return "There is no validation yet."
    value, run = min(found, key=lambda one: one[0])
    which = f" of {run.label}" if len(runs) > 1 else f"; the run is {run.state}"
    return f"Best validation: {number(value)} nats a token{which}."


def result_table(runs: list[RunLog]) -> Table:
    """A row a run."""
    heads = ["run", "state", "best nats", "best bits per byte", "at step", "last nats", "steps", "tokens", "time",
             "tokens/s", "peak memory"]  # fmt: skip
    return Table(heads, [result_row(run) for run in runs])


def result_row(run: RunLog) -> list[Any]:
    """One run's."""
    best, last = best_of(run), run.lines[-1] if run.lines else {}
    at = next((line for line in run.lines if line.get("val/cross_entropy") == best), {}) if best is not None else {}
    rates = [line["speed/tokens_per_second"] for line in run.lines if "speed/tokens_per_second" in line]
    rate = sorted(rates)[len(rates) // 2] if rates else None
    peak, seconds = run.last("speed/peak_memory"), run.result.get("seconds")
    return [run.label, run.state, best, at.get("val/bits_per_byte"), at.get("step"), run.last("val/cross_entropy"),
            f"{last.get('step', 0):,} of {run.config.get('trainer.max_steps', 0):,}", last.get("tokens"),
            None if seconds is None else duration(seconds), rate,
            None if peak is None else f"{peak / 2**20:,.0f} MiB"]  # fmt: skip


def loss_blocks(runs: list[RunLog]) -> list[Block]:
    """Training and validation."""
    series = []
    for i, run in enumerate(runs):
        for name, what in (("train/cross_entropy", "train"), ("val/cross_entropy", "validation")):
            xs, ys = run.curve(name)
            colour = COLOURS[i % len(COLOURS)] if len(runs) > 1 or what == "validation" else COLOURS[1]
            label = what if len(runs) == 1 else f"{run.label} {what}"
            if xs:
                series.append(Series(label, xs, ys, colour, dash=what == "train", width=1.5 if what == "train" else 2.5))
    if not series:
        return ["Nothing to draw: no line is written yet."]
    caption = "Cross-entropy in nats a token: where validation turns up while training (dashed) goes down, the run overfits."
    return [curves("loss", caption, "step", "cross-entropy, nats a token", series)]


def chart_blocks(runs: list[RunLog], name: str, metric: str, caption: str) -> list[Block]:
    """One metric of all runs."""
    series = [Series(run.label, *run.curve(metric), COLOURS[i % len(COLOURS)]) for i, run in enumerate(runs)]
    if not any(s.xs for s in series):
        return ["Nothing to draw: no line is written yet."]
    return [curves(name, caption, "step", metric, [s for s in series if s.xs])]


def sample_blocks(runs: list[RunLog]) -> list[Block]:
    """What each has written, as it is."""
    blocks: list[Block] = []
    for run in (run for run in runs if run.samples):
        cut = "" if len(run.samples) <= MOST_TEXT else f", the first {MOST_TEXT:,} characters"
        blocks += [f"{run.label}{cut}:", Verbatim(run.samples[:MOST_TEXT])]
    return blocks or ["There are no samples."]


def difference_blocks(runs: list[RunLog]) -> list[Block]:
    """The keys in which the runs are not equal."""
    keys = [key for key in dict.fromkeys(key for run in runs for key in run.config) if not key.startswith(WHERE)]
    rows = [
        [key, *(run.config.get(key) for run in runs)]
        for key in keys
        if any(r.config.get(key) != runs[0].config.get(key) for r in runs)
    ]
    return [Table(["key", *(run.label for run in runs)], rows)] if rows else ["The runs have the same settings."]


def commands(run: RunLog) -> list[str]:
    """To continue a text, to go on with a run that has not finished, to train it again."""
    config = shlex.quote(f"config={run.place}/config.yaml")
    identity = shlex.quote(f"run.id={Path(run.place).name}")
    lines = [f"python -m gpt2_lightning generate {shlex.quote(f'run={run.place}')} prompt='To be, or'"]
    if run.state != "finished":
        lines.append(f"python -m gpt2_lightning train {config} {identity}    # go on")
    return [*lines, f"python -m gpt2_lightning train {config} \"run.study=''\" run.id=auto resume=never    # again"]
