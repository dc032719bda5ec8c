"""What has been trained: the name of a run in; the checkpoint that is meant, and its decoder, out.

One number: 1 checkpoint of a run is meant by its name, that of its best validation. Choice not taken: a registry of runs, which
could differ from the folders that are there.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2_lightning.checkpoint import MANIFEST, checkpoints, damaged, load_weights, read_manifest, step_of, verify_checkpoint
from gpt2_lightning.decoder import Decoder, DecoderConfig
from gpt2_lightning.errors import CheckpointError, first_line

__all__ = ["best_checkpoint", "find_checkpoint", "find_run", "load_decoder"]


def best_checkpoint(parent: Path) -> Path | None:
    """The checkpoint with the best validation as far as the newest one knows, else the newest; None where there is none."""
    for folder in checkpoints(parent):
        try:
            best = read_manifest(folder)["best_step"]
        except CheckpointError:
            continue
        return next((path for path in checkpoints(parent) if step_of(path) == best), folder)
    return None


def load_decoder(path: Path) -> tuple[Decoder, dict[str, Any]]:
    """The decoder of a checkpoint, verified, and the run's configuration as plain data; raises CheckpointError."""
    folder = path if path.is_dir() else path.parent
    config = verify_checkpoint(folder)["config"]
    try:
        decoder = Decoder(DecoderConfig(**config["model"]))
        decoder.load_state_dict(load_weights(folder))
    except (KeyError, TypeError, RuntimeError) as error:
        raise damaged(folder, f"does not hold a decoder that fits its settings: {first_line(error)}") from error
    return decoder.eval(), config


def find_checkpoint(path: Path) -> Path | None:
    """The checkpoint meant by a path: its folder, a file in it, or a run's folder, whose best it is."""
    if path.is_file():
        return path.parent
    return path if (path / MANIFEST).is_file() else best_checkpoint(path / "checkpoints")


def find_run(name: str, outputs: Path) -> Path:
    """The checkpoint that ``run=`` means: its folder, a run's folder, or a run's name (newest id); raises CheckpointError."""
    given = Path(name)
    for path in candidates(given, outputs):
        found = find_checkpoint(path)
        if found is not None:
            return found
    there = sorted({path.parents[2].name for path in outputs.glob("runs/*/*/checkpoints/step-*")})
    remedy = f"There are {', '.join(there)}" if there else f"There are no runs in '{outputs}' yet"
    raise CheckpointError("run", key="run", value=name, rule="has no checkpoint", remedy=remedy)


def candidates(given: Path, outputs: Path) -> Iterator[Path]:
    """Where a run of that name may be, likeliest first."""
    yield given
    yield outputs / "runs" / given
    yield from sorted((outputs / "runs" / given).glob("[!.]*"), reverse=True)
