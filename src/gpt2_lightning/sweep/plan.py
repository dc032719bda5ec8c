"""The plan of a study: the words a person typed in; the base run, the space, the points that are given, each trial's settings
out.

Everything that can be wrong with a study is found here, before its first trial, without torch.
One number: 2 settings are composed for each interval of the space, its ends; of a choice, all.
Choice not taken: the trial's settings as overrides on the child's command line, which would read the files anew, as they are by
then.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from gpt2_lightning.config import RunConfig, comparable, compose_study, group_options, read_overrides, take_storage
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.settings.setting import flat
from gpt2_lightning.settings.sweep import SweepConfig
from gpt2_lightning.sweep.proposals import build_pruner, build_sampler
from gpt2_lightning.sweep.space import Point, Space, decode_time, override_text, read_space
from gpt2_lightning.tasks.catalogue import load_task
from gpt2_lightning.variants import Variants

__all__ = ["Plan", "fingerprint", "multirun_words", "read_plan"]

OF_ENGINE = ("run", "resume", "resume_allow", "sweep", "hydra", "launch", "dry_run", "trainer.devices", "trainer.accelerator",
             "trainer.threads")  # fmt: skip
PENALISED = ("train/loss", "train/penalty")
OF_VALIDATION = ("cross_entropy", "perplexity", "bits_per_byte", "accuracy")
OF_GENERATION = ("perplexity_gap", "perplexity", "distinct_1", "distinct_2", "distinct_3", "repetition", "self_bleu", "zipf",
                 "entropy", "sampled_entropy", "length")  # fmt: skip
OF_RUN = ("train/loss", "train/penalty", "train/cross_entropy", "optimizer/gradient_norm", "optimizer/parameter_norm",
          "optimizer/update_norm", "speed/tokens_per_second", "speed/peak_memory", "seconds")  # fmt: skip
OF_MACHINE = ("speed/", "seconds")
NO_MATTER = ("trainer.threads", "trainer.log_every", "data.workers", "checkpoint", "samples", "board", "trainer.profile")
OF_WHOLE = ("cmaes", "gp", "qmc")  # samplers of spaces in which every key is always asked for
NAMED = 6  # metrics that are named where one is not measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A study as it was asked for. ``words``: as they were typed, without a storage's URL; ``points``: what the first places
    are given.
    """

    words: list[str]
    variants: Variants
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

    @property
    def marks(self) -> tuple[int, int]:
        """Where a trial's first and last reports stand, in what reports are counted in."""
        c, n = self.base, self.sweep.devices_per_trial
        rows = c.trainer.step_rows(c.data.batch_size, c.model.block_size, n)
        unit = rows * c.model.block_size if self.sweep.report_by == "tokens" else 1
        return c.trainer.val_every * unit, c.trainer.max_steps * unit

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
        return self.is_baseline(place) and self.space.told(self.base_point) is None

    def candidates(self, point: Point) -> list[Point]:
        """The decode-time settings that a trained model is scored with."""
        if found := self.decode.candidates():
            return found
        measured = any(name.startswith("generation/") for name in self.sweep.objectives)
        return [{key: value for key, value in point.items() if decode_time(key)}] if measured else []

    def of_trial(self, name: str, threads: int | None) -> dict[str, Any]:
        """The settings that say where a trial is, and what of the machine it has."""
        own: dict[str, Any] = {"run.study": self.sweep.name, "run.name": self.sweep.name, "run.id": name, "resume": "auto"}
        own |= {"trainer.devices": self.sweep.devices_per_trial}
        return own | ({"trainer.threads": threads} if threads else {})

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
    words, storage = take_storage(words)
    plain, offered = read_overrides(words)
    base, sweep, choices = compose_study(plain)
    sweep.storage = storage or sweep.storage
    typed = dict(word.lstrip("+").split("=", 1) for word in plain if "=" in word)
    whole = read_space(settled({**sweep.params, **offered}, typed))
    space, decode = whole.parts(sweep.joint)
    base_point: Point = {}
    settings = flat(asdict(base)) | choices
    for p in space.parameters:
        if p.called_for(base_point):
            base_point[p.key] = settings.get(p.key)
    given = [dict(point) for point in sweep.enqueue] + (space.grid() if sweep.sampler == "grid" else [])
    start = [base_point] if sweep.baseline or not len(space) else []
    points = [*start, *(point for point in given if point not in start)]
    plan = Plan(words=words, variants=Variants(plain), base=base, sweep=sweep, space=space, decode=decode,
                base_point=base_point, points=points)  # fmt: skip
    check(plan, whole, given)
    return plan


def multirun_words(words: list[str]) -> list[str]:
    """A plain multirun as a study: the grid of the values offered, each a run to its end, under a name made of the words.

    Words that ask for a search are a study's as they stand.
    """
    plain, offered = read_overrides(take_storage(words)[0])
    keys = {word.lstrip("+").partition("=")[0] for word in plain}
    if not offered or keys & {"sweeps", "sweep.sampler", "sweep.n_trials", "hydra.sweeper.n_trials"}:
        return words
    asked = sorted(word for word in words if not word.lstrip("+").startswith("sweep."))
    name = f"multirun-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]}"
    return ["sweep.sampler=grid", "sweep.baseline=false", "sweep.pruner=none", f"sweep.name={name}", *words]


