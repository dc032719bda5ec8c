"""The configuration of a run: overrides in, a checked RunConfig out, or one line that says what is wrong.

Hydra composes ``conf/`` (ours, and that of the folder the command is started in); the dataclasses of ``settings`` close
the schema and hold the ranges; the rules between parts are here. Imports no torch: an error costs a fraction of a second.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from gpt2_lightning.errors import UNSET, ConfigError, first_line
from gpt2_lightning.settings.augment import AugmentConfig
from gpt2_lightning.settings.data import TOKENIZERS, DataConfig
from gpt2_lightning.settings.decoder import DecoderConfig
from gpt2_lightning.settings.launch import LAUNCHERS, LaunchConfig
from gpt2_lightning.settings.loss import LossConfig
from gpt2_lightning.settings.optimizer import OPTIMIZERS, OptimizerConfig, ScheduleConfig
from gpt2_lightning.settings.pretrained import RELEASED, require_fit
from gpt2_lightning.settings.sampler import SamplerConfig
from gpt2_lightning.settings.setting import Settings, flat, setting
from gpt2_lightning.settings.sweep import SweepConfig
from gpt2_lightning.settings.task import TaskConfig
from gpt2_lightning.settings.trainer import BoardConfig, CheckpointConfig, RunSettings, SamplesConfig, TrainerConfig

__all__ = [
    "RunConfig", "build", "comparable", "compose_config", "compose_study", "compose_words", "config_folder", "differences",
    "explained", "from_plain", "group_options", "in_order", "instantiate", "load_config", "name_run", "option_settings",
    "parse_override", "read_overrides", "register_schema", "search_path", "take_storage", "to_yaml",
]  # fmt: skip

CHANGEABLE = (  # read anew at every step or start; all else is in the weights, the optimizer's state or the order of the data
    "optimizer.lr", "schedule", "loss.beta", "model.dropout", "trainer", "checkpoint", "samples", "board", "sampler",
    "data.workers", "data.batch_size", "data.val_batches", "data.accept_changes", "resume",
    "task.eval_records", "task.shown", "task.beams", "task.max_new_tokens", "task.head",
)  # fmt: skip
FREE = r"\+*(sweep\.(params|constraints|sampler_options|pruner_options)|launch\.options)\b"
LAYERS = ("experiment", "sweeps", "debug")  # files that change many groups: later ones win


@dataclass(kw_only=True, slots=True)
class RunConfig(Settings):
    """Everything a run depends on."""

    seed: int = setting(1337, "seed", at_least=0, at_most=2**32 - 1)
    resume: str = setting("auto", "what to go on from: auto, must, never, or a checkpoint's or run's folder")
    init: str | None = setting(None, "weights to start from (none: drawn): gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a path")
    resume_allow: list[str] = setting([], "keys that may differ from those the run was begun with")
    run: RunSettings = field(default_factory=RunSettings)
    model: DecoderConfig = field(default_factory=DecoderConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = MISSING
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    data: DataConfig = MISSING
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    board: BoardConfig = field(default_factory=BoardConfig)

    def check_rules(self) -> None:
        """The rules between parts."""
        words = TOKENIZERS[self.data.tokenizer]
        if self.model.vocab_size != words:
            rule = f"differs from the {words} words of data.tokenizer={self.data.tokenizer}"
            raise self.model.refuse("vocab_size", rule, f"Set model.vocab_size={words}")
        if self.data.synthetic is not None and self.model.block_size < 4:
            raise self.model.refuse("block_size", f"must be at least 4 for data.synthetic={self.data.synthetic}")
        if self.sampler.k is not None and self.sampler.k > self.model.vocab_size:
            raise self.sampler.refuse("k", f"must be at most the vocabulary, model.vocab_size = {self.model.vocab_size}")
        if self.init is not None and self.init in RELEASED:
            require_fit(self.init, self.model, RELEASED[self.init].shape)
        self.task.check_beside(self.data, self.model)
        if self.trainer.nodes and self.trainer.devices:
            self.trainer.accumulation(self.data.batch_size, self.model.block_size, self.trainer.ranks)
        for key in self.resume_allow:
            if not any(key == may or key.startswith(f"{may}.") for may in CHANGEABLE):
                rule = f"'{key}' may not change within a run"
                raise self.refuse("resume_allow", rule, f"These may: {', '.join(CHANGEABLE)}")


@dataclass(kw_only=True, slots=True)
class Composed(RunConfig):
    """What Hydra composes: a run, the study that it may be a trial of, and how it is started or only shown."""

    sweep: SweepConfig = field(default_factory=SweepConfig)
    launch: LaunchConfig = MISSING
    dry_run: bool = False


def config_folder() -> Path:
    """The folder ``conf/``: inside the installed package, or at the top of the repository."""
    here = Path(__file__).resolve().parent
    return here / "conf" if (here / "conf").is_dir() else here.parents[1] / "conf"


def search_folders() -> list[Path]:
    """Where config files are looked for, in order: ours, our ``sweeps/``, and those of the current folder."""
    return list(dict.fromkeys([config_folder(), config_folder().parent, Path.cwd() / "conf", Path.cwd()]))


def group_options(group: str) -> dict[str, str]:
    """The options of a config group, each with the first comment line of its file."""
    found: dict[str, str] = {}
    for folder in search_folders():
        for file in sorted((folder / group).glob("*.yaml")):
            lines = file.read_text(encoding="utf-8").splitlines()
            comments = [line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line]
            found.setdefault(file.stem, comments[0] if comments else "")
    return found


def option_settings(group: str, name: str) -> dict[str, Any]:
    """What the file of an option sets; raises ConfigError for an option that is not there."""
    files = [folder / group / f"{name}.yaml" for folder in search_folders()]
    found = [file for file in files if name in group_options(group) and file.is_file()]
    if not found:
        raise no_such_option(group, name, group_options(group))
    return dict(OmegaConf.to_container(OmegaConf.load(found[0])) or {})  # type: ignore[arg-type]


def register_schema() -> None:
    """Tell Hydra the types; optimizers and launchers are groups of types."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Composed)
    for name, settings in OPTIMIZERS.items():
        store.store(group="optimizer", name=f"{name}_settings", node=settings)
    for name, launch in LAUNCHERS.items():
        store.store(group="launch", name=f"{name}_settings", node=launch)


