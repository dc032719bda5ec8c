"""The plan of a study: the words a person typed in; the base run, the space, the points that are given, each trial's settings
out.

Everything that can be wrong with a study is found here, before its first trial, without torch.
One number: 2 settings are composed for each interval of the space, its ends; of a choice, all.
Choice not taken: the trial's settings as overrides on the child's command line, which would read the files anew, as they are by
then.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2_lightning.config import RunConfig, comparable, compose_config, compose_study, group_options, read_overrides
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.settings.setting import flat
from gpt2_lightning.settings.sweep import SweepConfig
from gpt2_lightning.sweep.space import Point, Space, decode_time, override_text, read_space

__all__ = ["Plan", "fingerprint", "read_plan"]

OF_ENGINE = ("run", "resume", "resume_allow", "sweep", "trainer.devices", "trainer.accelerator", "trainer.threads")
PENALISED = ("train/loss", "train/penalty")
OF_VALIDATION = ("cross_entropy", "perplexity", "bits_per_byte", "accuracy")
METRICS = re.compile(r"val/.+|train/.+|speed/tokens_per_second|speed/peak_memory|optimizer/.+|generation/.+|seconds")
NO_MATTER = ("trainer.threads", "trainer.log_every", "data.workers", "checkpoint", "samples", "trainer.profile")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A study as it was asked for. ``points``: what the first places are given, None for what the base run is."""

    words: list[str]
    base: RunConfig
    sweep: SweepConfig
    space: Space
    decode: Space
    base_point: Point
    points: list[Point]

    @property
    def n_trials(self) -> int:
        """Trainings in all."""
        return len(self.points) if self.sweep.sampler == "grid" or not len(self.space) else self.sweep.n_trials

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.base.run.folder).absolute() / "sweeps" / self.sweep.name

    def is_baseline(self, place: int | None) -> bool:
        """Whether the place is that of the base run."""
        return place == 0 and self.sweep.baseline

    def fixed(self, place: int) -> dict[str, Any] | None:
        """The parameters, as the storage holds them, that a place has from the start."""
        if place >= len(self.points):
            return None
        return self.space.told(self.points[place]) if self.is_baseline(place) else self.space.part_of(self.points[place])

    def outside(self, place: int | None) -> bool:
        """Whether the place's point, the baseline's, is not in the space: then the sampler is not told of it."""
        return self.is_baseline(place) and bool(len(self.space)) and self.space.told(self.base_point) is None

    def candidates(self, point: Point) -> list[Point]:
        """The decode-time settings that a trained model is scored with."""
        if len(self.decode):
            return self.decode.candidates()
        measured = any(name.startswith("generation/") for name in self.sweep.objectives)
        return [{key: value for key, value in point.items() if decode_time(key)}] if measured else []

    def config(self, point: Point, *more: str) -> RunConfig:
        """The settings of a run at a point; raises ConfigError."""
        kept = [word for word in self.words if word.lstrip("+").partition("=")[0] not in point]
        return compose_config([*kept, *(f"{key}={override_text(value)}" for key, value in point.items()), *more])

    def trial_words(self, name: str, threads: int | None) -> list[str]:
        """Where a trial is, and what of the machine it has."""
        words = [f"run.study={self.sweep.name}", f"run.name={self.sweep.name}", f"run.id={name}", "resume=auto"]
        words += [f"trainer.devices={self.sweep.devices_per_trial}"]
        return words + ([f"trainer.threads={threads}"] if threads else [])

    def asked(self) -> dict[str, Any]:
        """What a study is held to: all that makes its trials comparable."""
        s = self.sweep
        base = {k: v for k, v in flat(comparable(self.base)).items() if not beneath(k, (*NO_MATTER, "trainer.devices"))}
        base |= {"devices_per_trial": s.devices_per_trial}
        judged = {"objective": s.objectives, "direction": s.directions, "constraints": dict(s.constraints)}
        decode = [s.decode_objective, s.decode_direction, s.decode_rows, s.decode_tokens] if len(self.decode) else []
        asked = {"space": self.space.as_asked(), "decode": self.decode.as_asked(), "decode_by": decode, **judged,
                 "warm_start": s.warm_start, "base": base}  # fmt: skip
        return json.loads(json.dumps(asked))


