"""A contest: contenders take turns in one process, round after round, and what counts is the ratios of their times.

In: callables, each of which does its share of a round and returns the seconds it took. Out: seconds by contender and
round, and their ratios with spread.
Choice not taken: one contender after the other; a machine's speed drifts by more than what is to be seen.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine

__all__ = ["clock", "contest", "difference", "print_ratios", "ratio", "ratios", "turns", "write_report"]

Seconds = dict[str, list[float]]


def clock() -> float:
    """Seconds, read once the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def turns(names: list[str], rounds: int) -> Iterator[str]:
    """All names once a round, each round beginning with the next of them, so that none is always first."""
    for i in range(rounds):
        start = i % len(names)
        yield from names[start:] + names[:start]


def contest(contenders: dict[str, Callable[[], float]], rounds: int, warmup_rounds: int = 1) -> Seconds:
    """The seconds of each contender's turns; those of the warm-up are left out."""
    seconds: Seconds = {name: [] for name in contenders}
    for name in turns(list(contenders), warmup_rounds + rounds):
        seconds[name].append(contenders[name]())
    return {name: times[warmup_rounds:] for name, times in seconds.items()}


def ratio(seconds: Seconds, over: str, under: str) -> dict[str, float]:
    """The ratio of the medians, and the spread of the ratios of single rounds."""
    a, b = np.array(seconds[over]), np.array(seconds[under])
    return {"ratio": float(np.median(a) / np.median(b)), **spread(a / b)}


def difference(seconds: Seconds, minuend: str, subtrahend: str) -> dict[str, float]:
    """The median of the paired differences, in milliseconds, and their spread."""
    paired = 1e3 * (np.array(seconds[minuend]) - np.array(seconds[subtrahend]))
    return {"median_ms": float(np.median(paired)), **spread(paired)}


def spread(values: np.ndarray) -> dict[str, float]:
    """Extremes and quartiles."""
    low, q1, q3, high = np.quantile(values, (0, 0.25, 0.75, 1))
    return {"min": float(low), "quartile_1": float(q1), "quartile_3": float(q3), "max": float(high)}


def ratios(seconds: Seconds, pairs: list[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """``over/under`` of every pair that took part."""
    return {f"{a}/{b}": ratio(seconds, a, b) for a, b in pairs if a in seconds and b in seconds}


def print_ratios(found: dict[str, dict[str, float]]) -> None:
    """One line a ratio: the ratio of the medians, the quartiles and the extremes of the rounds."""
    width = max((len(name) for name in found), default=0)
    print(f"{'':{width}}  {'ratio':>9}  {'quartiles':^19}  {'min to max':^19}")
    for name, r in found.items():
        inner = f"{r['quartile_1']:.4f} - {r['quartile_3']:.4f}"
        outer = f"{r['min']:.4f} - {r['max']:.4f}"
        print(f"{name:{width}}  {r['ratio']:9.4f}  {inner:^19}  {outer:^19}")


def write_report(path: Path | None, settings: dict[str, Any], **results: Any) -> None:
    """The machine, the settings and the results as JSON; nothing without a path."""
    if path is not None:
        report = {"machine": describe_machine(), "settings": settings, **results}
        path.write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
