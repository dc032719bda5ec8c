"""Runs of several ranks: the numbers of one rank, whoever starts them; and an end for all when one of them is killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from gpt2_lightning import run as recipe
from gpt2_lightning.checkpoint import checkpoints, load_checkpoint
from gpt2_lightning.errors import DataError
from gpt2_lightning.module import GPT2Module
from tests.lab import (
    NANO,
    assert_same_run,
    finish,
    kill_at_call,
    last_state,
    leftovers,
    lines,
    only_run,
    run_world,
    said,
    start_world,
    train,
)

WORDS = (
    *NANO, "data.batch_size=1", "data.val_batches=5", "trainer.batch_tokens=256", "loss.beta=1e-2", "model.dropout=0",
    "trainer.log_every=1", "trainer.clip=0.5",
)  # fmt: skip
FOLLOW = ("trainer.devices=null", "trainer.nodes=null")
CLOSE = {"val/cross_entropy": 1e-6, "train/cross_entropy": 1e-5, "train/loss": 1e-5}
ROUGH = dict.fromkeys(CLOSE, 1e-4)  # Muon rounds to bfloat16, where the order of a gradient's sum is seen: with DDP no less


def kind(ranks: int, strategy: str) -> list[str]:
    """The words for so many ranks; the step has four rows on any number of them."""
    return [f"trainer.devices={ranks}", f"trainer.strategy={strategy}"]


def assert_close(one: list[dict[str, Any]], other: list[dict[str, Any]], close: dict[str, float] = CLOSE) -> None:
    """The losses are equal, and so is all that is in the lines, but for the order of sums."""
    assert [row["step"] for row in one] == [row["step"] for row in other]
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name] == pytest.approx(value, rel=1e-3, abs=close.get(name, 1e-3)), (name, a["step"])
            if name in close:
                assert abs(b[name] - value) <= close[name], (name, a["step"], value, b[name])


def largest_difference(one: list[dict[str, Any]], other: list[dict[str, Any]], name: str) -> float:
    """Of one value, over all lines that have it."""
    return max(abs(a[name] - b[name]) for a, b in zip(one, other, strict=True) if name in a)


@pytest.mark.parametrize(
    ("strategy", "optimizer"), [("ddp", "adamw"), ("fsdp", "adamw"), ("fsdp", "muon"), ("fsdp", "adafactor")]
)
def test_two_ranks_train_as_one(tmp_path: Path, strategy: str, optimizer: str) -> None:
    words = [*WORDS, f"optimizer={optimizer}", "trainer.max_steps=8", "trainer.val_every=4"]
    one = train([*words, *kind(1, strategy)], tmp_path / "one")
    two = train([*words, *kind(2, strategy)], tmp_path / "two")
    assert_close(lines(one), lines(two), ROUGH if optimizer == "muon" else CLOSE)
    if (strategy, optimizer) == ("fsdp", "adamw"):
        assert_shared_out(checkpoints(two / "checkpoints")[0], checkpoints(one / "checkpoints")[0])


def assert_shared_out(folder: Path, whole: Path) -> None:
    """Each rank has saved about a half of the weights and moments, whole tensors, and they are those of one rank."""
    (one_state, one), (state, weights) = load_checkpoint(whole), load_checkpoint(folder)
    assert one.keys() == weights.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-5)
    moments, others = (s["optimizer_states"][0]["state"] for s in (state, one_state))
    assert moments.keys() == others.keys()
    for i, held in others.items():
        torch.testing.assert_close(moments[i]["exp_avg_sq"], held["exp_avg_sq"], rtol=1e-3, atol=1e-9)
    for stem, bytes_of_all in (("model", 1), ("state", 2)):
        sizes = [path.stat().st_size for path in sorted(folder.glob(f"{stem}-0000?-of-00002.safetensors"))]
        total = bytes_of_all * sum(w.nbytes for w in weights.values())
        assert len(sizes) == 2 and max(sizes) < 0.7 * total < total <= sum(sizes) < 1.1 * total
    assert (folder / "state.ckpt").stat().st_size < 0.2 * total


def test_targets_that_count_weigh_the_same_however_a_step_is_divided(tmp_path: Path) -> None:
    for name, times in (("a", 1), ("b", 9)):
        answers = (f"{'yes ' * (i * times % 13 + 1)}." for i in range(200))
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"x": "is it?", "y": "{y}"}}\n' for y in answers))
    corpora = "".join(f"  {n}: {{path: {tmp_path}/{n}.jsonl, loss_weight: {w}}}\n" for n, w in (("a", 0.5), ("b", 2)))
    words = [*WORDS, "trainer.batch_tokens=null", "task=completion", "data=mixed", "optimizer=sgd"]
    words += ["trainer.max_steps=4", "trainer.val_every=4"]
    parts = {"one": (4, 1, 1, "ddp"), "batches": (1, 4, 1, "ddp"), "ddp": (1, 2, 2, "ddp"), "fsdp": (1, 2, 2, "fsdp")}
    found = {}
    for kind_of, (batch, accumulate, ranks, strategy) in parts.items():
        (tmp_path / kind_of / "conf/data").mkdir(parents=True)
        (tmp_path / kind_of / "conf/data/mixed.yaml").write_text(f"tokenizer: bytes\ncorpora:\n{corpora}")
        more = [f"data.batch_size={batch}", f"data.val_batches={16 // batch}", f"trainer.accumulate={accumulate}"]
        found[kind_of] = lines(train([*words, *more, *kind(ranks, strategy)], tmp_path / kind_of))
        assert_close(found["one"], found[kind_of])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_gradients_travel_at_the_last_batch_of_a_step_alone(tmp_path: Path, strategy: str) -> None:
    def note(sync: bool) -> None:
        if os.environ["LOCAL_RANK"] == "0":
            with (tmp_path / "synced").open("a") as file:
                file.write("+" if sync else "-")

    def broken() -> None:
        def counted(self: Any, sync: bool, *, there: Any = FSDPModule.set_requires_gradient_sync) -> None:
            note(sync)
            there(self, sync)

        @contextmanager
        def no_sync(self: Any, there: Any = DistributedDataParallel.no_sync) -> Iterator[None]:
            with there(self):
                note(False)
                yield
                note(True)

        FSDPModule.set_requires_gradient_sync = counted  # type: ignore[method-assign]
        DistributedDataParallel.no_sync = no_sync  # type: ignore[method-assign]

    train([*WORDS, *kind(2, strategy), "trainer.max_steps=3", "trainer.val_every=3"], tmp_path, broken)
    assert (tmp_path / "synced").read_text() == "-+" * 3  # a step has two batches


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon", "adafactor"])
def test_ranks_and_strategies_give_the_same_losses_and_go_on_from_each_others_checkpoints(
    tmp_path: Path, optimizer: str
) -> None:
    words = [*WORDS, f"optimizer={optimizer}", "trainer.max_steps=50", "trainer.val_every=25", "checkpoint.every=20"]
    kinds = [(1, "ddp"), (2, "fsdp"), (4, "fsdp")]
    kinds += {"adamw": [(2, "ddp"), (4, "ddp")], "sgd": [(2, "ddp")]}.get(optimizer, [])
    close = ROUGH if optimizer == "muon" else CLOSE
    words += ["model.n_embd=38"] if optimizer in ("muon", "adafactor") else []  # four ranks have unequally many rows
    found = [train([*words, *kind(*k), "checkpoint.keep=9"], tmp_path / "{}-{}".format(*k)) for k in kinds]
    for k, folder in zip(kinds[1:], found[1:], strict=True):
        assert_close(lines(found[0]), lines(folder), close)
        print(*k, {name: largest_difference(lines(found[0]), lines(folder), name) for name in CLOSE})
    for i, k in enumerate(kinds):
        begun = next(path for path in checkpoints(found[i - 1] / "checkpoints") if path.name == "step-00000020")
        more = [f"resume={begun}", "resume_allow=[trainer,checkpoint]"]
        resumed = train([*words, *kind(*k), *more], tmp_path / "from-{}-{}".format(*k))
        assert_close([row for row in lines(found[0]) if row["step"] > 20], lines(resumed), close)


COUNTED = """
import json, pathlib, sys
import torch
from gpt2_lightning import module
from gpt2_lightning.__main__ import main