def read_plan(words: list[str]) -> Plan:
    """The plan of the study that the words ask for; raises ConfigError."""
    storage = [word.partition("=")[2] for word in words if word.startswith("sweep.storage=")]  # a URL is no override
    plain, offered = read_overrides([word for word in words if not word.startswith("sweep.storage=")])
    base, sweep, choices = compose_study(plain)
    sweep.storage = storage[-1] if storage else sweep.storage
    typed = {word.lstrip("+").partition("=")[0] for word in plain}
    params = {key: text for key, text in {**sweep.params, **offered}.items() if key not in typed}
    if not params:
        remedy = "Add +sweeps=NAME, or offer values of a key: 'optimizer.lr=interval(1e-4, 1e-2)'"
        raise ConfigError("search space", rule="is empty", remedy=remedy)
    whole = read_space(params)
    space, decode = whole.parts(sweep.joint)
    base_point = {p.key: base_value(p.key, base, choices) for p in space.parameters}
    plan = Plan(words=plain, base=base, sweep=sweep, space=space, decode=decode, base_point=base_point, points=[])
    check_keys(plan, whole)
    check_objectives(plan, whole)
    given = [dict(point) for point in sweep.enqueue] + (space.grid() if sweep.sampler == "grid" else [])
    for point in given:
        space.part_of(point)
    start = [base_point] if sweep.baseline or not len(space) else []
    plan.points.extend([*start, *(point for point in given if point not in start)])
    if plan.n_trials < len(plan.points):
        rule = f"leaves no room for the baseline and the enqueued points, {len(plan.points)} in all"
        raise sweep.refuse("n_trials", rule, f"Set sweep.n_trials={len(plan.points)}")
    return plan


def base_value(key: str, base: RunConfig, choices: dict[str, str]) -> Any:
    """What the base run has for a key: the option of a group, or a setting's value."""
    return choices[key] if key in choices else flat(asdict(base)).get(key)


def beneath(key: str, parents: tuple[str, ...]) -> bool:
    """Whether the key is one of these or lies below one."""
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def check_keys(plan: Plan, whole: Space) -> None:
    """Have every end of every parameter composed; raises ConfigError for what the run itself would refuse."""
    for p in whole.parameters:
        if beneath(p.key, OF_ENGINE):
            raise ConfigError("search space", key=p.key, rule="is the engine's own to set, and cannot be searched")
        beside = dict([p.when]) if p.when else {}
        for value in p.ends():
            try:
                plan.config({**beside, p.key: value})
            except ConfigError as error:
                if group_options(p.key) or error.key == p.key:
                    raise
                rule = f"{override_text(value)} is refused: {error}"
                raise ConfigError("search space", key=p.key, rule=rule) from error


def check_objectives(plan: Plan, whole: Space) -> None:
    """Raise ConfigError for an objective that is not measured, holds a swept penalty, or that no swept key has a part in."""
    s = plan.sweep
    for name in s.objectives:
        if not METRICS.fullmatch(name) or (name.startswith("val/") and name not in list(validated(plan.base))):
            names = ", ".join(validated(plan.base))
            raise s.refuse("objective", f"'{name}' is not measured", f"There are {names}, generation/..., seconds")
        if name in PENALISED and "loss.beta" in {p.key for p in whole.parameters}:
            rule = f"{name} contains the penalty, which loss.beta = 0 makes smallest whatever the model has learnt"
            raise s.refuse("objective", rule, "Set sweep.objective=val/cross_entropy")
    check_influence(plan, whole)
    if s.pruner not in ("none", "halving") and len(s.objectives) > 1:
        raise s.refuse(
            "pruner", "cannot judge several objectives", "Set sweep.pruner=halving, which goes by the first, or none"
        )
    if s.sampler in ("cmaes", "gp") and any(p.when for p in whole.parameters):
        raise s.refuse("sampler", "cannot search a space with conditions", "Set sweep.sampler=tpe")


def check_influence(plan: Plan, whole: Space) -> None:
    """Raise ConfigError where a swept key cannot change any objective."""
    s = plan.sweep
    generated = [name for name in s.objectives if name.startswith("generation/")]
    idle = [p.key for p in plan.space.parameters if decode_time(p.key)]
    if idle and not generated:
        rule = f"{s.objectives[0]} does not depend on {idle[0]}, which has no part in training"
        raise s.refuse("objective", rule, "Set sweep.joint=false, or add an objective such as generation/perplexity_gap")
    if len(plan.decode) and not s.decode_objective.startswith("generation/"):
        rule = f"does not depend on {plan.decode.parameters[0].key}, which has no part in training"
        raise s.refuse("decode_objective", rule, "Set sweep.decode_objective=generation/perplexity_gap")


def validated(base: RunConfig) -> Iterator[str]:
    """The names of the validation's metrics."""
    for name in OF_VALIDATION:
        yield f"val/{name}"
    for corpus in base.data.corpora:
        for name in OF_VALIDATION:
            yield f"val/{corpus}/{name}"


def fingerprint(config: RunConfig) -> str:
    """Equal for runs that train the same."""
    tree = {k: v for k, v in flat(comparable(config)).items() if not beneath(k, ("sampler", *NO_MATTER))}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:32]
