"""The guard: a step's loss and gradient norm in; whether the weights may be touched out, decided where the numbers are.

It stands between the gradients and the optimizer. A step that is not finite, or a spike where those count, is held: weights,
moments and the optimizer's step count stay bit for bit as they were. On a CPU the verdict is read at once; elsewhere one step
later, when it has long been computed, and until then every further step is held too, so nothing waits for the device.
One number: 1 collective a step over several ranks, of three numbers; they carry a rank's signal to all of them as well.
Choice not taken: looking at the loss when it is logged, by which time the weights are gone.
"""

from collections import deque
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor
from torch.optim import Optimizer

from gpt2_lightning.settings.trainer import TrainerConfig

__all__ = ["Guard", "Verdict"]


class Verdict(NamedTuple):
    """What became of a step: ``loss`` is the mean over ranks, ``norm`` the gradient's; ``asked``: some rank has a signal."""

    step: int
    bad: bool
    spike: bool
    asked: int
    loss: float
    norm: float


class Guard:
    """Judges every step of a run on ``device`` over ``ranks``; ``scaled``: a gradient scaler answers for the gradients."""

    def __init__(
        self, config: TrainerConfig, device: torch.device, ranks: int = 1, scaled: bool = False, late: bool | None = None
    ) -> None:
        self.config, self.ranks, self.scaled = config, ranks, scaled
        self.late = device.type != "cpu" if late is None else late
        self.sticky = config.on_nonfinite != "skip" or config.on_spike in ("stop", "rewind")
        self.zero, self.stuck = torch.zeros((), device=device), torch.zeros((), dtype=torch.bool, device=device)
        self.window = torch.zeros(3, dtype=torch.float64, device=device)  # steps, mean, variance
        self.waiting: deque[tuple[int, Tensor, Any]] = deque()

    def state_dict(self) -> dict[str, Any]:
        """The window; nothing is waiting when a checkpoint is made."""
        return {"window": self.window.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of state_dict."""
        self.window.copy_(state_dict["window"])

    @torch.no_grad()
    def judge(self, step: int, loss: Tensor, norm: Tensor, optimizer: Optimizer, signal: int) -> Tensor:
        """Hold the optimizer where the step is bad; returns whether it may go on, as a tensor. All ranks call it together."""
        told = torch.stack([norm.float() * 0 if not self.scaled else self.zero, loss.float() / self.ranks, self.told(signal)])
        if self.ranks > 1:
            torch.distributed.all_reduce(told)
        bad = ~torch.isfinite(told[:2].sum())
        held, spike = bad, self.zero
        if self.config.on_spike != "ignore":
            spike = self.is_spike(told[1]) & ~bad
            held = bad | spike
        if self.sticky:
            ends = bad & (self.config.on_nonfinite != "skip") | (spike > 0) & (self.config.on_spike in ("stop", "rewind"))
            self.stuck.logical_or_(ends)
            held = held | self.stuck
        if self.config.on_spike != "ignore":
            self.learn(told[1], held)
        self.hold(optimizer, held)
        self.remember(step, torch.stack([bad, spike, told[2], told[1], norm]))
        return ~held

    def told(self, signal: int) -> Tensor:
        """This rank's signal for all of them."""
        return torch.full_like(self.zero, signal) if signal else self.zero

    def is_spike(self, loss: Tensor) -> Tensor:
        """Whether the loss is far above those of the window, once that is full."""
        seen, mean, variance = self.window
        far = loss > mean + self.config.spike_deviations * variance.sqrt()
        return far & (seen >= self.config.spike_window)

    def learn(self, loss: Tensor, held: Tensor) -> None:
        """Take the loss of a step that was not held into the exponential mean and variance (Welford's, weighted)."""
        seen, mean, variance = self.window
        share = 1 / (seen + 1).clamp(max=self.config.spike_window)
        delta = loss - mean
        new = torch.stack([seen + 1, mean + share * delta, (1 - share) * (variance + share * delta * delta)])
        self.window.copy_(torch.where(held, self.window, new))

    def hold(self, optimizer: Optimizer, held: Tensor) -> None:
        """Make the coming step change nothing: fused optimizers look at a flag, others see no gradients."""
        if self.late and not self.scaled and all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = held.float()  # type: ignore[attr-defined]
            optimizer.grad_scale = None  # type: ignore[attr-defined]
        elif bool(held):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = None

    def remember(self, step: int, numbers: Tensor) -> None:
        """Start the verdict on its way to the CPU."""
        if not numbers.is_cuda:
            self.waiting.append((step, numbers, None))
            return
        there = torch.empty(numbers.shape, pin_memory=True).copy_(numbers, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self.waiting.append((step, there, event))

    def verdicts(self, flush: bool) -> list[Verdict]:
        """Those that are due: all with ``flush``, else all but the last step's where reading it would wait for the device."""
        found = []
        while len(self.waiting) > (self.late and not flush):
            step, numbers, event = self.waiting.popleft()
            if event is not None:
                event.synchronize()
            bad, spike, asked, loss, norm = numbers.tolist()
            found.append(Verdict(step, bool(bad), bool(spike), int(asked), loss, norm))
        return found
