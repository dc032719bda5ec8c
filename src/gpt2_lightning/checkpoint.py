"""Checkpoints: plain data in, a file that is either whole or not there out, and back.

One number: 1.5 GB, a checkpoint of the 124M model with AdamW's two moments. Choice not taken: staging in TMPDIR, from where
a move to another file system is a copy, and a kill in the middle of it destroys the good file it replaces.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from gpt2_lightning.decoder import Decoder, DecoderConfig
from gpt2_lightning.errors import CheckpointError, OutputError

__all__ = ["find_run", "load_checkpoint", "load_decoder", "save_checkpoint", "share_checkpoint"]


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write beside the target, flush, rename; raises OutputError with the previous file untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise OutputError("checkpoint", key="file", value=str(path), rule=f"cannot be written: {error}") from error


def share_checkpoint(path: Path, name: str) -> None:
    """Give the file a second name beside it, in one step; later saves under the first name leave the second alone."""
    partial = path.with_name(f".{name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    os.link(path, partial)
    partial.replace(path.with_name(name))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint's data, never executing any of it; raises CheckpointError."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise CheckpointError("checkpoint", key="file", value=str(path), rule="does not exist") from error
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        rule = f"is damaged or no checkpoint of ours: {str(error).splitlines()[0]}"
        raise CheckpointError("checkpoint", key="file", value=str(path), rule=rule) from error


def load_decoder(path: Path) -> tuple[Decoder, dict[str, Any]]:
    """The decoder of a checkpoint, and the run's configuration as plain data."""
    checkpoint = load_checkpoint(path)
    try:
        decoder = Decoder(DecoderConfig(**checkpoint["config"]["model"]))
        weights = {k.removeprefix("decoder."): v for k, v in checkpoint["state_dict"].items() if k.startswith("decoder.")}
        decoder.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        rule = f"does not hold a decoder that fits its settings: {str(error).splitlines()[0]}"
        raise CheckpointError("checkpoint", key="file", value=str(path), rule=rule) from error
    return decoder.eval(), checkpoint["config"]


def find_run(name: str, outputs: Path) -> Path:
    """The checkpoint that ``run=`` means: a file, a run's folder, or a run's name (its newest id); raises CheckpointError."""
    given = Path(name)
    if given.is_file():
        return given
    folders = [given, outputs / "runs" / given, *sorted((outputs / "runs" / given).glob("*"), reverse=True)]
    for folder in folders:
        for file in ("best.ckpt", "last.ckpt"):
            if (folder / "checkpoints" / file).is_file():
                return folder / "checkpoints" / file
    there = sorted({path.parents[2].name for path in outputs.glob("runs/*/*/checkpoints/last.ckpt")})
    remedy = f"There are {', '.join(there)}" if there else f"There are no runs in '{outputs}' yet"
    raise CheckpointError("run", key="run", value=name, rule="has no checkpoint", remedy=remedy)
