"""How ranks train together: settings in; a Lightning strategy out, and the environment that Lightning is to see.

DDP: every rank holds all of the model; gradients travel in buckets while the last backward pass of a step goes on, and not
before it. FSDP: every rank holds a part of each parameter, gradient and moment.
One number: 2k + 1 times the gradients' bytes are received by a rank of FSDP for k batches a step, 2 times by one of DDP.
Choice not taken: Lightning's FSDPStrategy, which refuses CPUs.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer

from gpt2_lightning.settings.trainer import TrainerConfig
from gpt2_lightning.shards import load_parts, own_parts_of
from gpt2_lightning.world import World

__all__ = ["Started", "choose_strategy"]

WHOLE = ("row_var", "col_var")  # Adafactor's moments, which every rank has of all rows, be there only one


def choose_strategy(config: TrainerConfig) -> Strategy | str:
    """The strategy of so many ranks."""
    if config.ranks == 1:
        return "auto"
    if config.strategy == "fsdp":
        return Sharded(data_parallel_size=config.ranks, tensor_parallel_size=1)
    # buffers are constant here, and ranks validate unevenly; static_graph gains nothing where every parameter is used
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)


class Sharded(ModelParallelStrategy):
    """fully_shard, with checkpoints that are those of a run of one rank: any number of ranks goes on from them."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """As DDP."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """As DDP."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This rank's part of the weights."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """This rank's part of the optimizer's state."""
        return (optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Leave the gradients of all but a step's last batch whole on each rank, and send none."""
        assert self.lightning_module is not None
        decoder: Any = self.lightning_module.decoder
        decoder.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            decoder.set_requires_gradient_sync(True)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads it."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """All ranks write it, each a part."""
        self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each rank takes its part."""
        assert self.lightning_module is not None
        load_parts(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each rank takes its part."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parts = getattr(optimizer, "parts", None)
            if parts is None:
                optimizer.load_state_dict(divided(state, optimizer))
            else:
                shares = [divided(s, part) for s, part in zip(state["parts"], parts, strict=True)]
                optimizer.load_state_dict({"parts": shares})


def divided(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state with this rank's part of what is as large as its parameter; fused only if this optimizer is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        i: {k: own_parts_of(v, parameters[i]) if isinstance(v, Tensor) and k not in WHOLE else v for k, v in held.items()}
        for i, held in state["state"].items()
    }
    own = [{"fused": group["fused"]} if "fused" in group else {} for group in optimizer.param_groups]
    groups = [{**group, **mine} for group, mine in zip(state["param_groups"], own, strict=True)]
    return {**state, "state": parts, "param_groups": groups}


class Started(ClusterEnvironment):
    """Ranks that others have started, as Lightning wants to see them."""

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning starts nobody."""
        return True

    @property
    def main_address(self) -> str:
        """Where rank 0 is."""
        return self.world.address

    @property
    def main_port(self) -> int:
        """And its port."""
        return self.world.port

    @staticmethod
    def detect() -> bool:
        """It is chosen, never found."""
        return False

    def world_size(self) -> int:
        """All ranks."""
        return self.world.size

    def set_world_size(self, size: int) -> None:
        """It stands."""

    def global_rank(self) -> int:
        """This one's number among all."""
        return self.world.rank

    def set_global_rank(self, rank: int) -> None:
        """It stands."""

    def local_rank(self) -> int:
        """This one's number on its machine."""
        return self.world.local_rank

    def node_rank(self) -> int:
        """Its machine's number."""
        return self.world.rank // self.world.local_size
