"""Lightning's checkpoints through ours: what its trainer has of a run in, a folder out, by one rank or all; and back.

One number: 1 tensor at a time is gathered from a sharded model, by all ranks, for the one that writes it. Choice not taken:
a slice of each tensor in each rank's file, which nobody else could read as the weights of a model.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from gpt2_lightning.checkpoint import Team, load_checkpoint, remove_folder, save_checkpoint, sound
from gpt2_lightning.errors import first_line
from gpt2_lightning.shards import allotted

__all__ = ["Folders", "Ranks"]


class Folders(CheckpointIO):
    """A folder a checkpoint, never executed on loading; a ``team`` saves it together, each rank a part of a sharded model."""

    def __init__(self, accumulate: int = 1) -> None:
        self.accumulate, self.team = accumulate, Team()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save below ``path``. Lightning's loops are left out: ``load_checkpoint`` makes them from the number of steps."""
        del checkpoint["loops"]
        facts, rank, ranks = checkpoint.pop("facts"), self.team.rank, self.team.size
        whole, weights = allotted(checkpoint.pop("state_dict"), rank, ranks)
        if rank == 0:
            weights |= {name: w for name, w in whole.items() if isinstance(w, Tensor)}
        weights = {name.removeprefix("decoder."): w for name, w in weights.items()}
        state, parts = allotted(checkpoint, rank, ranks, "shard:")
        save_checkpoint(Path(path), state, weights, facts, parts, self.team)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """One checkpoint as Lightning wants it; raises CheckpointError."""
        state, weights = load_checkpoint(Path(path))
        loops = {"fit_loop": progress(state["global_step"], self.accumulate)}
        return state | {"loops": loops, "state_dict": {f"decoder.{name}": w for name, w in weights.items()}}

    def remove_checkpoint(self, path: Any) -> None:
        """Delete one checkpoint."""
        remove_folder(Path(path))


class Ranks(Team):
    """The ranks of a group, which tells on the CPU."""

    def __init__(self, group: Any) -> None:
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)

    def lead(self, do: Callable[[], Any]) -> Any:
        """Have rank 0 do it: its result on every rank; OSError on every rank where it failed."""
        return self.each(do if self.rank == 0 else lambda: None)[0]

    def each(self, do: Callable[[], Any]) -> list[Any]:
        """Have every rank do it: all results on every rank; OSError on every rank where one failed."""
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, attempt(do), group=self.group)
        for rank, (_, failure) in enumerate(told):
            if failure:
                raise OSError(f"{failure} [rank {rank}]")
        return [result for result, _ in told]


def attempt(do: Callable[[], Any]) -> tuple[Any, str]:
    """The result, or the reason why there is none."""
    try:
        return sound(do), ""
    except OSError as error:
        return None, first_line(error)


def progress(steps: int, accumulate: int) -> dict[str, Any]:
    """The state of Lightning's loops behind so many whole optimizer steps, within their first and only epoch."""
    batches, epoch = steps * accumulate, {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    done = dict.fromkeys(("ready", "started", "processed", "completed"), batches)
    taken = {"total": {"ready": steps, "completed": steps}, "current": {"ready": steps, "completed": steps}}
    return {
        "epoch_progress": {"total": epoch, "current": dict(epoch)},
        "epoch_loop.batch_progress": {"total": done, "current": dict(done), "is_last_batch": False},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {
                "step": taken,
                "zero_grad": {"total": {**taken["total"], "started": steps}, "current": {**taken["current"], "started": steps}},
            }
        },
    }
