"""One run, read from top to bottom: seed, data, module, trainer, fit, validate, samples, result.

In: a RunConfig. Out: ``outputs/runs/NAME/ID/`` with config.yaml, metrics.jsonl, result.json, samples.txt, checkpoints/ and
tensorboard/, and a summary on the terminal.
"""

import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from gpt2_lightning.checkpoint import (
    checkpoints,
    newest_verified,
    read_manifest,
    set_damaged_aside,
    step_of,
    tidy_checkpoints,
    verify_checkpoint,
)
from gpt2_lightning.config import RunConfig, from_plain
from gpt2_lightning.dashboard import Dashboard
from gpt2_lightning.data.stream import StreamDataModule
from gpt2_lightning.decoder import Decoder
from gpt2_lightning.errors import CheckpointError, MachineError, NumbersError, PlatformError
from gpt2_lightning.folder import RunFolder, find_folder, not_allowed, refuse, write_whole
from gpt2_lightning.keeper import Keeper, Rewind, code_fingerprint, find_rewind
from gpt2_lightning.module import GPT2Module
from gpt2_lightning.pretrained import find_weights, load_weights
from gpt2_lightning.ranks import ATTEMPT, HERE, Line, Meeting, Watch, leave_word
from gpt2_lightning.report.page import duration
from gpt2_lightning.signals import Interrupted, Signals, end_with_parent
from gpt2_lightning.tasks.catalogue import load_task
from gpt2_lightning.trained import find_checkpoint
from gpt2_lightning.trainer import build_trainer, choose_devices, choose_precision, with_ranks
from gpt2_lightning.world import RUN_FOLDER, find_world, own_rank

__all__ = ["train"]

RUN_START = "GPT2_LIGHTNING_START"  # tells the other ranks the checkpoint that rank 0 chose,
RUN_INIT = "GPT2_LIGHTNING_INIT"  # the weights it starts from without one,
RANK_0 = "GPT2_LIGHTNING_RANK_0"  # its process,
RUN_LINE = "GPT2_LIGHTNING_LINE"  # and where that is to be reached while it trains


def train(config: RunConfig, signals: Signals | None = None) -> None:
    """Train as configured, from where the run was; raises PlatformError with what stood in the way."""
    signals, environ = signals or Signals(), dict(os.environ)
    world = find_world(config.trainer)
    meeting = Meeting(world) if world and world.size > 1 else None
    try:
        other_rank(config, signals, meeting) if own_rank(world) else first_rank(config, signals, meeting)
    except Rewind as rewind:
        if not own_rank(world):
            print(f"warning: {rewind}", file=sys.stderr, flush=True)
        if meeting or not own_rank(world):
            again = {ATTEMPT: str(int(environ.get(ATTEMPT, "0")) + 1)}
            os.execve(sys.executable, sys.orig_argv, environ | again)


def first_rank(config: RunConfig, signals: Signals, meeting: Meeting | None) -> None:
    """Rank 0's part: find out what there is to do, tell the others, and do it."""
    try:
        open_run(config, signals, meeting)
    finally:
        if meeting:
            meeting.dismiss()


def open_run(config: RunConfig, signals: Signals, meeting: Meeting | None) -> None:
    """Check everything, open the run's folder, and train unless it is finished."""
    check_machine(config)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    seed_everything(config.seed, verbose=False)
    foreign = foreign_start(config)
    decoder = first_decoder(config, foreign)
    data = open_data(config)
    run = RunFolder(config)
    try:
        said = run.finished(config)
        if said is None:
            train_in(run, choose_start(run, config, foreign), config, data, signals, decoder, meeting)
        else:
            print(said)
    except Rewind:
        raise  # the lock stays: this process goes on as another program
    except BaseException:
        run.lock.release()
        raise
    else:
        run.lock.release()


def train_in(
    run: RunFolder,
    start: Path | None,
    config: RunConfig,
    data: StreamDataModule,
    signals: Signals,
    decoder: Decoder | None = None,
    meeting: Meeting | None = None,
) -> None:
    """Rank 0's part: train from a checkpoint or the beginning, and write what comes of it."""
    run.begin(config)
    place = meeting.world.address if meeting else HERE
    with Watch(run.path, with_ranks(config).trainer.ranks, place, run.lock.release) as watch:
        told = {RUN_FOLDER: str(run.path), RUN_START: str(start or ""), RANK_0: str(os.getpid()), RUN_LINE: watch.place}
        os.environ |= told
        if meeting:
            meeting.tell(told | {RUN_INIT: os.environ.get(RUN_INIT, "")})
        module, dashboard, keeper, trainer = build(run, run.path, start, config, data, signals, decoder)
        fit(trainer, module, data, start, watch, meeting)
    signals.armed = False
    samples = dashboard.finish()
    result = write_result(run.path, module.n_parameters, dashboard, keeper, data.unigram_bits_per_byte())
    print_summary(run.path, config, result, samples)


