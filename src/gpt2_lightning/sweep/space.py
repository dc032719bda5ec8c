"""The search space: text in Hydra's sweep grammar in; parameters to suggest, overrides to train with, candidates to decode out.

``interval(low, high)`` is a float, ``range(low, stop, step)`` integers below ``stop``, ``choice(...)`` or a list one of its
values; ``tag(log, ...)`` and ``tag(int, ...)`` as elsewhere. A mapping ``{optimizer=sgd: interval(...)}`` asks what its
condition allows.
One number: 256, the most combinations of decode-time settings that are scored for a trained model.
Choice not taken: a grammar of our own; people have their spaces in this one.
"""

import json
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Quote, QuotedString, RangeSweep, Sweep
from hydra.errors import HydraException
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from gpt2_lightning.config import parse_override
from gpt2_lightning.errors import ConfigError, first_line

__all__ = ["OUTSIDE", "Parameter", "Point", "Space", "decode_time", "override_text", "read_space"]

MOST_CANDIDATES, MOST_POINTS, MOST_VALUES = 256, 10_000, 1_000
OF_INTERVAL = 8  # decode-time candidates taken from an interval
OUTSIDE: Final = object()  # what the storage holds for a value that is none of the parameter's; None may be one

NO_TEXT = ("null", "true", "false", "nan", "inf")  # to Hydra's grammar

Point = dict[str, Any]  # values by key
Distribution = FloatDistribution | IntDistribution | CategoricalDistribution


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """One question: the ``key`` it sets, in what ``distribution``, and the (key, value) it needs beside it, if any.

    ``values`` are those of a choice.
    """

    key: str
    distribution: Distribution
    values: tuple[Any, ...] = ()
    when: tuple[str, Any] | None = None

    @property
    def name(self) -> str:
        """The key and its condition: unlike that of all others."""
        return f"{self.key} ({self.when[0]}={override_text(self.when[1])})" if self.when else self.key

    def __str__(self) -> str:
        """The question in Hydra's grammar."""
        d = self.distribution
        if isinstance(d, IntDistribution) and not d.log:
            return f"range({d.low}, {d.high + d.step}, {d.step})"
        if not isinstance(d, CategoricalDistribution):
            tags = ["log"] * d.log + ["int"] * isinstance(d, IntDistribution)
            text = f"interval({d.low}, {d.high})"
            return f"tag({', '.join(tags)}, {text})" if tags else text
        return f"choice({', '.join(map(override_text, self.values))})"

    def called_for(self, point: Point) -> bool:
        """Whether the condition holds at the point."""
        return self.when is None or (self.when[0] in point and same(point[self.when[0]], self.when[1]))

    def value(self, told: Any) -> Any:
        """What the key is set to, from what the storage holds."""
        return self.values[[label(value) for value in self.values].index(told)] if self.values else told

    def told(self, value: Any) -> Any:
        """What the storage holds for a value; OUTSIDE for one that cannot be."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return next((label(one) for one in self.values if same(one, value)), OUTSIDE)
        if isinstance(value, bool) or not isinstance(value, int | float) or not d.low <= value <= d.high:
            return OUTSIDE
        if isinstance(d, FloatDistribution):
            return float(value)
        return int(value) if (value - d.low) % d.step == 0 else OUTSIDE

    def ends(self) -> list[Any]:
        """The values that have to be fit to be set: every one of a choice, both ends of an interval."""
        d = self.distribution
        return list(self.values) if isinstance(d, CategoricalDistribution) else [d.low, d.high]

    def candidates(self) -> Sequence[Any]:
        """The values that are tried one by one: all, or evenly spaced ones of an interval."""
        d = self.distribution
        if isinstance(d, IntDistribution) and not d.log:
            return range(d.low, d.high + 1, d.step)
        if isinstance(d, CategoricalDistribution):
            return self.values
        shares = [i / (OF_INTERVAL - 1) for i in range(OF_INTERVAL)]
        spaced = [d.low * (d.high / d.low) ** s if d.log else d.low + (d.high - d.low) * s for s in shares]
        if isinstance(d, IntDistribution):
            return list(dict.fromkeys(round(x) for x in spaced))
        return list(dict.fromkeys([d.low, *(float(f"{x:.4g}") for x in spaced[1:-1]), d.high]))


class Space:
    """All parameters in the order of asking: what others need comes before them."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.parameters = sorted(parameters, key=lambda p: p.when is not None)

    def __len__(self) -> int:
        return len(self.parameters)

    def parts(self, joint: bool) -> tuple["Space", "Space"]:
        """What is proposed for training, and what is scored on each trained model; raises ConfigError if one needs another."""
        apart = [p for p in self.parameters if decode_time(p.key) and not joint]
        for p in self.parameters:
            if p.when and decode_time(p.when[0]) != decode_time(p.key) and not joint:
                rule = "settings of training and of decoding are searched apart, and cannot be each other's condition"
                raise refuse(p.key, f"{p.when[0]}={override_text(p.when[1])}", rule, "Set sweep.joint=true")
        return Space(p for p in self.parameters if p not in apart), Space(apart)

    def ask(self, trial: Trial) -> Point:
        """A value for every key that the values before it call for."""
        point: Point = {}
        for p in self.parameters:
            if p.called_for(point):
                point[p.key] = p.value(suggest(trial, p))
        return point

    def told(self, point: Point) -> dict[str, Any] | None:
        """What the storage holds for a point that gives every key asked for; None where the point is not in the space."""
        found = {p.name: p.told(point.get(p.key, OUTSIDE)) for p in self.parameters if p.called_for(point)}
        return None if any(value is OUTSIDE for value in found.values()) else found

    def part_of(self, point: Point) -> dict[str, Any]:
        """As ``told`` for a point that leaves keys open; raises ConfigError for what does not fit."""
        fits = {p.key: (p.name, p.told(point[p.key])) for p in self.parameters if p.key in point and p.called_for(point)}
        for key, value in point.items():
            if key not in fits or fits[key][1] is OUTSIDE:
                rule = f"{key}={override_text(value)} is not in the space"
                raise ConfigError("enqueued point", key="sweep.enqueue", value=override_text(point), rule=rule)
        return dict(fits.values())

    def grid(self) -> list[Point]:
        """Every point of a space of choices and ranges, the last key fastest; raises ConfigError where it has an interval."""
        for p in self.parameters:
            if isinstance(p.distribution, FloatDistribution) or getattr(p.distribution, "log", False):
                rule = f"{p} has no finite set of values to try one by one"
                remedy = f"Set '{p.key}=choice(...)', or search it: sweep.sampler=tpe sweep.n_trials=20"
                raise ConfigError("grid", key=p.key, rule=rule, remedy=remedy)
        return self.combinations(MOST_POINTS)

    def candidates(self) -> list[Point]:
        """Every combination of decode-time candidates; raises ConfigError where they are too many."""
        return self.combinations(MOST_CANDIDATES) if self.parameters else []

    def combinations(self, most: int) -> list[Point]:
        """The product of all candidates, of each key's own where its condition holds; raises ConfigError beyond ``most``."""
        points: list[Point] = [{}]
        for p in self.parameters:
            grown = (
                {**at, **one} for at in points for one in (({p.key: v} for v in p.candidates()) if p.called_for(at) else [{}])
            )
            points = list(islice(grown, most + 1))
            if len(points) > most:
                keys = ", ".join(dict.fromkeys(q.key for q in self.parameters))
                rule = f"make more than {most} combinations"
                raise ConfigError("search space", key=keys, rule=rule, remedy="Use choice() with fewer values")
        return points

    def as_asked(self) -> dict[str, str]:
        """The space as text, equal for equal spaces: what a study is held to."""
        return {p.name: str(p) for p in self.parameters}


