"""The search space: text in Hydra's sweep grammar in; parameters to suggest, overrides to train with, candidates to decode out.

``interval(low, high)`` is a float, ``range(low, stop, step)`` integers below ``stop``, ``choice(...)`` or a list one of its
values; ``tag(log, ...)`` and ``tag(int, ...)`` as elsewhere. A mapping ``{optimizer=sgd: interval(...)}`` asks what its
condition allows.
One number: 256, the most combinations of decode-time settings that are scored for a trained model.
Choice not taken: a grammar of our own; people have their spaces in this one.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep, Transformer
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from gpt2_lightning.errors import ConfigError, first_line

__all__ = ["Parameter", "Space", "decode_time", "override_text", "read_space"]

MOST_CANDIDATES = 256
OF_INTERVAL = 8  # decode-time candidates taken from an interval

Point = dict[str, Any]  # values by key


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """One question: the ``key`` it sets, in what ``distribution``, and the (key, value) it needs beside it, if any.

    ``name`` is unlike that of all others, even of the same key under other conditions. ``values`` are those of a choice.
    """

    name: str
    key: str
    distribution: BaseDistribution
    values: tuple[Any, ...] = ()
    when: tuple[str, Any] | None = None

    def value(self, told: Any) -> Any:
        """What the key is set to, from what the storage holds."""
        return self.values[self.labels.index(told)] if self.values else told

    @property
    def labels(self) -> list[Any]:
        """The values of a choice as the storage holds them."""
        return [label(value) for value in self.values]

    def told(self, value: Any) -> Any:
        """What the storage holds for a value; None where it lies outside, or is of another type."""
        if self.values:
            return next((mark for one, mark in zip(self.values, self.labels, strict=True) if same(one, value)), None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        d = self.distribution
        assert isinstance(d, FloatDistribution | IntDistribution)
        whole = isinstance(d, FloatDistribution) or (value == int(value) and (int(value) - d.low) % (d.step or 1) == 0)
        return (
            (float(value) if isinstance(d, FloatDistribution) else int(value)) if d.low <= value <= d.high and whole else None
        )

    def ends(self) -> list[Any]:
        """The values that have to be fit to be set: every one of a choice, both ends of an interval."""
        d = self.distribution
        return list(self.values) if isinstance(d, CategoricalDistribution) else [d.low, d.high]  # type: ignore[attr-defined]

    def candidates(self) -> list[Any]:
        """The values of a decode-time setting that are tried: all, or evenly spaced ones of an interval."""
        d = self.distribution
        if isinstance(d, IntDistribution) and not d.log:
            return list(range(d.low, d.high + 1, d.step))
        if isinstance(d, CategoricalDistribution):
            return list(self.values)
        assert isinstance(d, FloatDistribution | IntDistribution)
        shares = [i / (OF_INTERVAL - 1) for i in range(OF_INTERVAL)]
        spaced = [d.low * (d.high / d.low) ** s if d.log else d.low + (d.high - d.low) * s for s in shares]
        if isinstance(d, IntDistribution):
            return list(dict.fromkeys(round(x) for x in spaced))
        return [d.low, *(float(f"{x:.4g}") for x in spaced[1:-1]), d.high]


class Space:
    """All parameters in the order of asking: what others need comes before them."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.parameters = sorted(parameters, key=lambda p: p.when is not None)

    def __len__(self) -> int:
        return len(self.parameters)

    def parts(self, joint: bool) -> tuple["Space", "Space"]:
        """What is proposed for training, and what is scored on each trained model."""
        apart = [p for p in self.parameters if decode_time(p.key) and not joint]
        return Space(p for p in self.parameters if p not in apart), Space(apart)

    def ask(self, trial: Trial) -> Point:
        """A value for every key that the values before it call for."""
        point: Point = {}
        for p in self.parameters:
            if p.when is None or point.get(p.when[0]) == p.when[1]:
                point[p.key] = p.value(suggest(trial, p))
        return point

    def told(self, point: Point) -> dict[str, Any] | None:
        """What the storage holds for a point that gives every key asked for; None where the point is not in the space."""
        asked = [p for p in self.parameters if p.when is None or same(point.get(p.when[0]), p.when[1])]
        found = {p.name: p.told(point.get(p.key)) for p in asked}
        empty = [p for p in asked if found[p.name] is None and not (p.values and p.key in point and None in p.values)]
        return None if empty else found

    def part_of(self, point: Point) -> dict[str, Any]:
        """As ``told`` for a point that leaves keys open; raises ConfigError for what does not fit."""
        found = {}
        for key, value in point.items():
            fits = [(p.name, p.told(value)) for p in self.parameters if p.key == key and self.called_for(p, point)]
            if not fits or fits[0][1] is None:
                rule = f"{key}={value} is not in the space"
                raise ConfigError("enqueued point", key="sweep.enqueue", value=json.dumps(point), rule=rule)
            found[fits[0][0]] = fits[0][1]
        return found

    def called_for(self, p: Parameter, point: Point) -> bool:
        """Whether the parameter's condition holds at the point."""
        return p.when is None or same(point.get(p.when[0]), p.when[1])

    def grid(self) -> list[Point]:
        """Every point of a space of choices and ranges, the last key fastest; raises ConfigError where it has an interval."""
        for p in self.parameters:
            if isinstance(p.distribution, FloatDistribution) or getattr(p.distribution, "log", False) or p.when:
                rule = f"needs a finite set of values, {p.name} has none"
                raise ConfigError("sampler", key="sweep.sampler", value="grid", rule=rule, remedy=f"Set {p.key}=choice(...)")
        return self.combinations()

    def candidates(self) -> list[Point]:
        """Every combination of decode-time candidates; raises ConfigError where they are too many."""
        n = math.prod(len(p.candidates()) for p in self.parameters)
        if n > MOST_CANDIDATES:
            keys = ", ".join(p.key for p in self.parameters)
            rule = f"make {n} combinations, at most {MOST_CANDIDATES} are scored"
            raise ConfigError("decode-time settings", key=keys, rule=rule, remedy="Use choice() with fewer values")
        return self.combinations() if self.parameters else []

    def combinations(self) -> list[Point]:
        """The product of all candidates."""
        keys = [p.key for p in self.parameters]
        return [dict(zip(keys, values, strict=True)) for values in product(*(p.candidates() for p in self.parameters))]

    def as_asked(self) -> dict[str, str]:
        """The space as text, equal for equal spaces: what a study is held to."""
        return {p.name: f"{p.distribution} {json.dumps(p.values)}".replace(" []", "") for p in self.parameters}


