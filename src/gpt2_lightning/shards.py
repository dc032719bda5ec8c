"""Sharded parameters: a decoder in; one of which every rank holds a part (FSDP, Zhao et al. 2023), out; and back.

A shard is a DTensor. What has to be known of all parts together is asked for here, and by all ranks at once; tensors that
are not sharded pass through.
One number: 2 all-gathers of a block's weights for each batch, 1 reduce-scatter of its gradients a step. Choice not taken:
the norms and products of DTensors themselves, which gather what a sum over the ranks answers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

__all__ = [
    "allotted", "gathered", "is_sharded", "own_part", "own_parts_of", "own_rows", "shard", "shared_out", "sum_of_parts",
    "undivided",
]  # fmt: skip


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is one rank's part of it."""
    return hasattr(tensor, "to_local")


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part, which shares its memory; a tensor that is whole, itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def sum_of_parts(value: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """The sum over the ranks of what each has found of its parts of ``tensors``; the value itself where they are whole."""
    if not is_sharded(tensors[0]):
        return value
    total = value.clone()
    dist.all_reduce(total, group=tensors[0].device_mesh.get_group())  # type: ignore[attr-defined]
    return total


def rows_of_ranks(tensor: Tensor) -> list[int]:
    """How many rows of a sharded tensor each rank holds: as torch.chunk divides them, the last ones fewer or none."""
    ranks, n = tensor.device_mesh.size(), tensor.shape[0]  # type: ignore[attr-defined]
    most = -(-n // ranks)
    return [max(0, min(most, n - rank * most)) for rank in range(ranks)]


def own_rows(tensor: Tensor) -> slice:
    """Which rows of a sharded tensor are this rank's."""
    rank, rows = tensor.device_mesh.get_local_rank(), rows_of_ranks(tensor)  # type: ignore[attr-defined]
    return slice(sum(rows[:rank]), sum(rows[: rank + 1]))


def shared_out(do: Callable[[Tensor], Tensor], matrices: Sequence[Tensor]) -> list[Tensor]:
    """This rank's part of ``do(matrix)``, which is of the same shape, for sharded matrices, no more of them than ranks.

    Rank i alone makes the i-th whole and does it: all ranks work at once, and each receives one matrix, and its parts back.
    """
    mesh, parts = matrices[0].device_mesh, [own_part(m) for m in matrices]  # type: ignore[attr-defined]
    rank, group = mesh.get_local_rank(), mesh.get_group()
    there = [part.numel() for part in parts] + [0] * (mesh.size() - len(parts))
    here = [n * matrices[rank].shape[1] for n in rows_of_ranks(matrices[rank])] if rank < len(parts) else [0] * mesh.size()
    sent, whole = torch.cat([part.flatten() for part in parts]), parts[0].new_empty(sum(here))
    dist.all_to_all_single(whole, sent, here, there, group=group)
    if rank < len(parts):
        whole = do(whole.view(matrices[rank].shape)).flatten()
    dist.all_to_all_single(sent, whole, there, here, group=group)
    return [done.view_as(part) for done, part in zip(sent.split(there[: len(parts)]), parts, strict=True)]


def shard(decoder: nn.Module, blocks: Sequence[nn.Module], mesh: Any, compiled: bool = False) -> None:
    """Leave each rank its part of every parameter; the blocks are gathered one at a time, the rest once a batch."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in blocks:
        if compiled:
            block.forward = torch.compile(block.forward)  # type: ignore[assignment]  # FSDP's hooks stay outside
        fully_shard(block, mesh=mesh)
    fully_shard(decoder, mesh=mesh)
    register_fsdp_forward_method(decoder, "hidden")


def gathered(weights: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The same weights whole, on the CPU; ``keep=False`` takes part and keeps none of them."""
    return {name: whole for name, w in weights.items() if (whole := gather(w, keep)) is not None}


def gather(tensor: Tensor, keep: bool) -> Tensor | None:
    """One tensor, whole, on the CPU; None where it is not to be kept."""
    if not is_sharded(tensor):
        return tensor
    whole = undivided(tensor)
    return whole.cpu() if keep else None


def undivided(tensor: Tensor) -> Tensor:
    """One tensor, whole on every rank, which all call together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def allotted(tree: Any, rank: int, ranks: int, prefix: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Nested dicts and lists with a name for each sharded tensor, and those of them, whole, that this rank is to save.

    A name is the prefix and the way to it. All ranks take part. Each tensor goes to the rank that has the fewest bytes so far,
    so that none has more than its share and one tensor.
    """
    bytes_of, own = [0] * ranks, {}

    def walk(node: Any, name: str) -> Any:
        if isinstance(node, dict):
            return {key: walk(value, f"{name}/{key}" if name else f"{key}") for key, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(walk(value, f"{name}/{i}") for i, value in enumerate(node))
        if not isinstance(node, Tensor) or not is_sharded(node):
            return node
        owner = bytes_of.index(min(bytes_of))
        bytes_of[owner] += node.nbytes
        whole = gather(node, owner == rank)
        if whole is not None:
            own[name] = whole
        return name

    return walk(tree, prefix), own


def own_parts_of(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of what every rank has whole, divided as ``like``; all of it where that is whole or of another shape."""
    if not is_sharded(like) or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(whole.to(like.device, like.dtype), mesh, placements, src_data_rank=None)


@torch.no_grad()
def load_parts(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Fill a module's parameters, sharded or not, from whole tensors; raises RuntimeError for other names or shapes."""
    own = module.state_dict()
    if own.keys() != weights.keys():
        raise RuntimeError(f"other parameters: {', '.join(sorted(own.keys() ^ weights.keys()))}")
    for name, tensor in own.items():
        own_part(tensor).copy_(own_part(own_parts_of(weights[name], tensor)))
