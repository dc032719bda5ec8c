"""The trainer: a RunConfig in, a Lightning Trainer out that does what the settings say and nothing else.

Lightning's own loggers, progress bar, validation, checkpoints and model summary are off: each has its place in ``dashboard``
and ``keeper``.
"""

import ctypes
import logging
import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, Trainer

from gpt2_lightning.checkpoint_io import Folders
from gpt2_lightning.config import RunConfig
from gpt2_lightning.errors import MachineError
from gpt2_lightning.processor import processor_flags
from gpt2_lightning.strategy import Started, choose_strategy
from gpt2_lightning.world import GPU_SHARE, find_world

__all__ = ["build_trainer", "choose_devices", "choose_precision", "with_ranks"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
FAST_BF16 = {"avx512_bf16", "amx_bf16"}  # processor flags


def build_trainer(config: RunConfig, folder: Path, callbacks: list[Callback]) -> Trainer:
    """The Lightning Trainer of a run; raises MachineError when the devices are not there."""
    quieten()
    t, world = config.trainer, find_world(config.trainer)
    accelerator = choose_devices(t.accelerator, t.devices)
    if accelerator == "cpu":
        keep_freed_memory()
    else:
        keep_to_share(float(os.environ.get(GPU_SHARE, "1")), range(t.devices or 1))
    return Trainer(
        accelerator=accelerator,
        devices=t.devices or 1,
        num_nodes=t.nodes or 1,
        strategy=choose_strategy(t),
        precision=choose_precision(t.precision, accelerator),  # type: ignore[arg-type]
        max_epochs=-1,
        max_steps=-1,  # the keeper validates, and says when it is over
        accumulate_grad_batches=t.accumulate,
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[Folders(t.accumulate), Started(world) if world else LightningEnvironment()],
        callbacks=callbacks,
        default_root_dir=folder,
    )


def with_ranks(config: RunConfig) -> RunConfig:
    """The settings with as many nodes, devices and batches a step as follow from what there is.

    Raises MachineError, and ConfigError where the tokens of a step are no multiple of those of a batch on each rank.
    """
    t, world = config.trainer, find_world(config.trainer)
    gpus = torch.cuda.device_count() if t.accelerator != "cpu" else 0
    devices = t.devices or (world.local_size if world else max(1, gpus))
    nodes = t.nodes or (world.nodes if world else 1)
    accumulate = t.accumulation(config.data.batch_size, config.model.block_size, nodes * devices)
    return replace(config, trainer=replace(t, devices=devices, nodes=nodes, accumulate=accumulate, batch_tokens=None))


def choose_devices(accelerator: str, devices: int | None) -> str:
    """``gpu`` or ``cpu``; raises MachineError with what was asked for and what there is."""
    gpus = torch.cuda.device_count()
    chosen = accelerator if accelerator != "auto" else "gpu" if gpus else "cpu"
    if chosen == "gpu" and (devices or 1) > gpus:
        remedy = "Set trainer.accelerator=cpu" if not gpus else f"Set trainer.devices={gpus}"
        rule = f"{devices} GPU asked for, {gpus} available to torch {torch.__version__}"
        raise MachineError("devices", key="trainer.devices", value=devices, rule=rule, remedy=remedy)
    return chosen


def choose_precision(precision: str, accelerator: str) -> str:
    """The precision asked for; ``auto`` means bf16-mixed where matrix products in it are fast. Raises MachineError."""
    cuda_bf16 = accelerator == "gpu" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        return "bf16-mixed" if cuda_bf16 or (accelerator == "cpu" and processor_flags() & FAST_BF16) else "32-true"
    supported = ["32-true", "bf16-mixed", "bf16-true"] if accelerator == "cpu" or cuda_bf16 else ["32-true", "16-mixed"]
    supported += ["16-mixed"] if cuda_bf16 else []
    if precision not in supported:
        rule = f"is not supported on this {accelerator}, which supports {', '.join(supported)}"
        raise MachineError("precision", key="trainer.precision", value=precision, rule=rule)
    return precision


def keep_to_share(share: float, devices: Iterable[int]) -> None:
    """Let this process have no more of its GPUs' memory than its share, so that trials beside it do not run out of theirs."""
    for device in devices if share < 1 else ():
        torch.cuda.set_per_process_memory_fraction(share, device)


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free instead of giving each back to the kernel, whose zeroed pages have to be made again.

    On two cores at 124M that is a third of a bf16 step and a twelfth of a float32 one, for an eighth more memory at the peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**30)


def quieten() -> None:
    """Silence what Lightning says about choices that are made here on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(`broadcast_buffers`|functional.all_gather) is deprecated.*")
    for message in (
        ".*does not have many workers.*",
        ".*`IterableDataset` has `__len__` defined.*",
        ".*LeafSpec.*",
        ".*`srun` command is available.*",  # a run starts its own ranks
        ".*dataloader is not resumable.*",
        ".*`srun` command is available.*",
    ):
        warnings.filterwarnings("ignore", message)
