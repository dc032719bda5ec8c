"""The command line: ``python -m gpt2_lightning [command] [key=value ...]``.

In: the words a person typed. Out: the command's work, and an exit status that says whose fault a failure is.
One number: help, lists and configuration errors import no torch, which alone would take a second or more.
"""

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2_lightning.errors import ConfigError, OutputError, PlatformError

if TYPE_CHECKING:
    from gpt2_lightning.config import RunConfig
    from gpt2_lightning.variants import Variants

HELP = """usage: python -m gpt2_lightning [command] [key=value ...]

  [train] +experiment=NAME [key=value ...]   train; or from a file: config=RUN/config.yaml, best=STUDY
  [train] +experiment=NAME +sweeps=NAME      search for the best settings; again: go on; elsewhere: join
                                             sweep.n_trials sweep.slots sweep.storage ... 'optimizer.lr=interval(1e-4, 1e-2)'
  data +experiment=NAME [key=value ...]      look at the stream: n (steps), skip, workers, ranks; ends with their digest
  generate run=NAME|PATH prompt="..."        continue a text; prompts=FILE.jsonl [out=FILE.jsonl] many; neither: type them
                                             chat=true: a conversation, the default for runs of task=dialogue
                                             sampler=NAME sampler.KEY=... max_new_tokens n seed stop context numbers step
  evaluate run=NAME|PATH|gpt2 [data=NAME|path=FILE]  perplexity over a sliding window, bits per byte: stride documents limit out
                                             protocol=lambada|hellaswag [path=FILE.jsonl]   last words; endings by likelihood
                                             task=NAME [task.KEY=VALUE ...] [path=FILE]     a task's measures, on its records
  export run=NAME|PATH to=DIR                a folder that transformers loads, with GPT-2's tokenizer [overwrite=true]
  report study=NAME|PATH                     what came out of a study, as a page: HTML, and Markdown with PNGs [out=FOLDER]
  report run=NAME|PATH[,NAME|PATH ...]       a run's curves, samples and settings; of several, side by side
  dashboard study=NAME|run=NAME              TensorBoard and, for a study, Optuna's page, until Ctrl-C [port=6006]
  list [experiment|sweeps|model|optimizer|...]      what there is to choose from
  list runs|studies [sort=age|best|name|size] [name=GLOB] [state=running|finished|unfinished] [n=...]   what there is

  group=OPTION      another file of a group:   optimizer=muon  model=gpt2  schedule=wsd  data=local  debug=overfit
  key=value         another value of a key:    optimizer.lr=3e-4  loss.beta=1e-3  trainer.max_steps=2000
  init=NAME|PATH    start from weights:        gpt2, gpt2-medium, gpt2-large, gpt2-xl, transformers' folder, nanoGPT's ckpt.pt
  trainer=ddp|fsdp  all devices there are, or all ranks of torchrun or srun; trainer.batch_tokens is their global batch
  launch=slurm      as a job of Slurm, a study as sweep.agents=N of them: launch.partition launch.time launch.nodes
                    launch.gpus_per_node launch.account launch.options.NAME ...; dry_run=true shows the script
  launch=ray        a study's trials on a Ray cluster: launch.address=HOST:PORT launch.cpus
  --multirun        try every combination of key=a,b ...: a study of its own, each a run
  --cfg job         show the composed configuration and stop
  traceback=true    show where an error came from

exit status: 0 done, 2 configuration or usage, 3 data, 4 checkpoint, 5 study, 6 non-finite numbers, 7 devices, 8 output or
disk, 130 SIGINT, 141 SIGPIPE, 143 SIGTERM"""

