"""The guard: a bad step changes nothing, a good one all that it would have, whichever optimizer, read early or late."""

import copy
import math

import pytest
import torch
from torch import nn

from gpt2_lightning.guard import Guard
from gpt2_lightning.optimizer import build_optimizer
from gpt2_lightning.settings.optimizer import OPTIMIZERS
from gpt2_lightning.settings.trainer import TrainerConfig
from tests.lab import same

CPU = torch.device("cpu")


def parts(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    return module, build_optimizer(OPTIMIZERS[name](), module)


def step(guard: Guard, module: nn.Module, optimizer: torch.optim.Optimizer, n: int, bad: str = "") -> None:
    """One step on its own batch, which ``bad`` spoils in the loss or in a gradient."""
    optimizer.zero_grad()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(n))
    loss = module(x).square().mean() * (math.nan if bad == "loss" else 1)
    loss.backward()
    gradient = next(p for p in module.parameters() if p.grad is not None).grad
    assert gradient is not None
    if bad == "gradient":
        gradient[0] = math.inf
    norm = torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm()
    good = guard.judge(n, loss.detach(), norm, optimizer, 0)
    assert bool(good) == (not bad and not bool(guard.stuck))
    optimizer.step()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_skipped_step_is_as_if_it_had_not_been(name: str, bad: str, late: bool) -> None:
    guard = Guard(TrainerConfig(on_nonfinite="skip"), CPU, late=late)
    module, optimizer = parts(name)
    step(guard, module, optimizer, 1)
    before = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    step(guard, module, optimizer, 2, bad)
    assert same(module.state_dict(), before[0])
    assert same(optimizer.state_dict(), before[1])
    step(guard, module, optimizer, 3)
    other, other_optimizer = parts(name)
    for n in (1, 3):
        step(Guard(TrainerConfig(), CPU, late=late), other, other_optimizer, n)
    assert same(module.state_dict(), other.state_dict())
    assert same(optimizer.state_dict(), other_optimizer.state_dict())
    assert [v.step for v in guard.verdicts(flush=True) if v.bad] == [2]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("policy", ["stop", "rewind"])
def test_nothing_moves_behind_a_step_that_ends_the_run_until_that_is_read(policy: str, late: bool) -> None:
    guard = Guard(TrainerConfig(on_nonfinite=policy), CPU, late=late)
    module, optimizer = parts("adamw")
    step(guard, module, optimizer, 1)
    before = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    step(guard, module, optimizer, 2, "loss")
    assert [v.step for v in guard.verdicts(flush=False)] == ([1] if late else [1, 2])
    step(guard, module, optimizer, 3)
    assert same((module.state_dict(), optimizer.state_dict()), before)
    assert [(v.step, v.bad) for v in guard.verdicts(flush=False)] == ([(2, True)] if late else [(3, False)])


def losses(guard: Guard, values: list[float]) -> list[bool]:
    """Which of the losses are taken for spikes."""
    _, optimizer = parts("sgd")
    for n, value in enumerate(values):
        guard.judge(n, torch.tensor(value), torch.tensor(1.0), optimizer, 0)
    return [v.spike for v in guard.verdicts(flush=True)]


def test_spikes_are_told_from_noise_once_the_window_is_full_and_neither_they_nor_a_nan_poison_it() -> None:
    config = TrainerConfig(on_nonfinite="skip", on_spike="skip", spike_window=20, spike_deviations=6.0)
    quiet = [3 + 0.1 * math.sin(n) for n in range(60)]
    assert not any(losses(Guard(config, CPU), quiet))
    assert losses(Guard(config, CPU), [*quiet[:10], 9.0])[10] is False
    values = [*quiet, math.nan, 9.0, *quiet[:5], math.inf, 9.0, 3.2]
    found = losses(Guard(config, CPU), values)
    assert [n for n, spike in enumerate(found) if spike] == [61, 68]
    assert not any(losses(Guard(TrainerConfig(), CPU), values))


def test_the_window_is_state() -> None:
    config = TrainerConfig(on_spike="skip", spike_window=20)
    one, other = Guard(config, CPU), Guard(config, CPU)
    losses(one, [3 + 0.1 * math.sin(n) for n in range(60)])
    other.load_state_dict(one.state_dict())
    assert losses(one, [9.0, 3.1]) == losses(other, [9.0, 3.1]) == [True, False]