def suggest(trial: Trial, p: Parameter) -> Any:
    """Ask the study for one value."""
    d = p.distribution
    if isinstance(d, CategoricalDistribution):
        return trial.suggest_categorical(p.name, d.choices)
    if isinstance(d, IntDistribution):
        return trial.suggest_int(p.name, d.low, d.high, step=d.step, log=d.log)
    assert isinstance(d, FloatDistribution)
    return trial.suggest_float(p.name, d.low, d.high, step=d.step, log=d.log)


def decode_time(key: str) -> bool:
    """Whether a key has no part in training."""
    return key == "sampler" or key.startswith("sampler.")


def read_space(params: Mapping[str, Any]) -> Space:
    """The space of ``{key: text, list, or {other_key=value: ...}}``; raises ConfigError, before anything is asked."""
    found = []
    for key, given in params.items():
        for when, text in given.items() if isinstance(given, Mapping) else [("", given)]:
            condition = tuple(when.split("=", 1)) if when else None
            if condition and (len(condition) < 2 or condition[0] not in params or isinstance(params[condition[0]], Mapping)):
                raise refuse(key, when, "must be key=value of another key of the space, which has no condition")
            found.append(read_parameter(key, text, condition))  # type: ignore[arg-type]
    space = Space(found)
    return Space(fix_condition(p, space) for p in found)


def fix_condition(p: Parameter, space: Space) -> Parameter:
    """The parameter with its condition's value as the other key has it; raises ConfigError where that is none of its values."""
    if p.when is None:
        return p
    other = next(q for q in space.parameters if q.key == p.when[0] and q.when is None)
    value = next((v for v in other.values if override_text(v) == p.when[1]), None)
    if value is None:
        rule = f"waits for {p.when[0]}={p.when[1]}, which {p.when[0]} cannot be"
        raise refuse(p.key, p.name, rule)
    return Parameter(name=p.name, key=p.key, distribution=p.distribution, values=p.values, when=(p.when[0], value))


