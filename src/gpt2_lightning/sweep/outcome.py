"""The outcome of a trial: its folder and its process's end in; state, class of failure, values and reason out.

One number: 2,000 characters of a failed trial's log are kept with the study. Choice not taken: asking the process; one that is
dead answers nothing, and what a run writes is all a person would look at.
"""

import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["Reports", "classify", "log_tail", "read_scores", "training_values"]

TAIL = 2000
Line = dict[str, Any]


class Reports:
    """The lines of a run's metrics.jsonl as they are written; from the beginning where a run went on from a checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.known = path, 0, 0

    def new(self) -> Iterator[Line]:
        """The whole lines since the last call, each step's once."""
        try:
            with self.path.open("rb") as file:
                if self.path.stat().st_size < self.offset:
                    self.offset = 0
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
    """The class of a failure (killed, out of memory, diverged, error) and its reason, from exit status and log."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = errors[-1] if errors else lines[-1] if lines else "it said nothing"
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
    if status == 8 and "is held by process" in reason:
        return "held", reason
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
            values[name] = best(finite) if name.startswith("val/") else finite[-1]
    with suppress(OSError, ValueError, KeyError):
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        values |= {name: float(result[name]) for name in objectives if name == "seconds"}
    return values


def read_scores(folder: Path) -> list[Line]:
    """The measures of each decode-time candidate; empty where none were asked for."""
    try:
        return json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
