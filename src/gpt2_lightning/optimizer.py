"""Optimizers and schedules: an OptimizerConfig and a decoder in, a torch optimizer out; a step in, a factor out.

One number: fused AdamW takes a fourth to a seventh of the time of torch's default loop on a CPU, so fused is the default
wherever torch has it. Choice not taken: torch's LRScheduler, whose state would have to be saved; a schedule here is a pure
function of the step.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, Adam, AdamW, Optimizer

from gpt2_lightning.settings.optimizer import (
    AdafactorConfig,
    AdamConfig,
    AdamWConfig,
    MuonConfig,
    OptimizerConfig,
    ScheduleConfig,
    SGDConfig,
)
from gpt2_lightning.shards import is_sharded, own_part, own_rows, shared_out, sum_of_parts

__all__ = ["build_optimizer", "decay_groups", "schedule_factor", "set_learning_rate"]

Groups = list[dict[str, Any]]


def build_optimizer(config: OptimizerConfig, decoder: nn.Module, fused: bool = True) -> Optimizer:
    """The configured optimizer over the decoder's trainable parameters.

    ``fused=False`` is for float16 with a gradient scaler, where a fused step would unscale after the clipping.
    """
    groups, sharded = decay_groups(decoder, config.weight_decay, config.decay_all), any(map(is_sharded, decoder.parameters()))
    match config:
        case MuonConfig():
            return Muon(config, decoder, fused)
        case AdamWConfig():
            return AdamW(groups, lr=config.lr, betas=pair(config.betas), eps=config.eps, fused=fused)
        case AdamConfig():
            return Adam(groups, lr=config.lr, betas=pair(config.betas), eps=config.eps, fused=fused)
        case AdafactorConfig():
            kind = ShardedAdafactor if sharded else Adafactor
            return kind(groups, lr=config.lr, beta2_decay=config.beta2_decay, d=config.clip_threshold)
        case SGDConfig():
            fused = fused and not sharded  # torch has no fused SGD of sharded tensors
            return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
    raise TypeError(f"no optimizer for {type(config).__name__}")


def pair(betas: list[float]) -> tuple[float, float]:
    """Config files know lists only."""
    return betas[0], betas[1]


def decay_groups(decoder: nn.Module, weight_decay: float, decay_all: bool = False) -> Groups:
    """Two groups: the blocks' matrices, which decay, and norms, biases and embeddings, which do not unless asked."""
    named = [(name, p) for name, p in decoder.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if decay_all or is_matrix(name, p)]
    others = [p for name, p in named if not (decay_all or is_matrix(name, p))]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is a linear map of a block, not an embedding (wte, wpe)."""
    return parameter.ndim == 2 and "wte" not in name and "wpe" not in name


class Muon(Optimizer):
    """torch's Muon for the blocks' matrices and AdamW for the rest, as one optimizer with one learning rate.

    Muon's update is scaled to the root mean square of AdamW's (Liu et al. 2025), so the same rate serves both.
    """

    def __init__(self, config: MuonConfig, decoder: nn.Module, fused: bool = True) -> None:
        named = [(name, p) for name, p in decoder.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if is_matrix(name, p)]
        kind = ShardedMuon if any(map(is_sharded, matrices)) else torch.optim.Muon
        muon = kind(
            matrices,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            ns_steps=config.newton_schulz_steps,
            adjust_lr_fn="match_rms_adamw",
        )
        rest = [{"params": [p for name, p in named if not is_matrix(name, p)], "weight_decay": 0.0}]
        if config.decay_all:
            rest[0]["weight_decay"] = config.weight_decay
        self.parts = [muon, AdamW(rest, lr=config.lr, betas=pair(config.betas), eps=config.eps, fused=fused)]
        super().__init__([group for part in self.parts for group in part.param_groups], {"lr": config.lr})
        self.join()

    def join(self) -> None:
        """Show the parts' groups and state as this optimizer's own."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state.clear()
        for part in self.parts:
            self.state.update(part.state)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of both; the closure is called once."""
        loss = evaluated(closure)
        for part in self.parts:
            part.step()
        self.state.update({p: s for part in self.parts for p, s in part.state.items()})
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both parts, by position."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of state_dict."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.join()


class ShardedMuon(torch.optim.Muon):
    """torch's Muon of matrices of which each rank holds rows, with its state; each matrix is orthogonalised on one rank.

    As many at a time as there are ranks, of about one size, so that no rank waits long (as Ahn et al. 2025 share it out).
    Choice not taken: torch's own of DTensors, which gathers in every product, and rounds sums over ranks to bfloat16.
    """

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step; all ranks call it together."""
        for group in self.param_groups:
            held = sorted((p for p in group["params"] if p.grad is not None), key=Tensor.numel)
            ranks = held[0].device_mesh.size() if held else 1  # type: ignore[attr-defined]
            for i in range(0, len(held), ranks):
                some = held[i : i + ranks]
                changes = shared_out(partial(muon_change, group), [self.momentum(p, group["momentum"]) for p in some])
                for p, change in zip(some, changes, strict=True):
                    own_part(p).mul_(1 - group["lr"] * group["weight_decay"]).add_(change)

    def momentum(self, p: Tensor, factor: float) -> Tensor:
        """This rank's part of the matrix to orthogonalise: the gradient and Nesterov's momentum."""
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        return p.grad.lerp(state["momentum_buffer"].lerp_(p.grad, 1 - factor), factor)