def suggest(trial: Trial, p: Parameter) -> Any:
    """Ask the study for one value."""
    d = p.distribution
    if isinstance(d, CategoricalDistribution):
        return trial.suggest_categorical(p.name, d.choices)
    if isinstance(d, IntDistribution):
        return trial.suggest_int(p.name, d.low, d.high, step=d.step, log=d.log)
    return trial.suggest_float(p.name, d.low, d.high, log=d.log)


def decode_time(key: str) -> bool:
    """Whether a key has no part in training."""
    return key == "sampler" or key.startswith("sampler.")


def read_space(params: Mapping[str, Any]) -> Space:
    """The space of ``{key: text, list, or {other_key=value: ...}}``; raises ConfigError, before anything is asked."""
    free = {key: read_parameter(key, given) for key, given in params.items() if not isinstance(given, Mapping)}
    bound = [
        read_parameter(key, text, waits_for(key, str(condition), free))
        for key, given in params.items()
        if isinstance(given, Mapping)
        for condition, text in (given or {"": ""}).items()
    ]
    space = Space([*free.values(), *bound])
    if len(space.as_asked()) < len(space):
        raise refuse(bound[0].key, "", "has the same condition twice")
    return space


def waits_for(key: str, condition: str, free: Mapping[str, Parameter]) -> tuple[str, Any]:
    """The key and the value of a condition; raises ConfigError where they can never be."""
    other, _, text = condition.partition("=")
    if other not in free:
        rule = "must be key=value of another key of the space, which has no condition itself"
        raise refuse(key, condition, rule, "A key is written with dots, a condition as in {optimizer=sgd: interval(0.1, 1)}")
    asked = parse(other, text)
    told = free[other].told(asked[0]) if isinstance(asked, list) else OUTSIDE
    if told is OUTSIDE:
        raise refuse(key, condition, f"{other} cannot be {text}: it is one of {free[other]}")
    return other, free[other].value(told)


def read_parameter(key: str, given: Any, when: tuple[str, Any] | None = None) -> Parameter:
    """One parameter from the text, list or value behind its key; raises ConfigError."""
    shown = given if isinstance(given, str) else override_text(given)
    asked = parse(key, given) if isinstance(given, str) else given
    if isinstance(asked, IntervalSweep):
        return Parameter(key=key, distribution=interval(key, asked, shown), when=when)
    if isinstance(asked, RangeSweep) and all(isinstance(x, int) for x in (asked.start, asked.stop, asked.step)):
        return Parameter(key=key, distribution=whole_range(key, asked, shown), when=when)
    listed = asked.range() if isinstance(asked, RangeSweep) else asked if isinstance(asked, list | tuple) else [asked]
    values = tuple(islice(listed, MOST_VALUES + 1))
    check_values(key, values, shown)
    return Parameter(key=key, distribution=CategoricalDistribution([label(v) for v in values]), values=values, when=when)