def other_rank(config: RunConfig, signals: Signals, meeting: Meeting | None) -> None:
    """Another rank's part: it trains along and ends with 0; what stops it alone it leaves for rank 0 to say."""
    if meeting is None:
        end_with_parent(int(os.environ[RANK_0]))
    signals.armed = meeting is None
    rank = meeting.world.rank if meeting else own_rank(None)
    line = come(config, meeting) if meeting else Line(os.environ[RUN_LINE], rank)
    if line is None:
        return
    signals.armed = True
    folder = Path(os.environ[RUN_FOLDER])
    with line:
        try:
            train_along(config, folder, signals, meeting)
        except Rewind:
            raise
        except (Interrupted, NumbersError):
            return  # all ranks meet these together
        except PlatformError as error:
            leave_word(folder, rank, error.status, str(error))
        except Exception:
            leave_word(folder, rank, 1, traceback.format_exc())


def come(config: RunConfig, meeting: Meeting) -> Line | None:
    """Hear what rank 0 has chosen, and say whether this rank can do it; None where there is nothing to do."""
    told = meeting.hear()
    if told is None:
        return None
    os.environ |= told
    line, complaint = None, ""
    try:
        check_machine(config)
        require_folder(Path(told[RUN_FOLDER]))
        line = Line(told[RUN_LINE], meeting.world.rank)
    except PlatformError as error:
        complaint = str(error)
    return line if meeting.is_ready(complaint) else None


def require_folder(folder: Path) -> None:
    """Raise MachineError where the folder that rank 0 has opened is not there."""
    if not (folder / "config.yaml").is_file():
        remedy = "Set run.folder to a folder that all nodes share"
        rule = f"is not there on {socket.gethostname()}, where rank 0 has opened it on its machine"
        raise MachineError("run folder", key="folder", value=str(folder), rule=rule, remedy=remedy)


def train_along(config: RunConfig, folder: Path, signals: Signals, meeting: Meeting | None) -> None:
    """Another rank's training, from where rank 0 has said."""
    start = Path(os.environ[RUN_START]) if os.environ[RUN_START] else None
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    seed_everything(config.seed, verbose=False)
    drawn = config.init is None or start is not None
    decoder = None if drawn else load_weights(Path(os.environ[RUN_INIT]), config.model)
    data = open_data(config)
    module, _, _, trainer = build(None, folder, start, config, data, signals, decoder)
    fit(trainer, module, data, start, None, meeting)


def build(
    run: RunFolder | None,
    folder: Path,
    start: Path | None,
    config: RunConfig,
    data: StreamDataModule,
    signals: Signals,
    decoder: Decoder | None,
) -> tuple[GPT2Module, Dashboard, Keeper, Trainer]:
    """The parts, introduced to each other. The keeper has the settings as they were given, by which a run is found again."""
    whole = with_ranks(config)
    module = GPT2Module(whole, data.names, data.bytes_per_token, data.loss_weights, signals, decoder)
    dashboard = Dashboard(folder, whole, data)
    keeper = Keeper(config, run, folder, dashboard, signals, start.name if start else "")
    return module, dashboard, keeper, build_trainer(whole, folder, [dashboard, keeper])


def choose_start(run: RunFolder, config: RunConfig, foreign: Path | None) -> Path | None:
    """The checkpoint to go on from, said aloud; None for a start from the beginning. Raises CheckpointError."""
    own = run.path / "checkpoints"
    tidy_checkpoints(own)
    start, faults = newest_verified(own)
    for fault in faults:
        print(f"warning: {fault}", file=sys.stderr)
    if faults and start is None:
        remedy = "Set resume=never to begin a new run"
        raise CheckpointError("run", key="folder", value=str(run.path), rule="has no checkpoint that is good", remedy=remedy)
    set_damaged_aside(faults)
    start = start or foreign
    if start is None and config.resume == "must":
        raise CheckpointError("run", key="folder", value=str(run.path), rule="has no checkpoint yet to go on from")
    if start and read_manifest(start)["fingerprints"]["code"] != code_fingerprint():
        print(f"warning: the code has changed since {start.name} was saved", file=sys.stderr)
    begins = "starts from the beginning" if config.init is None else f"starts from the weights of {config.init}"
    place = os.path.relpath(run.path)
    print(f"{place}: " + (f"goes on from {start.name}" if start else begins), file=sys.stderr, flush=True)
    return start


def foreign_start(config: RunConfig) -> Path | None:
    """The checkpoint that ``resume=PATH`` means, verified, where the run has none of its own yet.

    Raises CheckpointError where it is no checkpoint, or one of other settings.
    """
    own = find_folder(config)
    if config.resume in ("auto", "must", "never") or (own and checkpoints(own / "checkpoints")):
        return None
    found = find_checkpoint(Path(config.resume))
    if found is None:
        remedy = "Give auto, must, never, or the folder of a run or checkpoint"
        raise CheckpointError("checkpoint", key="resume", value=config.resume, rule="is no checkpoint", remedy=remedy)
    differ = not_allowed(from_plain(verify_checkpoint(found)["config"]), config)
    differ.pop("resume", None)
    if differ:
        raise refuse(f"checkpoint {found}", differ)
    return found


