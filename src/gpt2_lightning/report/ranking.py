"""The trials of a study in order: their outcomes in; which is best, what the front is, what it is worth and what it cost out.

One number: 2 fresh seeds are the fewest that say how sure a difference is. Choice not taken: Optuna's own best trial, which may
be one that diverged or broke a constraint.
"""

import math
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

__all__ = ["Confirmed", "Row", "Saved", "confirmed", "failures", "front", "p_value", "rank", "saved"]


@dataclass(frozen=True, slots=True)
class Row:
    """One training as people read of it. ``state``: complete, pruned, failed or running; ``why`` is the class of a failure."""

    name: str
    place: int | None
    state: str
    why: str
    values: dict[str, float]
    point: dict[str, Any]
    outcome: dict[str, Any]
    beside: dict[str, Any]
    steps: int

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

    def of(row: Row) -> list[float]:
        return [sign * row.values[name] for sign, name in zip(signs, objectives, strict=True)]

    fit = rank([row for row in rows if set(objectives) <= row.values.keys()], objectives, directions)
    return [row for row in fit if not any(dominates(of(other), of(row)) for other in fit)]


def dominates(a: list[float], b: list[float]) -> bool:
    """Nowhere worse and somewhere better."""
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The best and the baseline on the same fresh seeds."""

    best: list[float]
    baseline: list[float]

    @property
    def p(self) -> float:
        """Of a two-sided paired t-test; nan where there is no difference at all."""
        return p_value(self.best, self.baseline)

    def shown(self) -> str:
        """Means, deviations, and the p-value."""
        sides = (("best", self.best), ("baseline", self.baseline))
        means = ", ".join(f"{word} {statistics.fmean(v):.4f} +- {statistics.stdev(v):.4f}" for word, v in sides)
        return f"{means}, p = {self.p:.3g} (paired t-test)"


def confirmed(rows: list[Row], objective: str) -> Confirmed | None:
    """What training the best and the baseline on fresh seeds has shown; None before both have two."""
    sides: dict[str, dict[int, float]] = {"best": {}, "baseline": {}}
    for row in rows:
        if row.beside and row.state == "complete" and objective in row.values:
            sides[row.beside["side"]][row.beside["seed"]] = row.values[objective]
    seeds = sorted(sides["best"].keys() & sides["baseline"].keys())
    return Confirmed(*([sides[side][seed] for seed in seeds] for side in ("best", "baseline"))) if len(seeds) > 1 else None


def p_value(a: list[float], b: list[float]) -> float:
    """Of a two-sided paired t-test; nan where there is no difference at all."""
    from scipy.stats import t  # type: ignore[import-untyped]

    differences = [x - y for x, y in zip(a, b, strict=True)]
    deviation = statistics.stdev(differences)
    if deviation == 0:
        return 0.0 if any(differences) else math.nan
    statistic = statistics.fmean(differences) / (deviation / math.sqrt(len(differences)))
    return float(2 * t.sf(abs(statistic), len(differences) - 1))


@dataclass(frozen=True, slots=True)
class Saved:
    """What ending ``pruned`` trials early has saved: ``steps`` of the ``whole``."""

    pruned: int
    steps: int
    whole: int

    def __str__(self) -> str:
        return f"{self.pruned} trials, {self.steps:,} of {self.whole:,} steps saved ({self.steps / self.whole:.0%})"


def saved(rows: list[Row]) -> Saved | None:
    """Measured by the longest complete trial; None where nothing can be said."""
    pruned, complete = ([row for row in rows if row.state == state] for state in ("pruned", "complete"))
    most = max((row.steps for row in complete), default=0)
    whole = most * (len(pruned) + len(complete))
    return Saved(len(pruned), sum(max(0, most - row.steps) for row in pruned), whole) if pruned and whole else None


def failures(rows: list[Row]) -> list[tuple[str, int, Row, str]]:
    """The classes of failure, most frequent first: how many, the first of them and its reason in a line."""
    failed = [row for row in rows if row.state == "failed"]
    first = {row.why: row for row in reversed(failed)}
    counted = Counter(row.why for row in failed).most_common()
    return [(why, n, first[why], " ".join(first[why].outcome.get("reason", "").split())) for why, n in counted]