def ended(self, there=module.GPT2Module.on_validation_epoch_end):
    there(self)
    found = {name: torch._dynamo.utils.counters[name] for name in ("graph_break", "unimplemented", "stats")}
    pathlib.Path(f"counters.{self.trainer.global_rank}").write_text(json.dumps(found))

module.GPT2Module.on_validation_epoch_end = ended
sys.exit(main())
"""


@pytest.mark.slow
def test_blocks_compiled_each_by_itself_train_as_they_do_eagerly(tmp_path: Path) -> None:
    words = [*WORDS, *kind(2, "fsdp"), "trainer.max_steps=4", "trainer.val_every=2", "model.n_layer=4"]
    eager = train(words, tmp_path / "eager")
    (tmp_path / "counted.py").write_text(COUNTED)  # a process of its own: the type checks of the test suite break graphs
    command = [sys.executable, "counted.py", *words, "trainer.compile=true"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = only_run(tmp_path)
    assert_close(lines(eager), lines(compiled))
    print({name: largest_difference(lines(eager), lines(compiled), name) for name in CLOSE})
    assert last_state(compiled)[1].keys() == last_state(eager)[1].keys()
    for rank in range(2):
        found = json.loads((tmp_path / f"counters.{rank}").read_text())
        assert found["graph_break"] == found["unimplemented"] == {}
        assert found["stats"]["unique_graphs"] == 2  # with gradients and without, each for all layers


def test_a_world_has_one_folder_one_board_one_voice(tmp_path: Path) -> None:
    words = [*WORDS, *FOLLOW, "trainer.max_steps=4", "trainer.val_every=4", "samples.max_new_tokens=5", "trainer.strategy=fsdp"]
    words += ["board.histograms_every=2"]
    assert run_world(words, tmp_path, 2) == [0, 0]
    folder = only_run(tmp_path)
    assert len(list((folder / "tensorboard").iterdir())) == 1 and (folder / "samples.txt").exists()
    assert json.loads((folder / "result.json").read_text())["tokens"] == 4 * 256
    assert (tmp_path / "log.1").read_text() == "" and len(said(tmp_path, "step 4: validation")) == 1
    assert leftovers(folder) == []


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["trainer.max_stepz=3"], 2, "unknown key"),
        (["trainer.devices=3"], 7, "torchrun has started 2 ranks"),
        (["init=/nowhere"], 4, "weights to start from"),
        (["optimizer.lr=1e30", "trainer.clip=0"], 6, "loss or gradient"),
    ],
)
def test_what_stops_a_world_is_said_once_with_its_status(tmp_path: Path, words: list[str], status: int, reason: str) -> None:
    assert run_world([*WORDS, *FOLLOW, "trainer.max_steps=4", *words], tmp_path, 2) == [status, 0]
    (line,) = said(tmp_path)
    assert reason in line and "Traceback" not in (tmp_path / "log.1").read_text()


def test_a_finished_run_ends_its_world(tmp_path: Path) -> None:
    words = [*WORDS, *FOLLOW, "trainer.max_steps=1", "run.id=one"]
    assert run_world(words, tmp_path, 2) == [0, 0]
    assert run_world(words, tmp_path, 2) == [0, 0]
    assert len(said(tmp_path, "is finished, at step 1")) == 1


def test_a_node_without_the_folder_is_said_by_rank_0(tmp_path: Path) -> None:
    def broken() -> None:
        def away(folder: Path, there: Callable[[Path], None] = recipe.require_folder) -> None:
            there(folder / "not shared")

        recipe.require_folder = away

    assert run_world([*WORDS, *FOLLOW, "trainer.max_steps=1"], tmp_path, 2, nodes=2, broken=broken) == [7, 0]
    (line,) = said(tmp_path)
    assert "rank 1: run folder" in line and "Set run.folder to a folder that all nodes share" in line


def test_another_ranks_fault_is_said_by_rank_0_with_its_status(tmp_path: Path) -> None:
    def broken() -> None:
        def step(self: GPT2Module, *args: Any, there: Callable[..., Any] = GPT2Module.training_step) -> Any:
            if self.trainer.global_rank == 1 and self.global_step == 2:
                raise DataError("corpus", key="file", value="tales.txt", rule="was cut short")
            return there(self, *args)

        GPT2Module.training_step = step  # type: ignore[method-assign]

    assert run_world([*WORDS, *FOLLOW, "trainer.max_steps=9"], tmp_path, 2, broken=broken) == [3, 0]
    assert said(tmp_path) == ["error: corpus (file = tales.txt): was cut short [rank 1]"]


@pytest.mark.parametrize(("rank", "starter", "strategy"), [(1, "torchrun", "fsdp"), (0, "srun", "ddp")])
def test_a_killed_rank_ends_all_with_the_reason_and_the_command_goes_on(
    tmp_path: Path, rank: int, starter: str, strategy: str
) -> None:
    words = [
        *WORDS,
        *FOLLOW,
        "trainer.max_steps=8",
        "trainer.val_every=4",
        "checkpoint.every=2",
        f"trainer.strategy={strategy}",
    ]
    whole = train([*words, "trainer.devices=2", "trainer.nodes=1"], tmp_path / "whole")
    cut = tmp_path / "cut"
    pids = start_world(words, cut, 2, 1, kill_at_call(GPT2Module, "training_step", 11, rank), starter)
    first = finish(pids[rank])
    began = time.monotonic()
    statuses = [finish(pid) for pid in pids if pid != pids[rank]]
    assert time.monotonic() - began < 30
    assert (first, statuses) == (-signal.SIGKILL, [7])
    (line,) = said(cut)
    assert re.match(rf"error: rank {rank}.*ended", line) and "goes on from the last checkpoint" in line
    assert [finish(pid) for pid in start_world(words, cut, 2, 1, None, starter)] == [0, 0]
    assert "goes on from step-00000004" in (cut / "log.0").read_text()
    assert_same_run(whole, only_run(cut))


REWOUND = """
import sys
from gpt2_lightning import module
from gpt2_lightning.__main__ import main