def muon_change(group: dict[str, Any], matrix: Tensor) -> Tensor:
    """What torch's Muon adds to a parameter for a matrix that has its momentum: its step from 0."""
    p = nn.Parameter(torch.zeros_like(matrix))
    p.grad = matrix
    torch.optim.Muon([group | {"params": [p], "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}]).step()
    return p.detach()


class ShardedAdafactor(Adafactor):
    """torch's Adafactor, which fails on DTensors: a rank holds rows of a parameter, and the moments of rows and columns whole.

    It asks the ranks for two sums a step and group, of all parameters together.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; all ranks call it together."""
        loss = evaluated(closure)
        for group in self.param_groups:
            if held := [p for p in group["params"] if p.grad is not None]:
                self.change(held, group)
        return loss

    def change(self, held: list[Tensor], group: dict[str, Any]) -> None:
        """Step the parameters of a group, each in proportion to its root mean square, updates above the threshold cut to it."""
        own = [squares(p) for p in held]
        sums = sum_of_parts(torch.cat(own), held).split([len(s) for s in own])
        updates = [self.update(p, of_p, group["beta2_decay"]) for p, of_p in zip(held, sums, strict=True)]
        sizes = sum_of_parts(torch.stack([u.float().square().sum() for u in updates]), held)
        for p, update, of_p, size in zip(held, updates, sums, sizes, strict=True):
            rate = min(group["lr"], float(self.state[p]["step"]) ** -0.5)
            scale, excess = (of_p[0] / p.numel()).sqrt(), (size / p.numel()).sqrt() / group["d"]
            factor = rate * scale.clamp(min=group["eps"][1]) / excess.clamp(min=1)
            own_part(p).mul_(1 - group["lr"] * group["weight_decay"]).sub_(update * factor.to(p.dtype))

    def update(self, p: Tensor, sums: Tensor, beta2_decay: float) -> Tensor:
        """This rank's part of the gradient over the root of its second moment, which takes the new squares in."""
        assert p.grad is not None
        state, eps = self.state[p], torch.finfo(p.dtype).eps
        if not state:
            state["step"], zeros = torch.tensor(0.0), own_part(p).new_zeros
            moments = {"row_var": zeros(p.shape[0], 1), "col_var": zeros(1, p.shape[-1])}
            state |= {"variance": torch.zeros_like(p)} if p.ndim == 1 else moments
        state["step"] += 1
        share = float(state["step"]) ** beta2_decay
        if p.ndim == 1:
            moment = own_part(state["variance"].lerp_(p.grad * p.grad, share))
        else:
            rows, columns = sums[1:].to(p.dtype).split(list(p.shape))
            row = state["row_var"].lerp_(rows[:, None] / p.shape[1], share)
            column = state["col_var"].lerp_(columns[None] / p.shape[0], share)
            moment = row[own_rows(p)] @ column / row.mean().clamp(min=eps)
        return own_part(p.grad) * moment.clamp(min=eps * eps).rsqrt()


def squares(p: Tensor) -> Tensor:
    """This rank's sum of the parameter's squares, and of a matrix its gradient's by row, 0 for others' rows, and by column."""
    assert p.grad is not None
    found = [own_part(p).float().square().sum()[None]]
    if p.ndim > 1:
        of_gradient, rows = own_part(p.grad).float().square(), found[0].new_zeros(p.shape[0])
        rows[own_rows(p)] = of_gradient.sum(1)
        found += [rows, of_gradient.sum(0)]
    return torch.cat(found)


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """The loss that a step is called with, and its gradients; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def schedule_factor(step: int, config: ScheduleConfig, max_steps: int) -> float:
    """The factor on the learning rate at ``step`` = 0, 1, ..., max_steps - 1.

    Rises linearly over ``warmup_steps`` (never 0), reaches 1, and falls to ``final_factor`` at the last step: along a
    half cosine (Loshchilov and Hutter 2017), a line, or, for warm-up, stable, decay (Hu et al. 2024), a line at the end.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    start = config.warmup_steps
    if config.shape == "wsd":
        start = max(start, max_steps - round(config.decay_share * max_steps))
    if config.shape == "constant" or step < start:
        return 1.0
    done = min(1.0, (step - start) / max(1, max_steps - 1 - start))
    fall = 0.5 * (1 + math.cos(math.pi * done)) if config.shape == "cosine" else 1 - done
    return config.final_factor + (1 - config.final_factor) * fall


def set_learning_rate(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Give every group the rate of this step."""
    for group in groups:
        group["lr"] = lr
