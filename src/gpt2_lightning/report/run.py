"""What the report of a run, or of several beside each other, says: their folders in; a page out.

One number: 1 chart for the cross-entropy of training and of validation: they are read against each other.
Choice not taken: a chart for every metric; TensorBoard has those.
"""

import json
import math
import shlex
import statistics
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import yaml

from gpt2_lightning.errors import ConfigError, first_line
from gpt2_lightning.report.charts import MOST_POINTS, Series, curves, thinned
from gpt2_lightning.report.page import Block, Page, Section, Table, Verbatim, anchor, duration, number
from gpt2_lightning.report.record import read_result, run_state
from gpt2_lightning.settings.setting import flat

__all__ = ["RunLog", "read_log", "runs_page"]

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999", "#dd7733")
CHARTS = {
    "Learning rate": ("optimizer/learning_rate", "The learning rate at each logged step."),
    "Gradient norm": ("optimizer/gradient_norm", "The gradient's 2-norm before clipping; a spike is a warning."),
    "Speed": ("speed/tokens_per_second", "Tokens trained per second, validation not counted."),
}
BEST = "val/cross_entropy"
HEADS = ["run", "state", "parameters", "best nats", "best bits per byte", "at step", "last nats", "steps", "tokens", "time",
         "tokens/s", "peak memory"]  # fmt: skip
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
        rule = f"has no config.yaml that can be read: {first_line(error)}"
        raise ConfigError("run", key="run", value=place, rule=rule) from error
    result, samples = read_result(folder), ""
    with suppress(OSError):
        samples = (folder / "samples.txt").read_text(encoding="utf-8", errors="replace")
    return RunLog(label="/".join(folder.absolute().parts[-2:]), place=place, state=run_state(folder, result), yaml=text,
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
    coloured = list(zip(runs, cycle(COLOURS), strict=False))
    sections = [
        Section("Result", [Table(HEADS, [result_row(run) for run in runs])]),
        Section("Loss", loss_blocks(coloured)),
        *(
            Section(title, drawn(anchor(title), metric, caption, [Series(r.label, c, *r.curve(metric)) for r, c in coloured]))
            for title, (metric, caption) in CHARTS.items()
        ),
        Section("Samples", sample_blocks(runs)),
        *([] if alone else [Section("What differs", difference_blocks(runs))]),
        Section("Go on, or again", [Verbatim("\n".join(line for run in runs for line in commands(run)))]),
        Section("Configuration", [block for r in runs for block in ([] if alone else [r.label]) + [Verbatim(r.yaml)]]),
    ]
    return Page(f"Run {runs[0].label}" if alone else f"{len(runs)} runs", lead(runs), sections)


def best_of(run: RunLog) -> dict[str, Any]:
    """The line with the lowest validation cross-entropy; empty before there is one."""
    lines = [line for line in run.lines if isinstance(line.get(BEST), int | float) and not math.isnan(line[BEST])]
    return min(lines, key=lambda line: line[BEST], default={})


def lead(runs: list[RunLog]) -> str:
    """The report in a sentence."""
    found = [(best[BEST], run) for run in runs if (best := best_of(run))]
    if not found:
        return "There is no validation yet."
    value, run = min(found, key=lambda one: one[0])
    which = f" of {run.label}" if len(runs) > 1 else f"; the run is {run.state}"
    return f"Best validation: {number(value)} nats a token{which}."


def result_row(run: RunLog) -> list[Any]:
    """What a run has come to."""
    best, last = best_of(run), run.lines[-1] if run.lines else {}
    rates = [line["speed/tokens_per_second"] for line in run.lines if "speed/tokens_per_second" in line]
    peak, seconds = run.last("speed/peak_memory"), run.result.get("seconds")
    return [run.label, run.state, run.result.get("parameters"), best.get(BEST), best.get("val/bits_per_byte"), best.get("step"),
            run.last(BEST), f"{last.get('step', 0):,} of {run.config.get('trainer.max_steps', 0):,}", last.get("tokens"),
            None if seconds is None else duration(seconds), statistics.median_high(rates) if rates else None,
            None if peak is None else f"{peak / 2**20:,.0f} MiB"]  # fmt: skip


def loss_blocks(coloured: list[tuple[RunLog, str]]) -> list[Block]:
    """Training and validation."""
    series = []
    for run, colour in coloured:
        of_run, beside = (f"{run.label} ", colour) if len(coloured) > 1 else ("", COLOURS[1])
        series += [Series(f"{of_run}train", beside, *run.curve("train/cross_entropy"), dash=True, width=1.5),
                   Series(f"{of_run}validation", colour, *run.curve(BEST), width=2.5)]  # fmt: skip
    caption = "Cross-entropy in nats a token: where validation turns up while training (dashed) goes down, the run overfits."
    return drawn("loss", "cross-entropy, nats a token", caption, series)


def drawn(name: str, y: str, caption: str, series: list[Series]) -> list[Block]:
    """The lines that have points."""
    shown = [s for s in series if s.xs]
    return [curves(name, caption, "step", y, shown)] if shown else ["Nothing to draw: no line is written yet."]


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