def parse(key: str, text: str) -> Any:
    """What Hydra's grammar makes of the text: an IntervalSweep, a RangeSweep, or a list of values."""
    try:
        value = parse_override(f"{key}={text}").value()
    except HydraException as error:
        reasons = [cause for cause in (error, error.__cause__) if cause is not None and str(cause) not in ("", "None")]
        raise refuse(key, text, first_line(reasons[-1]), "See https://hydra.cc, extended override syntax") from error
    if isinstance(value, Glob):
        raise refuse(key, text, "glob() is not supported", "Name the options: choice(a, b)")
    if isinstance(value, RangeSweep) and not value.step:
        raise refuse(key, text, "must have a step other than 0")
    if not isinstance(value, ChoiceSweep):
        return value if isinstance(value, Sweep) else [plain_value(value)]
    if value.tags:
        raise refuse(key, text, f"has tags that mean nothing on a choice: {', '.join(sorted(value.tags))}")
    values = [plain_value(one) for one in value.list]
    if value.shuffle:
        random.Random(0).shuffle(values)  # the same each time: a study that goes on is to be asked the same
    return values


def check_values(key: str, values: tuple[Any, ...], shown: str) -> None:
    """Raise ConfigError for what is no choice."""
    if len(values) > MOST_VALUES:
        raise refuse(key, shown, f"offers more than {MOST_VALUES} values", "Use interval(low, high)")
    if any(isinstance(value, Sweep) for value in values):
        raise refuse(key, shown, "offers a range or an interval among values", "Offer one interval, or values")
    marks = [label(value) for value in values]
    finite = all(math.isfinite(value) for value in values if isinstance(value, float))
    if not values or len(set(marks)) < len(marks) or not finite:
        raise refuse(key, shown, "must offer values, each once, and finite ones")


def interval(key: str, asked: IntervalSweep, shown: str) -> Distribution:
    """``interval(low, high)``, on a logarithmic scale and of integers where tagged."""
    low, high, log = asked.start, asked.end, "log" in asked.tags
    assert low is not None and high is not None
    check_range(key, low, high, asked.tags, shown)
    if "int" in asked.tags or (isinstance(low, int) and isinstance(high, int)):  # int(interval(1, 9))
        low, high = math.ceil(low), math.floor(high)
        if low > high:
            raise refuse(key, shown, "holds no integer")
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def whole_range(key: str, asked: RangeSweep, shown: str) -> Distribution:
    """``range(start, stop, step)``, without ``stop`` as in Python and in Hydra."""
    values = range(int(asked.start or 0), int(asked.stop or 0), int(asked.step))
    if not values:
        raise refuse(key, shown, "holds no value")
    low, high, step = min(values[0], values[-1]), max(values[0], values[-1]), abs(values.step)
    check_range(key, low, high, asked.tags, shown)
    if "log" in asked.tags and step > 1:
        raise refuse(key, shown, "cannot have a step on a logarithmic scale", "Leave one of the two out")
    return IntDistribution(low, high, log="log" in asked.tags, step=step)


def check_range(key: str, low: int | float, high: int | float, tags: set[str], shown: str) -> None:
    """Raise ConfigError for what is no range."""
    if not tags <= {"log", "int"}:
        rule = f"has tags that mean nothing here: {', '.join(sorted(tags - {'log', 'int'}))}"
        raise refuse(key, shown, rule, "The tags are log and int")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise refuse(key, shown, "must have finite ends")
    if low > high:
        raise refuse(key, shown, "has its low end above its high one", f"Swap them: {high}, {low}")
    if "log" in tags and low <= 0:
        raise refuse(key, shown, "must begin above 0 on a logarithmic scale", "Leave tag(log, ...) out, or raise the low end")


def refuse(key: str, value: str, rule: str, remedy: str = "") -> ConfigError:
    """The error for a space that cannot be searched."""
    return ConfigError("search space", key=key, value=value, rule=rule, remedy=remedy)


def label(value: Any) -> Any:
    """A value as the storage can hold it: lists and mappings as JSON."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def plain_value(value: Any) -> Any:
    """A value of Hydra's grammar without the marks of how it was quoted."""
    if isinstance(value, list):
        return [plain_value(one) for one in value]
    if isinstance(value, dict):
        return {plain_value(key): plain_value(one) for key, one in value.items()}
    return value.text if isinstance(value, QuotedString) else value


def same(one: Any, other: Any) -> bool:
    """Equal, and true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def override_text(value: Any) -> str:
    """A value as Hydra's grammar reads it back."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(override_text, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{override_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", value) and value.lower() not in NO_TEXT
        return value if plain else QuotedString(value, Quote.single).with_quotes()
    return repr(float(value)) if isinstance(value, float) else str(value)
