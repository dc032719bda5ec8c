"""Variants of a run: its overrides and values for a few keys in; checked RunConfigs out.

One number: Hydra composes 1 time for each choice of options of groups. Choice not taken: building every part of each variant
anew; a study's trials differ in a handful of values, and an agent makes many a second.
"""

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt2_lightning.config import RunConfig, build, compose_words, explained, group_options, in_order, instantiate, name_run
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.settings.launch import LaunchConfig

__all__ = ["Variants"]


class Variants:
    """Runs that differ in a few keys. Files are read once for each choice of options: later changes to them are not seen.

    What two of them have alike may be one object: settings are not to be changed.
    """

    def __init__(self, overrides: list[str]) -> None:
        self.overrides = in_order(overrides)
        self.is_group = cache(lambda key: bool(group_options(key)))
        self.read: dict[str, DictConfig] = {}
        self.near: dict[str, Near] = {}

    def at(self, values: Mapping[str, Any]) -> RunConfig:
        """The run with these values by key, of settings and of groups; raises ConfigError."""
        options = {key: value for key, value in values.items() if self.is_group(key)}
        single = {key: value for key, value in values.items() if key not in options}
        words = [word for word in self.overrides if word.partition("=")[0].lstrip("+") not in options]
        words = in_order([*words, *(f"{key}={value}" for key, value in options.items())])
        with explained([*words, *(f"{key}={value}" for key, value in values.items())]):
            mark = str(sorted(options.items()))
            if mark not in self.read:
                self.read[mark] = name_run(compose_words(words), words)
            return self.nearby(mark, single) or whole(self.read[mark], single)

    def nearby(self, mark: str, values: Mapping[str, Any]) -> RunConfig | None:
        """The same run made the short way; None where that does not lead there, or an error is to be said."""
        try:
            if mark not in self.near:
                self.near[mark] = Near(self.read[mark])
            return self.near[mark].at(values)
        except (ConfigError, OmegaConfBaseException):
            return None

    def start(self) -> tuple[LaunchConfig, bool]:
        """How the run or study is to be started, and whether that is only to be shown; raises ConfigError."""
        self.at({})
        return build(self.read["[]"].launch), self.read["[]"].dry_run


def whole(composed: DictConfig, values: Mapping[str, Any]) -> RunConfig:
    """The run with other values, all of it built anew; raises what Hydra's schema or our rules refuse."""
    composed = deepcopy(composed)
    for key, value in values.items():
        OmegaConf.update(composed, key, value)
    return instantiate(composed)


class Near:
    """Runs that have other single values than what was composed: only the parts that a value lies in are built anew."""

    def __init__(self, composed: DictConfig) -> None:
        self.config, self.desk = instantiate(composed), deepcopy(composed)
        woven = re.findall(r"\$\{([^}]*)", str(OmegaConf.to_container(composed)))
        self.names = set(re.findall(r"\w+|\$", " ".join(woven)))  # in interpolations: what these name others have, too

    def at(self, values: Mapping[str, Any]) -> RunConfig | None:
        """The run; None where a value may not be the only one that changes."""
        if not all(self.is_single(key, value) for key, value in values.items()):
            return None
        for key, value in values.items():
            OmegaConf.update(self.desk, key, value)  # which has it as the schema wants it
        return changed(self.config, {key: OmegaConf.select(self.desk, key) for key in values})

    def is_single(self, key: str, value: Any) -> bool:
        """Whether key and value are of a plain setting that nothing else is made of."""
        *parents, name = key.split(".")
        part: Any = self.config
        for one in (*parents, name):
            if not is_dataclass(part) or one not in {f.name for f in fields(part)} or self.names & {one, "$"}:
                return False
            part = getattr(part, one)
        plain = not is_dataclass(part) and not isinstance(part, list | dict)
        text = isinstance(value, str) and "${" not in value and value != "???"
        return plain and (text or value is None or isinstance(value, bool | int | float))


def changed(part: Any, values: Mapping[str, Any]) -> Any:
    """Settings with other values by dotted key, checked anew."""
    inner: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        name, _, rest = key.partition(".")
        inner.setdefault(name, {})[rest] = value
    return replace(part, **{name: own[""] if "" in own else changed(getattr(part, name), own) for name, own in inner.items()})
