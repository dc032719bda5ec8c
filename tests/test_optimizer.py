"""Schedules are functions of the step; every optimizer groups, steps and restores as it should."""

import multiprocessing
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode

from gpt2_lightning.decoder import Decoder, DecoderConfig
from gpt2_lightning.optimizer import build_optimizer, decay_groups, schedule_factor, set_learning_rate
from gpt2_lightning.settings.optimizer import OPTIMIZERS, ScheduleConfig
from gpt2_lightning.shards import own_parts_of, shard, undivided

TINY = DecoderConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=50)
UNEVEN = DecoderConfig(n_layer=2, n_head=2, n_embd=34, block_size=7, vocab_size=50)  # 3 ranks have unequally many rows


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine", "wsd"])
def test_schedule_warms_up_then_never_rises(shape: str) -> None:
    config = ScheduleConfig(shape=shape, warmup_steps=10, final_factor=0.1)
    factors = [schedule_factor(step, config, 100) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[:11] == sorted(factors[:11])
    assert factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(1.0 if shape == "constant" else 0.1)


@pytest.mark.parametrize(
    ("shape", "step", "factor"),
    [
        ("linear", 55, 0.5 * 1.1),
        ("cosine", 55, 0.5 * 1.1),
        ("wsd", 79, 1.0),
        ("wsd", 80, 1.0),
        ("wsd", 90, 1 - 0.9 * 10 / 19),
    ],
)
def test_schedule_values(shape: str, step: int, factor: float) -> None:
    config = ScheduleConfig(shape=shape, warmup_steps=0 if shape == "wsd" else 11, final_factor=0.1)
    assert schedule_factor(step, config, 100) == pytest.approx(factor, abs=1e-12)


def test_only_the_blocks_matrices_decay() -> None:
    decoder = Decoder(TINY)
    decayed, others = decay_groups(decoder, 0.1)
    names = {id(p): name for name, p in decoder.named_parameters()}
    assert {names[id(p)].split(".")[-2] for p in decayed["params"]} == {"c_attn", "c_proj", "c_fc"}
    assert all(p.ndim == 2 for p in decayed["params"])
    assert others["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    assert len(decay_groups(decoder, 0.1, decay_all=True)) == 1


def steps(optimizer: torch.optim.Optimizer, decoder: Decoder, n: int) -> None:
    for i in range(n):
        torch.manual_seed(i)
        tokens = torch.randint(0, 50, (2, 16))

        def closure(tokens: torch.Tensor = tokens) -> torch.Tensor:
            optimizer.zero_grad()
            loss = decoder(tokens).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_saved_and_restored_it_goes_on_the_same(name: str) -> None:
    torch.manual_seed(0)
    first = Decoder(TINY)
    config = OPTIMIZERS[name]()
    optimizer = build_optimizer(config, first)
    steps(optimizer, first, 3)
    second = Decoder(TINY)
    second.load_state_dict(first.state_dict())
    restored = build_optimizer(config, second)
    restored.load_state_dict(deepcopy(optimizer.state_dict()))
    steps(optimizer, first, 2)
    steps(restored, second, 2)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rate_of_zero_moves_nothing_and_another_rate_all(name: str) -> None:
    torch.manual_seed(0)
    decoder = Decoder(TINY)
    optimizer = build_optimizer(OPTIMIZERS[name](), decoder)
    before = [p.detach().clone() for p in decoder.parameters()]
    set_learning_rate(optimizer.param_groups, 0.0)
    steps(optimizer, decoder, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, decoder.parameters(), strict=True))
    set_learning_rate(optimizer.param_groups, 0.01)
    steps(optimizer, decoder, 1)
    moved = [not torch.equal(a, b) for a, b in zip(before, decoder.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)


def step_beside_one(name: str, rank: int, ranks: int, store: Path) -> None:
    """On one of some ranks: whole and sharded optimizer step from equal gradients, and stay equal; what is sent is counted."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    one = Decoder(UNEVEN)
    parts = deepcopy(one)
    shard(parts, list(parts.h), init_device_mesh("cpu", (ranks,)))
    whole, sharded = (build_optimizer(OPTIMIZERS[name](weight_decay=0.1), decoder) for decoder in (one, parts))
    for _ in range(10):
        for p, q in zip(one.parameters(), parts.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = own_parts_of(p.grad, q)
        whole.step()
        with CommDebugMode() as sent:
            sharded.step()
    for p, q in zip(one.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(undivided(q), p, rtol=0, atol=1e-6)
    counts = {op.__name__: n for op, n in sent.get_comm_counts().items()}
    assert counts == {"muon": {"alltoall_base_": 2 * 3}, "adafactor": {"allreduce_": 2 * 2}}[name], counts


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_of_equal_gradients_ranks_make_the_step_of_one_and_gather_nothing(tmp_path: Path, name: str) -> None:
    fork = multiprocessing.get_context("fork")  # 8 matrices in 3 turns, and 2 groups of parameters
    ranks = [fork.Process(target=step_beside_one, args=(name, rank, 3, tmp_path / "store")) for rank in range(3)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0, 0]


def state_bytes(name: str) -> int:
    decoder = Decoder(DecoderConfig(n_layer=2, n_head=4, n_embd=256, block_size=64, vocab_size=5000))
    optimizer = build_optimizer(OPTIMIZERS[name](), decoder)
    tokens = torch.randint(0, 5000, (1, 8))
    optimizer.step(lambda: decoder(tokens).square().mean().backward())
    return sum(t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values())


def test_adafactors_state_is_under_two_percent_of_adamws() -> None:
    assert state_bytes("adafactor") < 0.02 * state_bytes("adamw")