def step(self, *args, there=module.GPT2Module.training_step):
    loss = there(self, *args)
    return loss * float("nan") if self.global_step == 5 and not self.trainer.datamodule.skipped else loss

module.GPT2Module.training_step = step
sys.exit(main())
"""


@pytest.mark.slow
def test_all_ranks_of_a_world_rewind_together(tmp_path: Path) -> None:
    words = [*WORDS, *FOLLOW, "trainer.max_steps=8", "trainer.val_every=4", "trainer.on_nonfinite=rewind"]
    world = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    ranks = []
    for rank in range(2):
        env = os.environ | world | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "MASTER_PORT": "29418", "OMP_NUM_THREADS": "1"}
        with (tmp_path / f"log.{rank}").open("w") as log:
            command = [sys.executable, "-c", REWOUND, *words]
            ranks.append(subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log))
    assert [rank.wait(120) for rank in ranks] == [0, 0], said(tmp_path, "")
    assert len(said(tmp_path, "warning: step 6")) == 1 and len(said(tmp_path, "goes on from step-00000004")) == 1


@pytest.mark.slow
def test_torchrun_itself_on_two_nodes(tmp_path: Path) -> None:
    words = [*WORDS, "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_steps=4", "trainer.val_every=4"]
    port = ["--master-addr=127.0.0.1", "--master-port=29417"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    nodes = []
    for node in range(2):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}", *port]
        with (tmp_path / f"log.{node}").open("w") as log:
            command = [*torchrun, "--nproc-per-node=1", "-m", "gpt2_lightning", *words]
            nodes.append(subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log))
    assert [node.wait(280) for node in nodes] == [0, 0], said(tmp_path, "")
    folder = only_run(tmp_path)
    assert len(list((folder / "tensorboard").iterdir())) == 1 and len(said(tmp_path, "step 4: validation")) == 1
    whole = train([*words, "trainer.devices=2", "trainer.nodes=1"], tmp_path / "whole")
    assert lines(folder) == lines(whole)
