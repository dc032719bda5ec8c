"""Optimizers and schedules: an OptimizerConfig and a decoder in, a torch optimizer out; a step in, a factor out.

One number: fused AdamW takes a fourth to a seventh of the time of torch's default loop on a CPU, so fused is the default
wherever torch has it. Choice not taken: torch's LRScheduler, whose state would have to be saved; a schedule here is a pure
function of the step.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
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
from gpt2_lightning.shards import is_sharded

__all__ = ["build_optimizer", "decay_groups", "schedule_factor", "set_learning_rate"]

Groups = list[dict[str, Any]]


def build_optimizer(config: OptimizerConfig, decoder: nn.Module, fused: bool = True) -> Optimizer:
    """The configured optimizer over the decoder's trainable parameters.

    ``fused=False`` is for float16 with a gradient scaler, where a fused step would unscale after the clipping.
    """
    groups = decay_groups(decoder, config.weight_decay, config.decay_all)
    match config:
        case MuonConfig():
            return Muon(config, decoder, fused)
        case AdamWConfig():
            return AdamW(groups, lr=config.lr, betas=pair(config.betas), eps=config.eps, fused=fused)
        case AdamConfig():
            return Adam(groups, lr=config.lr, betas=pair(config.betas), eps=config.eps, fused=fused)
        case AdafactorConfig():
            return Adafactor(groups, lr=config.lr, beta2_decay=config.beta2_decay, d=config.clip_threshold)
        case SGDConfig():
            fused = fused and not any(map(is_sharded, decoder.parameters()))  # torch has no fused SGD of sharded tensors
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
        muon = torch.optim.Muon(
            [p for name, p in named if is_matrix(name, p)],
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
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
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