def first_decoder(config: RunConfig, foreign: Path | None) -> Decoder | None:
    """The decoder that ``init`` means, the other ranks told where; None where there is none, or a checkpoint to go on from.

    Raises ConfigError, CheckpointError, before the run has a folder.
    """
    own = find_folder(config)
    if config.init is None or foreign is not None or (own and checkpoints(own / "checkpoints")):
        return None
    path = find_weights(config.init, config.model)
    os.environ[RUN_INIT] = str(path.absolute())
    return load_weights(path, config.model)


def check_machine(config: RunConfig) -> None:
    """Raise MachineError when the devices or the precision are not to be had."""
    accelerator = choose_devices(config.trainer.accelerator, config.trainer.devices)
    with_ranks(config)
    choose_precision(config.trainer.precision, accelerator)


def open_data(config: RunConfig) -> StreamDataModule:
    """The stream, read far enough to know that it can be trained on; raises DataError."""
    config = with_ranks(config)
    data = StreamDataModule(
        config.data,
        block_size=config.model.block_size,
        seed=config.seed,
        max_steps=config.trainer.max_steps,
        accumulate=config.trainer.accumulate,
        augment=config.augment,
        cache=Path(config.run.folder) / "cache",
        task=load_task(config.task),
    )
    data.setup()
    return data


def fit(
    trainer: Trainer,
    module: GPT2Module,
    data: StreamDataModule,
    start: Path | None = None,
    watch: Watch | None = None,
    meeting: Meeting | None = None,
) -> None:
    """Train from a checkpoint or the beginning; gives a full device its own exit status, and another rank's fault its words."""
    rewind = find_rewind(Path(trainer.default_root_dir), start.name if start else "")
    if rewind is not None:
        data.rewind(rewind)
    if watch is not None:
        watch.launcher = trainer.strategy.launcher
    if meeting is not None:
        meeting.join(trainer.strategy.root_device)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True if start else None)
    except torch.OutOfMemoryError as error:
        size = f"{module.n_parameters:,} parameters, batches of {data.config.batch_size} x {data.block_size} tokens"
        remedy = "Lower data.batch_size and raise trainer.accumulate by the same factor"
        raise MachineError("device memory", rule=f"does not hold {size}", remedy=remedy) from error
    except RuntimeError as error:
        if watch is not None and not isinstance(error, PlatformError):
            watch.speak()
        raise
    finally:
        for warning in data.warnings:
            print(f"warning: {warning}", file=sys.stderr)


def write_result(folder: Path, parameters: int, dashboard: Dashboard, keeper: Keeper, unigram: float) -> dict[str, Any]:
    """Write result.json, which says that the run is finished: the last and the best validation, and what it took."""
    kept = [path for path in checkpoints(folder / "checkpoints") if step_of(path) == keeper.best_step]
    result = {
        "state": "finished",
        "parameters": parameters,
        "steps": keeper.step,
        "tokens": keeper.step * dashboard.tokens_per_step,
        "seconds": round(dashboard.seconds(), 3),
        "last": dashboard.validation,
        "best": keeper.best,
        "best_step": keeper.best_step,
        "skipped_steps": keeper.skipped,
        "unigram_bits_per_byte": unigram,
        "checkpoint": str(kept[0].relative_to(folder)) if kept else None,
    }
    write_whole(folder / "result.json", json.dumps(result, indent=2) + "\n")
    return result


def print_summary(folder: Path, config: RunConfig, result: dict[str, Any], samples: str) -> None:
    """What came out, where it is, and the commands to go on with."""
    best = result["best"]
    place = os.path.relpath(folder)
    values = f"{best['val/cross_entropy']:.4f} nats a token, {best['val/bits_per_byte']:.4f} bits per byte"
    longer = f"trainer.max_steps={2 * config.trainer.max_steps} 'resume_allow=[trainer.max_steps]'"
    shown = "\n".join(f"    {line}" for line in samples.strip().splitlines()[:12])
    print(f"""
best validation  {values}, at step {result["best_step"]}
a unigram model  {result["unigram_bits_per_byte"]:.4f} bits per byte: it knows only how often each token occurs
time             {duration(result["seconds"])} for {result["steps"]:,} steps, {result["tokens"]:,} tokens
folder           {place}

{shown}

go on with
  python -m gpt2_lightning generate run={config.run.name} prompt="To be, or"
  tensorboard --logdir {config.run.folder}
  python -m gpt2_lightning train config={place}/config.yaml run.id={folder.name} {longer}""")
