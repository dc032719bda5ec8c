"""A setting: a dataclass field that carries its meaning and its range.

In: ``n_layer: int = setting(12, "number of blocks", at_least=1)``.
Out: a dataclass whose instances have been checked, or a ConfigError that names key, value, rule and remedy.
Ranges are data beside the default, not code, so that the help and the search space can read the same ones.
"""

import math
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, ClassVar, get_args

from gpt2_lightning.errors import ConfigError


def setting(default: Any, what: str, **rules: Any) -> Any:
    """A field with its meaning and rules: ``at_least``, ``above``, ``at_most``, ``below``, ``choices``."""
    metadata = {"what": what, **rules}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True, slots=True)
class Settings:
    """Base of all settings: checks every field's range, then the rules between its fields. Keys begin with ``group``."""

    group: ClassVar[str] = ""

    def __init_subclass__(cls, group: str | None = None) -> None:
        if group is not None:
            cls.group = group

    def __post_init__(self) -> None:
        for f in fields(self):
            check_value(f, getattr(self, f.name), f"{self.group}.{f.name}" if self.group else f.name)
        self.check_rules()

    def check_rules(self) -> None:
        """Hold the rules between the fields; raises ConfigError."""

    def refuse(self, name: str, rule: str, remedy: str = "") -> ConfigError:
        """The error for field ``name``, to be raised by the caller."""
        f = next(f for f in fields(self) if f.name == name)
        key = f"{self.group}.{name}" if self.group else name
        return ConfigError(f.metadata.get("what", name), key=key, value=getattr(self, name), rule=rule, remedy=remedy)


def field_names(settings: type[Settings]) -> list[str]:
    """The keys of a command whose words are the fields of its settings."""
    return [f.name for f in fields(settings)]


def own_words(names: Sequence[str], words: list[str], command: str) -> dict[str, str]:
    """A command's words by key; raises ConfigError for a key that is none of its names."""
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in names:
            near = get_close_matches(key, names, n=1, cutoff=0.5) if equals else []
            remedy = f"Did you mean {near[0]}?" if near else f"The keys are {', '.join(names)}"
            raise ConfigError(f"argument of {command}", key="argument", value=word, rule="is not known", remedy=remedy)
        given[key] = value
    return given


def read_words(settings: type[Settings], words: dict[str, str]) -> dict[str, Any]:
    """The values of fields as a person typed them; raises ConfigError where it is of another type."""
    known = {f.name: f for f in fields(settings)}
    return {name: read_word(known[name], word, f"{settings.group}.{name}".lstrip(".")) for name, word in words.items()}


def read_word(f: "Field[Any]", word: str, key: str) -> Any:
    """One value of the field's type: text, a number, or nothing where the type allows it."""
    kinds = get_args(f.type) or (f.type,)
    if type(None) in kinds and word in ("null", "none"):
        return None
    kind = next(kind for kind in (int, float, str) if kind in kinds)
    try:
        return kind(word)
    except ValueError as error:
        rule = f"must be a{'n integer' if kind is int else ' number'}"
        raise ConfigError(f.metadata.get("what", f.name), key=key, value=word, rule=rule) from error


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def check_value(f: "Field[Any]", value: Any, key: str) -> None:
    """Hold one field's range, element by element for lists; ``None`` is the business of the field's type."""
    for one in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
        rule = broken_rule(f.metadata, one)
        if rule:
            remedy = "" if f.default in (None, MISSING) else f"The default is {key}={f.default}"
            raise ConfigError(f.metadata.get("what", f.name), key=key, value=value, rule=rule, remedy=remedy)


def broken_rule(rules: Any, value: Any) -> str:
    """The rule that ``value`` breaks, in words; empty when it breaks none."""
    choices = rules.get("choices")
    if choices and value is not None and value not in choices:
        return "must be one of " + ", ".join(map(str, choices))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if not math.isfinite(value):
        return "must be finite"
    bounds = [
        ("at_least", "at least", lambda bound: value >= bound),
        ("above", "above", lambda bound: value > bound),
        ("at_most", "at most", lambda bound: value <= bound),
        ("below", "below", lambda bound: value < bound),
    ]
    asked = [(words, rules[name], holds) for name, words, holds in bounds if name in rules]
    if all(holds(bound) for _, bound, holds in asked):
        return ""
    return "must be " + " and ".join(f"{words} {bound}" for words, bound, _ in asked)