def compose_config(overrides: list[str]) -> RunConfig:
    """The run that the overrides ask for; raises ConfigError."""
    overrides = in_order(overrides)
    with explained(overrides):
        return instantiate(name_run(compose_words(overrides), overrides))


def compose_study(overrides: list[str]) -> tuple[RunConfig, SweepConfig, dict[str, str]]:
    """The run that trials depart from, the study, and which option of each group the run has; raises ConfigError.

    What is written for other sweepers under ``hydra.sweeper`` is taken as if it stood under ``sweep``.
    """
    overrides = in_order(overrides)
    with explained(overrides):
        composed = compose_words(overrides, with_hydra=True)
        with open_dict(composed):
            hydra = composed.pop("hydra")
        for key, name in {"params": "params", "n_trials": "n_trials", "direction": "direction", "n_jobs": "slots"}.items():
            if hydra.sweeper.get(key) is not None:
                composed.sweep[name] = hydra.sweeper[key]
        config = instantiate(name_run(composed, overrides))
        names = [text.split("=", 1)[1] for text in overrides if text.startswith("+sweeps=")]
        if composed.sweep.name == "auto":
            composed.sweep.name = names[-1] if names else config.run.name
        return config, build(composed.sweep), dict(hydra.runtime.choices)


@contextmanager
def explained(words: list[str]) -> Iterator[None]:
    """Raise in one line what Hydra and OmegaConf refuse."""
    try:
        yield
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, YAMLError, OSError) as error:
        raise explain(words, error) from error


def take_storage(words: list[str]) -> tuple[list[str], str | None]:
    """The words without ``sweep.storage``, and what that is: a URL is no override, and its password is composed nowhere."""
    mine = [word for word in words if re.match(r"\+*sweep\.storage=", word)]
    return [word for word in words if word not in mine], mine[-1].partition("=")[2].strip("'\"") if mine else None