def read_parameter(key: str, given: Any, when: tuple[str, str] | None = None) -> Parameter:
    """One parameter from the text, list or value behind its key; raises ConfigError."""
    name = f"{key} ({'='.join(when)})" if when else key
    if isinstance(given, str):
        given = parse(key, given)
    if isinstance(given, list | tuple):
        given = ChoiceSweep(list=list(given))
    if isinstance(given, IntervalSweep):
        return Parameter(name=name, key=key, distribution=interval(key, given), when=when)
    if isinstance(given, RangeSweep) and all(isinstance(x, int) for x in (given.start, given.stop, given.step)):
        return Parameter(name=name, key=key, distribution=whole_range(key, given), when=when)
    values = tuple(given.range()) if isinstance(given, RangeSweep) else tuple(map(plain_value, given.list))
    marks = [label(value) for value in values]
    if (
        not values
        or len(set(map(repr, marks))) < len(marks)
        or any(isinstance(v, float) and not math.isfinite(v) for v in values)
    ):
        raise refuse(key, given_text(values), "must offer values, each once, and finite ones")
    return Parameter(name=name, key=key, distribution=CategoricalDistribution(marks), values=values, when=when)


def parse(key: str, text: str) -> Any:
    """What Hydra's grammar makes of the text: a sweep, or the one value as a choice."""
    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException as error:
        reasons = [cause for cause in (error, error.__cause__) if cause is not None and str(cause) not in ("", "None")]
        raise refuse(key, text, first_line(reasons[-1]), "See https://hydra.cc, extended override syntax") from error
    if override.value_type is not None and override.value_type.name == "GLOB_CHOICE_SWEEP":
        raise refuse(key, text, "glob() is not supported", "Name the options: choice(a, b)")
    if not override.is_sweep_override():
        return ChoiceSweep(list=[override.value()])  # type: ignore[list-item]
    value = override.value()
    if isinstance(value, ChoiceSweep) and value.shuffle:
        return ChoiceSweep(list=list(override.sweep_iterator(transformer=Transformer.identity)))
    return value


def interval(key: str, asked: IntervalSweep) -> BaseDistribution:
    """``interval(low, high)``, on a logarithmic scale and of integers where tagged."""
    low, high, log = asked.start, asked.end, "log" in asked.tags
    assert low is not None and high is not None
    check_range(key, low, high, log, sorted(asked.tags))
    if "int" in asked.tags or (isinstance(low, int) and isinstance(high, int)):  # int(interval(1, 9))
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def whole_range(key: str, asked: RangeSweep) -> BaseDistribution:
    """``range(start, stop, step)``, without ``stop`` as in Python and in Hydra."""
    values = list(asked.range())
    if not values:
        raise refuse(key, f"range({asked.start}, {asked.stop})", "holds no value")
    check_range(key, min(values), max(values), "log" in asked.tags, sorted(asked.tags))
    step = 1 if "log" in asked.tags else abs(int(asked.step))
    return IntDistribution(int(min(values)), int(max(values)), log="log" in asked.tags, step=step)


def check_range(key: str, low: float, high: float, log: bool, tags: list[str]) -> None:
    """Raise ConfigError for what is no range."""
    shown = f"{low}, {high}"
    if not (math.isfinite(low) and math.isfinite(high)):
        raise refuse(key, shown, "must have finite ends")
    if low > high:
        raise refuse(key, shown, "has its low end above its high one", f"Swap them: {high}, {low}")
    if log and low <= 0:
        raise refuse(key, shown, "must begin above 0 on a logarithmic scale", "Leave tag(log, ...) out, or raise the low end")
    if not set(tags) <= {"log", "int"}:
        raise refuse(key, shown, f"has tags that mean nothing here: {', '.join(tags)}", "The tags are log and int")


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
    return value.text if hasattr(value, "text") else value


def same(one: Any, other: Any) -> bool:
    """Equal, and true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def given_text(values: tuple[Any, ...]) -> str:
    """Values as they were typed."""
    return f"[{', '.join(map(override_text, values))}]"


def override_text(value: Any) -> str:
    """A value as Hydra's grammar reads it back."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(override_text, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{override_text(k)}:{override_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][\w./-]*", value):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value) if isinstance(value, float) else str(value)