def settled(params: Mapping[str, Any], typed: Mapping[str, str]) -> dict[str, Any]:
    """The space without the keys that were given a value, and without conditions on them; raises ConfigError if it is empty."""
    found: dict[str, Any] = {}
    for key, given in params.items():
        if isinstance(given, Mapping) and given:
            waits = [(*str(condition).partition("=")[::2], text) for condition, text in given.items()]
            held = [text for other, value, text in waits if typed.get(other) == value]
            given = (
                held[0] if held else {f"{other}={value}": text for other, value, text in waits if other not in typed} or None
            )
            if given is None:
                continue
        if key not in typed:
            found[key] = given
    if not found:
        remedy = "Add +sweeps=NAME, or offer values of a key: 'optimizer.lr=interval(1e-4, 1e-2)'"
        raise ConfigError("search space", rule="is empty", remedy=remedy)
    return found


def beneath(key: str, parents: tuple[str, ...]) -> bool:
    """Whether the key is one of these or lies below one."""
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def check(plan: Plan, whole: Space, given: list[Point]) -> None:
    """Raise ConfigError for a study that cannot be run, or cannot be right."""
    check_keys(plan, whole)
    check_objectives(plan, whole)
    check_influence(plan)
    check_proposals(plan)
    for point in given:
        plan.space.part_of(point)
    if plan.n_trials < len(plan.points):
        rule = f"leaves no room for the baseline and the enqueued points, {len(plan.points)} in all"
        raise plan.sweep.refuse("n_trials", rule, f"Set sweep.n_trials={len(plan.points)}")
    plan.decode.candidates()


def check_keys(plan: Plan, whole: Space) -> None:
    """Have every end of every parameter composed; raises ConfigError for what the run itself would refuse."""
    for p in whole.parameters:
        if beneath(p.key, OF_ENGINE):
            raise ConfigError("search space", key=p.key, rule="is the engine's own to set, and cannot be searched")
        beside = dict([p.when]) if p.when else {}
        for value in p.ends():
            try:
                plan.variants.at({**beside, p.key: value})
            except ConfigError as error:
                if group_options(p.key) or error.key == p.key:
                    raise
                rule = f"{override_text(value)} is refused: {error}"
                raise ConfigError("search space", key=p.key, rule=rule) from error


def measured(base: RunConfig) -> list[str]:
    """The names of all that a trial can be judged by."""
    names = [f"val/{name}" for name in OF_VALIDATION]
    names += [f"val/{corpus}/{name}" for corpus in base.data.corpora for name in OF_VALIDATION]
    names += [f"task/{name}" for name in load_task(base.task).measures]
    return [*names, *(f"generation/{name}" for name in OF_GENERATION), *OF_RUN]


def check_objectives(plan: Plan, whole: Space) -> None:
    """Raise ConfigError for an objective that is not measured, or holds a swept penalty."""
    s, names = plan.sweep, measured(plan.base)
    of_decoding = [name for name in names if name.startswith("generation/")]
    asked = [("objective", name, names) for name in s.objectives] + [("decode_objective", s.decode_objective, of_decoding)]
    for setting, name, known in asked:
        if name not in known:
            near = sorted(known, key=lambda one: -SequenceMatcher(None, name, one).ratio())
            raise s.refuse(setting, f"'{name}' is not measured", f"Nearest are {', '.join(near[:NAMED])}")
        if name in PENALISED and any(p.key in ("loss", "loss.beta") for p in whole.parameters):
            rule = f"{name} contains the penalty, which loss.beta = 0 makes smallest whatever the model has learnt"
            raise s.refuse(setting, rule, "Set sweep.objective=val/cross_entropy")


def check_influence(plan: Plan) -> None:
    """Raise ConfigError where a swept key cannot change any objective."""
    s = plan.sweep
    generated = any(name.startswith("generation/") for name in s.objectives)
    timed = any(name.startswith(OF_MACHINE) for name in s.objectives)
    for p in plan.space.parameters:
        if decode_time(p.key) and not generated:
            rule = f"{s.objectives[0]} does not depend on {p.key}, which has no part in training"
            raise s.refuse("objective", rule, "Set sweep.joint=false, or add an objective such as generation/perplexity_gap")
        if beneath(p.key, NO_MATTER) and not timed:
            rule = f"{s.objectives[0]} does not depend on {p.key}, which changes nothing that is learnt"
            raise s.refuse("objective", rule, f"Leave {p.key} out, or set sweep.objective=seconds")


def check_proposals(plan: Plan) -> None:
    """Raise ConfigError where the sampler or the pruner cannot do what is asked."""
    s, several = plan.sweep, len(plan.sweep.objectives) > 1
    if several and s.pruner not in ("none", "halving"):
        remedy = "Set sweep.pruner=halving, which goes by the first, or none"
        raise s.refuse("pruner", "cannot judge several objectives", remedy)
    if several and s.sampler == "cmaes":
        raise s.refuse("sampler", "cannot search for several objectives", "Set sweep.sampler=tpe or nsga2")
    if s.sampler in OF_WHOLE and any(p.when for p in plan.space.parameters):
        raise s.refuse("sampler", "cannot search a space with conditions", "Set sweep.sampler=tpe")
    build_sampler(s, 0)
    build_pruner(s, *plan.marks)


def fingerprint(config: RunConfig) -> str:
    """Equal for runs that train the same."""
    tree = {k: v for k, v in flat(comparable(config)).items() if not beneath(k, ("sampler", *NO_MATTER))}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:32]