def read_overrides(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """The words that fix a value, and the text by key of those that offer several; raises ConfigError."""
    plain, offered = [], {}
    for word in words:
        key, _, text = word.lstrip("+").partition("=")
        of_space = re.fullmatch(r"(?:hydra\.sweeper|sweep)\.params\.(.+)", key)
        if of_space or (key not in ("sweeps", "debug") and offers(word)):
            offered[of_space[1] if of_space else key] = text
        else:
            plain.append(word)
    return plain, offered


def offers(word: str) -> bool:
    """Whether a word offers several values; of what is no override, composing says what is wrong."""
    try:
        return parse_override(word).is_sweep_override()
    except HydraException:
        return False


def parse_override(word: str) -> Override:
    """Hydra's reading of a word, and of a choice() with a null in it, which Hydra itself takes in ``a,null`` only."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        choice = re.fullmatch(r"([^=]+=)\s*choice\((.*\bnull\b.*)\)\s*", word, re.DOTALL)
        if not choice:
            raise
        return OverridesParser.create().parse_override(choice[1] + choice[2])


def load_config(path: str, overrides: list[str]) -> RunConfig:
    """A run's own config.yaml, with changes to single keys; raises ConfigError."""
    changes = [change.lstrip("+") for change in overrides]
    for key, _, value in (change.partition("=") for change in changes):
        if key in LAYERS or group_options(key):
            rule = f"is a file, and the settings of '{path}' are whole already"
            remedy = "Set single keys, such as trainer.max_steps=100"
            raise ConfigError("setting", key=key, value=value, rule=rule, remedy=remedy)
    try:
        return complete(OmegaConf.load(path), OmegaConf.from_dotlist(changes))
    except OmegaConfBaseException as error:
        raise ConfigError("configuration", key="config", value=path, rule=first_line(error)) from error
    except (OSError, YAMLError, KeyError, AssertionError) as error:
        raise ConfigError("configuration", key="config", value=path, rule=f"cannot be read: {error}") from error


def differences(then: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The keys in which two runs differ and both values; where they lie and what they go on from by themselves do not count."""
    a, b = (flat(comparable(config)) for config in (then, now))
    return {key: (a.get(key, "none"), b.get(key, "none")) for key in sorted({*a, *b}) if a.get(key) != b.get(key)}


def comparable(config: RunConfig) -> dict[str, Any]:
    """A run's settings without those that say only where it is and how it was started."""
    tree = asdict(config)
    del tree["run"], tree["resume_allow"]
    if tree["resume"] in ("auto", "must", "never"):
        del tree["resume"]
    return tree


def from_plain(tree: dict[str, Any]) -> RunConfig:
    """The RunConfig of plain data, as a checkpoint holds it; keys it lacks have their defaults. Raises ConfigError."""
    return changed(tree, [])


def changed(tree: dict[str, Any], words: list[str]) -> RunConfig:
    """The RunConfig of plain data with changes to single keys; raises ConfigError."""
    try:
        return complete(OmegaConf.create(tree), OmegaConf.from_dotlist(words))
    except (KeyError, OmegaConfBaseException) as error:
        raise ConfigError("configuration", rule=first_line(error)) from error


def complete(loaded: Any, *changes: DictConfig) -> RunConfig:
    """The RunConfig of what was loaded, its gaps filled with defaults, then changed."""
    assert isinstance(loaded, DictConfig)
    schema = OmegaConf.structured(RunConfig)
    schema.optimizer = OPTIMIZERS[str(OmegaConf.select(loaded, "optimizer.name"))]()
    try:
        merged = OmegaConf.merge(schema, loaded, *changes)
    except ConfigKeyError as error:
        key = str(error.full_key)
        typed = [OmegaConf.select(change, key) for change in changes]
        raise no_such_key(key, typed[-1] if typed else UNSET, list(leaf_keys(schema))) from error
    return instantiate(merged)  # type: ignore[arg-type]


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration; ``load_config`` reads it back."""
    return "".join(part_yaml(json.dumps({name: part})) for name, part in asdict(config).items())


@lru_cache(maxsize=256)
def part_yaml(part: str) -> str:
    """A part of it, given as JSON. Writing YAML takes long, and a study's trials have most of their parts in common."""
    return OmegaConf.to_yaml(OmegaConf.create(json.loads(part)))


def in_order(overrides: list[str]) -> list[str]:
    """Write experiment, sweeps and debug as additions, last and in that order, so that what a person types wins over files.

    What goes into mappings of free keys is an addition too: Hydra asks for it.
    """
    plain = [text.lstrip("+") if text.lstrip("+").split("=")[0] in LAYERS else text for text in overrides]
    plain = [f"++{text.lstrip('+')}" if re.match(FREE, text) else text for text in plain]
    layers = [f"+{text}" for layer in LAYERS for text in plain if text.split("=")[0] == layer]
    return [text for text in plain if text.split("=")[0] not in LAYERS] + layers


def compose_words(overrides: list[str], with_hydra: bool = False) -> DictConfig:
    """Compose with Hydra, adding the current folder's ``conf/`` to the places it looks in."""
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("config", [*overrides, search_path()], return_hydra_config=with_hydra)


def search_path() -> str:
    """The override that has Hydra look in our ``sweeps/`` and the current folder too."""
    places = ",".join(f'"file://{folder}"' for folder in search_folders()[1:] if folder.is_dir())
    return f"hydra.searchpath=[{places}]"


def name_run(composed: DictConfig, overrides: list[str]) -> DictConfig:
    """A run is named after its experiment unless it is given a name."""
    if composed.run.name == "auto":
        names = [text.split("=", 1)[1] for text in overrides if text.startswith("+experiment=")]
        composed.run.name = names[-1] if names else "run"
    return composed


def instantiate(composed: DictConfig) -> RunConfig:
    """Build the dataclasses, which checks their ranges and the rules between them; raises ConfigError."""
    for key in unknown_keys(composed):
        raise no_such_key(key, OmegaConf.select(composed, key), list(leaf_keys(composed)))
    return RunConfig(**{f.name: build(composed[f.name]) for f in fields(RunConfig)})


def build(node: Any) -> Any:
    """The dataclass or plain value of a node. OmegaConf's own ``to_object`` rewrites the messages of our errors."""
    settings = OmegaConf.get_type(node)
    if OmegaConf.is_dict(node):
        values = {key: build(node[key]) for key in node}
        return settings(**values) if is_dataclass(settings) else values
    return OmegaConf.to_container(node) if OmegaConf.is_list(node) else node


def unknown_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys that the settings of their part do not have: Hydra lets ``+`` add them."""
    settings = OmegaConf.get_type(node)
    names = {f.name for f in fields(settings)} if is_dataclass(settings) else None
    for key in node:
        if names is not None and key not in names:
            yield f"{prefix}{key}"
        elif not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            yield from unknown_keys(node[key], f"{prefix}{key}.")


def leaf_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values."""
    for key in node:
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]) and len(node[key]):
            yield from leaf_keys(node[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def explain(overrides: list[str], error: Exception) -> ConfigError:
    """The one line for what Hydra or OmegaConf refused: the option or key that is not there, the type, or the file's fault."""
    for text in overrides:
        key, _, value = text.lstrip("+~").partition("=")
        options = group_options(key.split("@")[0])
        if (options or key in LAYERS) and value not in options:
            return no_such_option(key, value, options)
    for cause in causes(error):
        if isinstance(cause, MarkedYAMLError) and cause.problem_mark:
            place = f"{cause.problem_mark.name}:{cause.problem_mark.line + 1}"
            return ConfigError("config file", key="file", value=place, rule=str(cause.problem))
    for cause in causes(error):
        key = str(getattr(cause, "full_key", None) or "")
        if key and isinstance(cause, ConfigKeyError | ConfigAttributeError):
            return no_such_key(key, typed_value(overrides, key), default_keys(overrides), place_of(error))
        if key:
            what = f"setting{place_of(error)}"
            return ConfigError(what, key=key, value=typed_value(overrides, key), rule=first_line(cause))
    if re.search("Lexer|token recognition|mismatched input|no viable alternative|extraneous input", first_line(error)):
        remedy = "Quote what has blanks, commas or brackets: 'key=\"value\"'"
        return ConfigError("override", rule=first_line(error), remedy=remedy)
    return ConfigError(first_line(error))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def place_of(error: Exception) -> str:
    """`` in FILE`` where Hydra says in which file the fault is."""
    found = re.match(r"In '([^']+)'", str(error))
    return f" in {found[1]}.yaml" if found and found[1] != "config" else ""


def typed_value(overrides: list[str], key: str) -> Any:
    """What the person typed for a key; UNSET when it came from a file."""
    return next((text.partition("=")[2] for text in reversed(overrides) if text.lstrip("+~").partition("=")[0] == key), UNSET)


def default_keys(overrides: list[str]) -> list[str]:
    """All keys of the run, had no single value been overridden."""
    groups = [text for text in overrides if "+" not in text and group_options(text.partition("=")[0])]
    try:
        return list(leaf_keys(compose_words(groups)))
    except (HydraException, OmegaConfBaseException):  # the fault is in one of their files
        return list(leaf_keys(compose_words([])))


def no_such_option(group: str, value: str, options: dict[str, str]) -> ConfigError:
    """The error for a file of a group that does not exist: the names there are, the closest first."""
    near = sorted(options, key=lambda name: (not name.startswith(value), -SequenceMatcher(None, value, name).ratio()))
    remedy = f"There are {', '.join(near)}" if near else "There are none"
    return ConfigError(group, key=group, value=value, rule=f"no such {group}", remedy=remedy)


def no_such_key(key: str, value: Any, keys: list[str], place: str = "") -> ConfigError:
    """The error for a key that no setting has."""
    near = get_close_matches(key, [k for k in keys if k != key], n=1, cutoff=0.5)
    last = [k for k in keys if k != key and k.rpartition(".")[2] == key.rpartition(".")[2]]
    guess = (last or near or [""])[0]
    kinds = [kind for kind, has in LAUNCHERS.items() if key.removeprefix("launch.") in {f.name for f in fields(has)}]
    if key.startswith("launch.") and kinds:
        guess = f"{key} with launch={kinds[0]}"
    remedy = f"Did you mean {guess}?" if guess else "The keys are those of config.yaml in any run's folder"
    return ConfigError(f"unknown key{place}", key=key, value=value, rule="no setting has this name", remedy=remedy)
