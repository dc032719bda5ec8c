"""The outcome of a trial: its folder and its process's end in; state, class of failure, values and reason out.

One number: 2,000 characters of a failed trial's log are kept with the study. Choice not taken: asking the process; one that is
dead answers nothing, and what a run writes is all a person would look at.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from gpt2_lightning.report.record import read_result
from gpt2_lightning.settings.sweep import SweepConfig
from gpt2_lightning.sweep.pool import LOST

__all__ = ["Reports", "best_candidate", "broken_by", "classify", "for_optuna", "log_tail", "read_scores", "training_values"]

TAIL = 2000
WORST = 1e3  # told of a diverged trial where no other value is known
OF_CONSTRAINT = {"peak_memory": "speed/peak_memory", "seconds": "seconds", "parameters": "parameters"}
Line = dict[str, Any]


class Reports:
    """The lines of a run's metrics.jsonl as they are written; a run that goes on from a checkpoint is to be read anew."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def new(self) -> Iterator[Line]:
        """The whole lines since the last call."""
        try:
            if self.path.stat().st_size == self.offset:
                return
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        for text in whole.splitlines():
            with suppress(ValueError):
                yield json.loads(text)


def classify(status: int, log: str) -> tuple[str, str]:
    """The class of a failure (lost, killed, out of memory, diverged, held, disk, error) and its reason, by status and log."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = errors[-1] if errors else lines[-1] if lines else "it could not say anything"
    if status == LOST:
        return "lost", reason
    if status < 0:
        return "killed", f"ended by signal {-status}"
    if status in (130, 143):
        return "killed", reason
    if status == 6:
        return "diverged", reason
    if "device memory" in reason or "OutOfMemoryError" in log or "MemoryError" in reason:
        return "out of memory", reason
    if status == 7 and re.search(r"^(rank|data worker|worker) ?\d*.*(signal|ended)", reason):
        return "killed", reason
    if not lines:
        return "disk", reason  # Python always has a word for what it fails of, but its log may have had no room
    if status == 8:
        return "held" if "is held by process" in reason else "disk", reason
    return "error", reason


def log_tail(log: Path, start: int = 0) -> str:
    """The end of what a trial has said behind ``start`` bytes."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - TAIL))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def training_values(folder: Path, objectives: list[str], directions: list[str]) -> dict[str, float]:
    """The value of each objective that training has: the best of the validations, or the last of what is logged in between."""
    found: dict[str, list[float]] = {name: [] for name in objectives}
    for line in Reports(folder / "metrics.jsonl").new():
        for name in found.keys() & line.keys():
            found[name].append(line[name])
    values = {}
    for name, direction in zip(objectives, directions, strict=True):
        finite = [v for v in found[name] if math.isfinite(v)]
        if finite:
            best = min if direction == "minimize" else max
            values[name] = best(finite) if name.startswith(("val/", "task/")) else finite[-1]
    result = read_result(folder)
    said = {name: float(result[name]) for name in ("seconds", "parameters") if name in objectives and name in result}
    return values | said


def broken_by(folder: Path, constraints: dict[str, float]) -> dict[str, float]:
    """By how much a run breaks each constraint: above 0 where it does."""
    names = [OF_CONSTRAINT[name] for name in constraints]
    found = training_values(folder, names, ["minimize"] * len(names))
    return {name: found.get(OF_CONSTRAINT[name], math.inf) - most for name, most in constraints.items()}


def for_optuna(outcome: Line, sweep: SweepConfig, reported: float | None, trials: Iterable[FrozenTrial]) -> Line:
    """What the sampler is to see of a trial: values, the last that was ``reported``, a bad one if it diverged, or nothing."""
    if outcome["state"] == "complete":
        return {"optuna": "COMPLETE", "told": [outcome["values"][name] for name in sweep.objectives]}
    if outcome["state"] == "pruned" and len(sweep.objectives) == 1 and reported is not None:
        return {"optuna": "PRUNED", "told": [reported]}
    if outcome["class"] == "diverged":
        return {"optuna": "COMPLETE", "told": worst(trials, sweep.directions)}
    return {"optuna": "FAIL"}


def worst(trials: Iterable[FrozenTrial], directions: list[str]) -> list[float]:
    """For a diverged trial: worse than every value that the others have reached, and finite."""
    others = [t for t in trials if t.user_attrs.get("outcome", {}).get("class") != "diverged"]
    found = []
    for i, direction in enumerate(directions):
        known = [v for t in others for v in known_values(t, i)] or [0.0, WORST]
        margin = max((max(known) - min(known)) * 0.1, abs(max(known, key=abs)) * 0.01, 1e-6)
        found.append(max(known) + margin if direction == "minimize" else min(known) - margin)
    return found


def known_values(trial: FrozenTrial, i: int) -> list[float]:
    """The finite values of one objective that a trial has reached, those on its way too of the first."""
    values = [trial.values[i]] if trial.values and len(trial.values) > i else []
    values += list(trial.intermediate_values.values()) if i == 0 else []
    return [v for v in values if math.isfinite(v)]


def best_candidate(folder: Path, asked: Path, by: str, direction: str) -> dict[str, Any]:
    """The best of the decode-time candidates by a measure, with its whole sampler; of equals the first. Empty without any."""
    sign, scores = -1 if direction == "maximize" else 1, read_scores(folder)
    fit = [(sign * score["measures"][by], i) for i, score in enumerate(scores) if by in score["measures"]]
    if not fit:
        return {}
    i = min(fit)[1]
    return {**scores[i], "sampler": json.loads(asked.read_text(encoding="utf-8"))["samplers"][i]}


def read_scores(folder: Path) -> list[Line]:
    """The measures of each decode-time candidate; empty where none were asked for."""
    try:
        return json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
