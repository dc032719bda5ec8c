"""The trials of a study in order: their outcomes in; which is best, what the front is, what it is worth and what it cost out.

One number: 2 fresh seeds are the fewest that say how sure a difference is. Choice not taken: Optuna's own best trial, which may
be one that diverged or broke a constraint.
"""

import math
import statistics
from collections import Counter
from dataclasses import dataclass, field
from operator import le
from typing import Any

__all__ = ["Row", "confirmed", "failures", "front", "p_value", "rank", "saved"]


@dataclass(frozen=True, slots=True)
class Row:
    """One training as people read of it. ``state``: complete, pruned, failed or running; ``why`` is the class of a failure.

    ``told``: what the study's record holds of it.
    """

    name: str
    place: int | None
    state: str
    why: str
    values: dict[str, float]
    point: dict[str, Any]
    outcome: dict[str, Any]
    beside: dict[str, Any]
    steps: int
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What was searched of it: its point, and its best decode-time settings."""
        return {**self.point, **self.outcome.get("decode", {}).get("candidate", {})}

    @property
    def fit(self) -> bool:
        """Whether it can be the best: complete, of the study itself, and within all constraints."""
        return self.state == "complete" and self.place is not None and not self.outcome.get("broken")


def rank(rows: list[Row], objectives: list[str], directions: list[str]) -> list[Row]:
    """The fit ones, best first by the first objective; of equals the older."""
    name, sign = objectives[0], -1 if directions[0] == "maximize" else 1
    fit = [row for row in rows if row.fit and name in row.values]
    return sorted(fit, key=lambda row: (sign * row.values[name], row.place))


def front(rows: list[Row], objectives: list[str], directions: list[str]) -> list[Row]:
    """The fit ones that no other is better than in all objectives (the Pareto front)."""
    signs = [-1 if d == "maximize" else 1 for d in directions]
    fit = rank([row for row in rows if set(objectives) <= row.values.keys()], objectives, directions)
    losses = [[sign * row.values[name] for sign, name in zip(signs, objectives, strict=True)] for row in fit]

    def dominated(loss: list[float]) -> bool:
        return any(other != loss and all(map(le, other, loss)) for other in losses)

    return [row for row, loss in zip(fit, losses, strict=True) if not dominated(loss)]


def confirmed(rows: list[Row], objective: str) -> tuple[int, str] | None:
    """On how many fresh seeds the best and the baseline were trained, and what that has shown; None before both have two."""
    sides: dict[str, dict[int, float]] = {"best": {}, "baseline": {}}
    for row in rows:
        if row.beside and row.state == "complete" and objective in row.values:
            sides[row.beside["side"]][row.beside["seed"]] = row.values[objective]
    seeds = sorted(sides["best"].keys() & sides["baseline"].keys())
    if len(seeds) < 2:
        return None
    values = {side: [of_side[seed] for seed in seeds] for side, of_side in sides.items()}
    means = ", ".join(f"{side} {statistics.fmean(v):.4f} +- {statistics.stdev(v):.4f}" for side, v in values.items())
    return len(seeds), f"{means}, p = {p_value(*values.values()):.3g} (paired t-test)"


def p_value(a: list[float], b: list[float]) -> float:
    """Of a two-sided paired t-test; nan where there is no difference at all."""
    from scipy.special import stdtr  # type: ignore[import-untyped]  # scipy.stats takes three times as long to import

    differences = [x - y for x, y in zip(a, b, strict=True)]
    deviation = statistics.stdev(differences)
    if deviation == 0:
        return 0.0 if any(differences) else math.nan
    statistic = statistics.fmean(differences) / (deviation / math.sqrt(len(differences)))
    return float(2 * stdtr(len(differences) - 1, -abs(statistic)))


def saved(rows: list[Row]) -> str:
    """What ending trials early has saved, measured by the longest complete trial; empty where nothing can be said."""
    pruned, complete = ([row for row in rows if row.state == state] for state in ("pruned", "complete"))
    most = max((row.steps for row in complete), default=0)
    whole = most * (len(pruned) + len(complete))
    steps = sum(max(0, most - row.steps) for row in pruned)
    return f"{len(pruned)} trials, {steps:,} of {whole:,} steps saved ({steps / whole:.0%})" if pruned and whole else ""


def failures(rows: list[Row]) -> list[tuple[str, int, Row, str]]:
    """The classes of failure, most frequent first: how many, the first of them and its reason in a line."""
    failed = [row for row in rows if row.state == "failed"]
    first = {row.why: row for row in reversed(failed)}
    counted = Counter(row.why for row in failed).most_common()
    return [(why, n, first[why], " ".join(first[why].outcome.get("reason", "").split())) for why, n in counted]
