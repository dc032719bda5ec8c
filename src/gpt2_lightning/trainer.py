"""The trainer: a RunConfig in, a Lightning Trainer out that does what the settings say and nothing else.

Lightning's own loggers, progress bar, checkpoints and model summary are off: each has its place in ``dashboard`` and here.
"""

import ctypes
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from gpt2_lightning.checkpoint import load_checkpoint, save_checkpoint, share_checkpoint
from gpt2_lightning.config import RunConfig
from gpt2_lightning.errors import MachineError, NumbersError
from gpt2_lightning.module import GPT2Module
from gpt2_lightning.processor import processor_flags

__all__ = ["KeepBest", "WholeFiles", "build_trainer", "choose_devices"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
FAST_BF16 = {"avx512_bf16", "amx_bf16"}  # processor flags


class WholeFiles(CheckpointIO):
    """Lightning's checkpoints through ours: whole or not there, and never executed on loading."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one file."""
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read one file."""
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete one file."""
        Path(path).unlink(missing_ok=True)


class KeepBest(Callback):
    """After every validation: save the last, keep the best, and stop when ``patience`` validations brought no better."""

    def __init__(self, folder: Path, save: bool, patience: int | None) -> None:
        self.folder, self.save, self.patience = folder, save, patience
        self.best: dict[str, float] = {}
        self.best_step = self.waited = 0

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Compare by ``val/cross_entropy``; raises NumbersError when it is not finite."""
        assert isinstance(module, GPT2Module)
        value = module.validation["val/cross_entropy"]
        if not value < float("inf"):
            raise NumbersError(
                "validation", key="val/cross_entropy", value=value, rule=f"is not finite at step {trainer.global_step}"
            )
        better = not self.best or value < self.best["val/cross_entropy"]
        self.waited = 0 if better else self.waited + 1
        if better:
            self.best, self.best_step = dict(module.validation), trainer.global_step
        if self.save:
            self.write(trainer, better)
        trainer.should_stop = trainer.should_stop or (self.patience is not None and self.waited >= self.patience)

    def write(self, trainer: Trainer, better: bool) -> None:
        """Save ``last.ckpt``; the best one is the same file under a second name."""
        last = self.folder / "last.ckpt"
        trainer.save_checkpoint(last)
        if better and trainer.is_global_zero:
            share_checkpoint(last, "best.ckpt")


def build_trainer(config: RunConfig, folder: Path, callbacks: list[Callback]) -> Trainer:
    """The Lightning Trainer of a run; raises MachineError when the devices are not there."""
    quieten()
    t = config.trainer
    accelerator = choose_devices(t.accelerator, t.devices)
    if accelerator == "cpu":
        keep_freed_memory()
    return Trainer(
        accelerator=accelerator,
        devices=t.devices,
        strategy=DDPStrategy(broadcast_buffers=False)
        if t.devices > 1
        else "auto",  # ours are constant, and ranks validate unevenly
        precision=choose_precision(t.precision, accelerator),  # type: ignore[arg-type]
        max_epochs=-1,
        max_steps=t.max_steps,
        accumulate_grad_batches=t.accumulate,
        val_check_interval=min(t.val_every, t.max_steps) * t.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[WholeFiles()],
        callbacks=callbacks,
        default_root_dir=folder,
    )


def choose_devices(accelerator: str, devices: int) -> str:
    """``gpu`` or ``cpu``; raises MachineError with what was asked for and what there is."""
    gpus = torch.cuda.device_count()
    chosen = accelerator if accelerator != "auto" else "gpu" if gpus else "cpu"
    if chosen == "gpu" and devices > gpus:
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
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for message in (".*does not have many workers.*", ".*`IterableDataset` has `__len__` defined.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message)