GENERATE = ("run", "prompt", "prompts", "out", "outputs", "sampler", "chat", "accelerator")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    show_trace = "traceback=true" in words
    words = [word for word in words if word != "traceback=true"]
    try:
        command(words)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the reader has seen enough; what is still unwritten must not fail again on leaving
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except PlatformError as error:
        if show_trace:
            traceback.print_exc()
        with suppress(OSError):  # a full disk
            print(f"error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def command(words: list[str]) -> None:
    """Find the command by its first word; ``train`` when that is none."""
    if not words or words[0] in ("-h", "--help", "help") or "--help" in words or "-h" in words:
        print(HELP)
    elif flags := [word for word in words if word.startswith("-")]:
        settings = [word for word in words if word not in ("train", "sweep", *flags)]
        multirun(settings) if set(flags) <= {"--multirun", "-m"} else hydra_flags(words)
    elif words[0] in COMMANDS:
        COMMANDS[words[0]](words[1:])
    elif is_study(words):
        sweep(words)
    elif "=" in words[0]:
        train(words)
    else:
        remedy = f"There are {', '.join(COMMANDS)}; see --help"
        raise ConfigError("command", key="command", value=words[0], rule="no such command", remedy=remedy)


def train(overrides: list[str]) -> None:
    """Check the configuration, then load torch and train."""
    from gpt2_lightning.folder import find_folder, finished
    from gpt2_lightning.signals import Signals
    from gpt2_lightning.world import find_world, may_speak, own_rank

    if is_study(overrides):
        return sweep(overrides)
    try:
        config, launch, dry_run = read_run(overrides)
        check_output(config.run.folder)
        if launch.kind == "slurm":
            from gpt2_lightning.slurm import submit_run

            return submit_run(overrides, config, launch, dry_run)
        if launch.kind == "ray":
            rule, remedy = "is for studies, whose trials it runs", "Add +sweeps=NAME, or take launch=slurm for one run"
            raise ConfigError("launch", key="launch", value="ray", rule=rule, remedy=remedy)
        world = find_world(config.trainer)
    except PlatformError:
        if may_speak():
            raise
        return  # the first of the ranks says it
    signals = Signals()
    signals.armed = world is None and own_rank(world) > 0
    signals.install()
    if world is None and own_rank(world) == 0:
        folder = find_folder(config)
        said = finished(folder, config) if folder else None
        if said is not None:
            print(said)
            return
    from gpt2_lightning import run

    run.train(config, signals)


def read_run(overrides: list[str]) -> "tuple[RunConfig, Any, bool]":
    """The run that the words, a run's own file or a study's best ask for, how to start it, and whether only to show that.

    Raises ConfigError.
    """
    from gpt2_lightning.config import load_config, read_overrides
    from gpt2_lightning.variants import Variants

    check_arguments(overrides)
    given = {key: value for key, _, value in (w.partition("=") for w in overrides) if key in ("config", "best")}
    rest = [word for word in overrides if word.partition("=")[0] not in given]
    if given:
        of_start = [word for word in rest if re.match(r"\+*(launch(\.[^=]*)?|dry_run)=", word)]
        rest = [word for word in rest if word not in of_start]
        return load_config(given_file(given, rest), rest), *read_start(Variants(of_start))
    _, offered = read_overrides(rest)
    if offered:
        key, text = next(iter(offered.items()))
        remedy = "Add +sweeps=NAME or sweep.n_trials=... to search, or --multirun to try them all"
        raise ConfigError("several values", key=key, value=text, rule="is more than a run can have", remedy=remedy)
    variants = Variants(rest)
    return variants.at({}), *read_start(variants)


def given_file(given: dict[str, str], rest: list[str]) -> str:
    """The settings' file that ``config=`` or ``best=`` means; raises ConfigError."""
    if "best" not in given:
        return given["config"]
    from gpt2_lightning.sweep.command import best_file

    outputs = [word.partition("=")[2] for word in rest if word.startswith("run.folder=")]
    return str(best_file(given["best"], *outputs[-1:]))


def read_start(variants: "Variants") -> tuple[Any, bool]:
    """How to start, and whether only to show it; raises ConfigError where there is nothing to show."""
    launch, dry_run = variants.start()
    if dry_run and launch.kind != "slurm":
        remedy = "Add launch=slurm to see its script, or --cfg job to see the configuration"
        raise ConfigError("dry run", key="dry_run", value="true", rule="needs a scheduler to be shown", remedy=remedy)
    return launch, dry_run


def check_arguments(words: list[str]) -> None:
    """Raise ConfigError for a word that sets nothing."""
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError("argument", key="argument", value=word, rule="is no key=value", remedy="See --help")


def is_study(words: list[str]) -> bool:
    """Whether the words ask for a study."""
    return any(word.lstrip("+").startswith(("sweeps=", "sweep.", "hydra.sweeper.")) for word in words)


def sweep(words: list[str]) -> None:
    """Begin a study, go on with it, or join it."""
    check_arguments(words)
    from gpt2_lightning.sweep.command import study
    from gpt2_lightning.sweep.plan import read_plan

    plan = read_plan(words)
    launch, dry_run = read_start(plan.variants)
    if launch.kind == "slurm":
        from gpt2_lightning.slurm import submit_study

        return submit_study(words, plan, launch, dry_run)
    if plan.sweep.agents > 1:
        raise plan.sweep.refuse("agents", "are started by launch=slurm", "Set sweep.slots for more trials at a time here")
    if launch.kind == "ray":
        from gpt2_lightning.sweep.cluster import connect

        return study(plan, *connect(plan, launch))
    study(plan)


def multirun(words: list[str]) -> None:
    """Try every combination of the values that the words offer, as a study."""
    check_arguments(words)
    from gpt2_lightning.sweep.plan import multirun_words

    sweep(multirun_words(words))


def trial(words: list[str]) -> None:
    """A study's own command: one trial, which ends with its agent."""
    from gpt2_lightning.config import load_config
    from gpt2_lightning.signals import Signals, end_with_parent
    from gpt2_lightning.world import own_rank

    given = dict(word.split("=", 1) for word in words)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Slurm says it to the whole job; the agent stops its trials
    other = own_rank(None) > 0
    if "GPT2_LIGHTNING_AGENT" in os.environ and not other:
        end_with_parent(int(os.environ["GPT2_LIGHTNING_AGENT"]))
    signals = Signals()
    signals.armed = other
    signals.install()
    config = load_config(given["config"], [])
    from gpt2_lightning import trial as room

    score, trained = (Path(given[name]) if name in given else None for name in ("score", "trained"))
    room.trial(config, score, trained, signals)


def look_at_data(words: list[str]) -> None:
    """Show what the stream of a run is made of."""
    from gpt2_lightning.config import compose_config

    own = {"n": 40, "skip": 0, "workers": 0, "ranks": 1}
    for word in [word for word in words if word.partition("=")[0] in own]:
        key, _, value = word.partition("=")
        own[key] = whole_number(key, value, at_least=0 if key in ("skip", "workers") else 1)
    config = compose_config([word for word in words if word.partition("=")[0] not in own])
    check_output(config.run.folder)
    from gpt2_lightning.data.look import look

    look(config, **own)


def whole_number(key: str, value: str, at_least: int) -> int:
    """The number a person typed; raises ConfigError."""
    if not value.isdecimal() or int(value) < at_least:
        raise ConfigError(key, key=key, value=value, rule=f"must be an integer, at least {at_least}")
    return int(value)


def check_output(folder: str) -> None:
    """Raise OutputError, before anything heavy is loaded, when the output folder cannot be written."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    if not path.is_dir() or not os.access(path, os.W_OK):
        rule = "cannot be written" if path.is_dir() else f"is not a folder: '{path}' is a file"
        raise OutputError("output folder", key="run.folder", value=folder, rule=rule, remedy="Set run.folder to another one")


def generate(words: list[str]) -> None:
    """Read the keys as plain text, since prompts break the grammar of overrides; check them, and continue the prompts."""
    from gpt2_lightning.generation.prompts import read_prompts
    from gpt2_lightning.settings.generate import GenerateConfig
    from gpt2_lightning.settings.sampler import SamplerConfig
    from gpt2_lightning.settings.setting import read_words

    own, options, changes, stop = sort_words(words, GenerateConfig, SamplerConfig)
    config = GenerateConfig(**read_words(GenerateConfig, options), stop=stop)
    preset = None
    if "sampler" in own:
        from gpt2_lightning.config import option_settings

        preset = option_settings("sampler", own["sampler"])
    settings = read_words(SamplerConfig, changes)
    SamplerConfig(**{**(preset or {}), **settings})
    check_generate(own)
    records = read_prompts(Path(own["prompts"])) if "prompts" in own else None
    from gpt2_lightning.generation.command import Asked, generate_command

    asked = Asked(run=own["run"], prompt=own.get("prompt"), records=records, out=own.get("out", ""),
                  outputs=own.get("outputs", "outputs"), preset=preset, changes=settings,
                  chat=own.get("chat", "auto"), accelerator=own.get("accelerator", "auto"))  # fmt: skip
    generate_command(asked, config)


def sort_words(
    words: list[str], config: type, sampler: type
) -> tuple[dict[str, str], dict[str, str], dict[str, str], list[str]]:
    """The words of generate by whose they are: its own, GenerateConfig's, the sampler's, stop strings; raises ConfigError."""
    from dataclasses import fields
    from difflib import get_close_matches

    own: dict[str, str] = {}
    options: dict[str, str] = {}
    changes: dict[str, str] = {}
    stop: list[str] = []
    names, of_sampler = ({f.name for f in fields(settings)} for settings in (config, sampler))
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key == "stop":
            stop.append(value)
        elif equals and key in GENERATE:
            own[key] = value
        elif equals and key in names:
            options[key] = value
        elif equals and key.startswith("sampler.") and key.removeprefix("sampler.") in of_sampler:
            changes[key.removeprefix("sampler.")] = value
        else:
            known = [*GENERATE, *sorted(names), *(f"sampler.{name}" for name in sorted(of_sampler))]
            near = get_close_matches(key, known, n=1, cutoff=0.5) if equals else []
            remedy = f"Did you mean {near[0]}?" if near else f"The keys are {', '.join(known)}"
            raise ConfigError("argument of generate", key="argument", value=word, rule="is not known", remedy=remedy)
    return own, options, changes, stop


def check_generate(own: dict[str, str]) -> None:
    """Hold the rules of generate's own keys; raises ConfigError."""
    if not own.get("run"):
        raise ConfigError("run", key="run", value="", rule="must be given", remedy="Set run=NAME")
    if "prompt" in own and "prompts" in own:
        raise ConfigError("prompts", key="prompts", value=own["prompts"], rule="excludes prompt", remedy="Give one of the two")
    for key, choices in (("chat", ("auto", "true", "false")), ("accelerator", ("auto", "cpu", "gpu"))):
        if own.get(key, "auto") not in choices:
            raise ConfigError(key, key=key, value=own[key], rule=f"must be one of {', '.join(choices)}")
    if own.get("chat") == "true" and "prompts" in own:
        raise ConfigError("chat", key="chat", value="true", rule="excludes prompts", remedy="Give one of the two")
    if "out" in own and "prompts" not in own:
        raise ConfigError(
            "out", key="out", value=own["out"], rule="is for prompts=FILE.jsonl", remedy="For one prompt use > FILE"
        )
    if "out" in own:
        check_file(own["out"])
    try:
        own.get("prompt", "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError("prompt", key="prompt", value=ascii(own["prompt"]), rule="is not valid UTF-8") from error


def evaluate(words: list[str]) -> None:
    """Judge a decoder by a protocol."""
    from gpt2_lightning.settings.evaluate import EvaluateConfig
    from gpt2_lightning.settings.setting import field_names, own_words, read_words

    of_task = [word for word in words if word.startswith("task.")]
    own = own_words(field_names(EvaluateConfig), [word for word in words if word not in of_task], "evaluate")
    config = EvaluateConfig(**read_words(EvaluateConfig, own))
    if of_task and config.task is None:
        raise config.refuse("task", "is none, and its settings are given", "Set task=NAME")
    if config.out is not None:
        check_file(config.out)
    from gpt2_lightning.evaluation.command import evaluate as judge

    judge(config, of_task)


def export(words: list[str]) -> None:
    """Write a run's weights as a folder that transformers loads."""
    from gpt2_lightning.settings.export import ExportConfig
    from gpt2_lightning.settings.setting import field_names, own_words, read_words

    config = ExportConfig(**read_words(ExportConfig, own_words(field_names(ExportConfig), words, "export")))
    from gpt2_lightning.export import export as write

    write(config)


def check_file(out: str) -> None:
    """Raise OutputError where no file of that name can be written."""
    there = os.access(out, os.F_OK)
    if not out or (there and Path(out).is_dir()) or not os.access(out if there else Path(out).absolute().parent, os.W_OK):
        raise OutputError("output", key="out", value=out, rule="cannot be written", remedy="Give the file another name")


def write_report(words: list[str]) -> None:
    """Write what a run or a study says of itself."""
    from gpt2_lightning.report.command import report

    report(words)


def serve_pages(words: list[str]) -> None:
    """Serve the pages of a study, a run, or all there is, until Ctrl-C."""
    from gpt2_lightning.servers import dashboard

    dashboard(words)


def list_options(words: list[str]) -> None:
    """Print the runs or studies there are, or the options of the groups, each with its first comment line."""
    if words and words[0] in ("runs", "studies"):
        from gpt2_lightning.report.listing import list_outputs

        return list_outputs(words)
    from gpt2_lightning.config import config_folder, group_options

    groups = sorted(folder.name for folder in config_folder().iterdir() if folder.is_dir())
    groups = ["experiment", "sweeps", *(name for name in groups if name != "experiment")]
    asked = [word.removesuffix("s") if word != "sweeps" else word for word in words] or groups
    for group in asked:
        if group not in groups:
            raise ConfigError(
                "group", key="list", value=group, rule="no such group", remedy=f"There are runs, studies, {', '.join(groups)}"
            )
        print(f"{group}")
        for name, comment in group_options(group).items() or {"(none)": ""}.items():
            print(f"  {name:24} {comment}")


def hydra_flags(words: list[str]) -> None:
    """Hand flags such as --cfg and --info to Hydra itself."""
    from gpt2_lightning.flags import show_with_hydra

    show_with_hydra([word for word in words if word not in ("train", "sweep")])


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "sweep": sweep,
    "trial": trial,
    "data": look_at_data,
    "generate": generate,
    "evaluate": evaluate,
    "export": export,
    "report": write_report,
    "dashboard": serve_pages,
    "list": list_options,
}


def console() -> None:
    """The ``gpt2-lightning`` script."""
    sys.exit(main())


if __name__ == "__main__":
    console()
