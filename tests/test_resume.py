"""A run that was killed goes on bit for bit where it was: the quick forms. ``test_chaos`` has the same laws by the hundred."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt2_lightning import checkpoint
from gpt2_lightning.checkpoint import checkpoints, newest_verified
from gpt2_lightning.dashboard import RunLog
from gpt2_lightning.data.lanes import Lane
from gpt2_lightning.data.loader import TrainLoader
from gpt2_lightning.errors import DataError
from gpt2_lightning.keeper import Keeper, random_states, set_random_states
from gpt2_lightning.module import GPT2Module
from tests.lab import (
    NANO,
    Break,
    assert_same_run,
    finish,
    kill_at_call,
    last_state,
    leftovers,
    lines,
    only_run,
    run,
    same,
    start,
    train,
)
from tests.test_checkpoint import FaultyDisk

MIX = """tokenizer: bytes
corpora:
  tales: {path: tales.txt, split: blank_line, weight: 2}
  noise: {path: noise.txt, split: line}
"""
STEPS, EVERY = 12, 3
WORDS = (
    *NANO, "data=mix", "augment=all", "model.dropout=0.1", f"trainer.max_steps={STEPS}", "trainer.val_every=5",
    "trainer.log_every=2", f"checkpoint.every={EVERY}",
)  # fmt: skip


def corpora(root: Path) -> Path:
    """A folder with a mixture of its own."""
    (root / "conf/data").mkdir(parents=True)
    (root / "conf/data/mix.yaml").write_text(MIX)
    chance = random.Random(0)
    said = ["the", "old", "king", "went", "home", "and", "slept", "until", "noon", "while", "nobody", "asked", "why"]
    tales = [". ".join(" ".join(chance.choices(said, k=7)) for _ in range(6)) for _ in range(300)]
    (root / "tales.txt").write_text("\n\n".join(tales))
    (root / "noise.txt").write_text("\n".join("".join(chance.choices("abcd ", k=90)) for _ in range(300)))
    return root


Kind = tuple[int, int, int]  # workers, ranks, accumulation


def kind_words(kind: Kind) -> list[str]:
    """The words of a run of 4 rows a step, or 16 with accumulation, however they are shared out."""
    workers, ranks, accumulate = kind
    return [*WORDS, f"data.workers={workers}", f"trainer.devices={ranks}", f"trainer.accumulate={accumulate}",
            f"data.batch_size={4 // ranks}"]  # fmt: skip


def record_rows() -> None:
    """Have each rank note what every batch held, after it was used in a step."""
    there = GPT2Module.training_step

    def noted(self: GPT2Module, batch: Any, batch_idx: int) -> torch.Tensor:
        with Path(f"rows.{self.trainer.global_rank}").open("a") as file:
            file.write(f"{batch_idx} {hash(batch.inputs.numpy().tobytes())}\n")
        return there(self, batch, batch_idx)

    GPT2Module.training_step = noted  # type: ignore[method-assign]


def rows_used(root: Path) -> list[dict[int, str]]:
    """For each rank the last that was noted of every batch."""
    return [dict(line.split() for line in path.read_text().splitlines()) for path in sorted(root.glob("rows.*"))]  # type: ignore[misc]


def whole_run(root: Path, kind: Kind) -> Path:
    """The run that is never killed."""
    return train(kind_words(kind), corpora(root), record_rows)


def cut_and_resume(root: Path, kind: Kind, call: int, rank: int, resumed: Kind | None = None) -> Path:
    """The same run, killed at a rank's n-th batch, started again by the same command, perhaps with other workers."""

    def broken() -> None:
        record_rows()
        kill_at_call(GPT2Module, "training_step", call, rank)()

    status = run(kind_words(kind), corpora(root), broken)
    assert status == -9 or (rank and status == 7), (root / "log").read_text()[-2000:]
    assert status == -9 or f"error: rank {rank}: was ended by signal 9." in (root / "log").read_text()
    allow = [] if resumed in (None, kind) else ["resume_allow=[data.workers]"]
    return train([*kind_words(resumed or kind), *allow], root, record_rows)


def assert_each_batch_once(one: Path, other: Path) -> None:
    """Batch for batch the same rows, and no two batches alike."""
    used = rows_used(one.parents[3])
    assert used == rows_used(other.parents[3])
    every = [content for rank in used for content in rank.values()]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("kind", [(0, 1, 1), (2, 2, 4)])
def test_a_killed_run_ends_bit_for_bit_like_one_that_was_not(tmp_path: Path, kind: Kind) -> None:
    whole = whole_run(tmp_path / "whole", kind)
    cut = cut_and_resume(tmp_path / "cut", kind, (STEPS - 3) * kind[2] - 1, rank=kind[1] - 1)
    assert_same_run(whole, cut)
    assert_each_batch_once(whole, cut)
    assert leftovers(cut) == []


@pytest.mark.slow
def test_workers_may_change_on_the_way(tmp_path: Path) -> None:
    whole = whole_run(tmp_path / "whole", (0, 1, 1))
    cut = cut_and_resume(tmp_path / "cut", (0, 1, 1), 9, 0, resumed=(2, 1, 1))
    assert_same_run(whole, cut)


@pytest.mark.slow
def test_ranks_may_change_on_the_way(tmp_path: Path) -> None:
    whole = whole_run(tmp_path / "whole", (0, 2, 1))
    words = kind_words((0, 2, 1))
    assert run(words, corpora(tmp_path / "cut"), kill_at_call(GPT2Module, "training_step", 8)) == -9
    allow = "resume_allow=[trainer.devices,data.batch_size]"
    cut = train([*kind_words((0, 1, 1)), allow], tmp_path / "cut")
    for a, b in zip(lines(whole), lines(cut), strict=True):
        assert a.get("train/loss", 0) == pytest.approx(b.get("train/loss", 0), rel=0.05)  # dropout draws other numbers


def test_validation_and_saving_move_no_random_state(tmp_path: Path) -> None:
    def broken() -> None:
        for name in ("validate", "save"):
            there = getattr(Keeper, name)

            def watched(self: Keeper, *args: Any, there: Callable[..., Any] = there, **kwargs: Any) -> Any:
                before = random_states(torch.device("cpu"))
                found = there(self, *args, **kwargs)
                after = random_states(torch.device("cpu"))
                assert all(same(before[key], after[key]) for key in ("numpy", "torch"))  # type checks draw from Python's
                return found

            setattr(Keeper, name, watched)

    train(WORDS, corpora(tmp_path), broken)


def test_random_states_are_put_back() -> None:
    states = random_states(torch.device("cpu"))
    drawn = [(random.random(), np.random.random(), float(torch.rand(()))) for _ in range(2)]
    set_random_states(states, torch.device("cpu"))
    assert [(random.random(), np.random.random(), float(torch.rand(()))) for _ in range(2)] == drawn


@pytest.mark.slow
def test_tensorboard_shows_each_step_once_after_kills(tmp_path: Path) -> None:
    corpora(tmp_path)
    for call in (8, 6, 2):
        assert run(WORDS, tmp_path, kill_at_call(GPT2Module, "training_step", call)) == -9
        time.sleep(1.1)  # TensorBoard orders its files by the second they were begun in
    folder = train(WORDS, tmp_path)
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    for name in ("train/loss", "val/cross_entropy"):
        assert [e.step for e in board.Scalars(name)] == [row["step"] for row in lines(folder) if name in row]


# what is on the disk
@pytest.mark.slow
def test_a_kill_at_any_operation_of_a_save_loses_no_checkpoint(tmp_path: Path) -> None:
    whole = train(WORDS, corpora(tmp_path / "whole"))
    root = corpora(tmp_path / "cut")
    for at in (30, 4, 12, 17, 20):
        status = run(WORDS, root, lambda at=at: setattr(checkpoint, "disk", FaultyDisk(at, "kill")))  # type: ignore[misc]
        assert status == -9
        found, faults = newest_verified(only_run(root) / "checkpoints")
        assert (found, faults) != (None, []) or at == 4
    assert_same_run(whole, train(WORDS, root))
    assert leftovers(only_run(root)) == []


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_it_serves(tmp_path: Path) -> None:
    whole = train(WORDS, corpora(tmp_path / "whole"))
    root = corpora(tmp_path / "cut")
    assert run(WORDS, root, kill_at_call(GPT2Module, "training_step", 8)) == -9
    newest = checkpoints(only_run(root) / "checkpoints")[0]
    content = bytearray((newest / "state.ckpt").read_bytes())
    content[len(content) // 2] ^= 4
    (newest / "state.ckpt").write_bytes(content)
    cut = train(WORDS, root)
    said = (root / "log").read_text()
    assert f"warning: checkpoint (file = {newest}/state.ckpt): is damaged: its SHA-256 is not" in said
    assert "goes on from step-00000005" in said or "goes on from step-00000003" in said
    assert_same_run(whole, cut)


def test_without_any_good_checkpoint_it_does_not_begin_again_by_itself(tmp_path: Path) -> None:
    corpora(tmp_path)
    assert run(WORDS, tmp_path, kill_at_call(GPT2Module, "training_step", 8)) == -9
    for folder in checkpoints(only_run(tmp_path) / "checkpoints"):
        (folder / "manifest.json").write_text("{}")
    assert run(WORDS, tmp_path) == 4
    assert "has no checkpoint that is good. Set resume=never" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("broken", ["checkpoint", "log"])
def test_a_full_disk_ends_it_with_8_and_the_checkpoints_stand(tmp_path: Path, broken: str) -> None:
    def full() -> None:
        if broken == "checkpoint":
            checkpoint.disk = FaultyDisk(30, "no space", forever=True)
            checkpoint.time.sleep = lambda _: None  # type: ignore[assignment]
        else:

            def write(self: RunLog, *args: Any, there: Callable[..., None] = RunLog.write) -> None:
                if args[0] == 8:
                    os.dup2(os.open("/dev/full", os.O_WRONLY), self.file.fileno())
                there(self, *args)

            RunLog.write = write  # type: ignore[method-assign]

    whole = train(WORDS, corpora(tmp_path / "whole"))
    root = corpora(tmp_path / "cut")
    assert run(WORDS, root, full) == 8
    assert "error: " in (root / "log").read_text()
    assert "No space left" in (root / "log").read_text() or "injected" in (root / "log").read_text()
    assert newest_verified(only_run(root) / "checkpoints")[0] is not None
    assert_same_run(whole, train(WORDS, root))


# which run goes on


def test_the_same_command_goes_on_after_a_kill_and_starts_anew_after_a_finish(tmp_path: Path) -> None:
    corpora(tmp_path)
    assert run(WORDS, tmp_path, kill_at_call(GPT2Module, "training_step", 2)) == -9  # before the first checkpoint
    first = train(WORDS, tmp_path)
    assert train_again(tmp_path) == 0
    assert len(list(first.parent.iterdir())) == 2
    assert train_again(tmp_path, f"run.id={first.name}") == 0
    assert f"run {first.name} is finished, at step {STEPS}" in (tmp_path / "log").read_text()
    more = [f"run.id={first.name}", f"trainer.max_steps={STEPS + 3}"]
    assert train_again(tmp_path, *more) == 4
    assert f"trainer.max_steps ({STEPS} there, {STEPS + 3} now)" in (tmp_path / "log").read_text()
    assert train_again(tmp_path, *more, "resume_allow=[trainer.max_steps]") == 0
    assert json.loads((first / "result.json").read_text())["steps"] == STEPS + 3
    steps = [row["step"] for row in lines(first) if "train/loss" in row]
    assert steps == sorted(set(steps))


def train_again(root: Path, *words: str) -> int:
    return run([*WORDS, *words], root)


def test_other_settings_are_another_run_or_refused(tmp_path: Path) -> None:
    corpora(tmp_path)
    assert run([*WORDS, "run.id=x"], tmp_path, kill_at_call(GPT2Module, "training_step", 8)) == -9
    assert train_again(tmp_path, "run.id=x", "model.n_embd=32", "optimizer.lr=0.5") == 4
    said = (tmp_path / "log").read_text()
    assert "model.n_embd (64 there, 32 now), optimizer.lr (0.001 there, 0.5 now)" in said
    assert train_again(tmp_path, "run.id=x", "resume=never") == 8
    assert train_again(tmp_path, "optimizer.lr=0.5", "resume=must") == 4
    assert "'x' is unfinished, but differs in optimizer.lr" in (tmp_path / "log").read_text()
    assert train_again(tmp_path, "run.id=x", "model.n_embd=32", "resume_allow=[model.n_embd]") == 2
    assert train_again(tmp_path, "resume=nowhere") == 4
    assert only_run(tmp_path).name == "x"
    assert train_again(tmp_path, "optimizer.lr=0.5", "resume_allow=[optimizer.lr]") == 0
    rows = [row for row in lines(only_run(tmp_path)) if "optimizer/learning_rate" in row]
    assert rows[-1]["optimizer/learning_rate"] > 100 * rows[0]["optimizer/learning_rate"] * 0.1
    assert train_again(tmp_path, "optimizer.lr=0.25") == 0
    assert len(list((tmp_path / "outputs/runs/run").iterdir())) == 2


@pytest.mark.slow
def test_a_path_begins_a_new_run_where_another_was(tmp_path: Path) -> None:
    corpora(tmp_path)
    first = train([*WORDS, "run.id=first", "checkpoint.keep=9"], tmp_path)
    path = first / "checkpoints/step-00000009"
    words = [*WORDS, "run.id=second", "checkpoint.keep=9", f"resume={path}"]
    assert run(words, tmp_path, kill_at_call(GPT2Module, "training_step", 2)) == -9
    assert run(words, tmp_path) == 0
    second = first.parent / "second"
    assert lines(second) == [row for row in lines(first) if row["step"] > 9]
    assert same(last_state(first)[1], last_state(second)[1])
    assert run([*WORDS, f"resume={path}", "optimizer.lr=0.5"], tmp_path) == 4


def test_a_second_start_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    corpora(tmp_path)
    words = [*WORDS, "run.id=x", "trainer.max_steps=100000"]
    pid = start(words, tmp_path)
    wait_for(lambda: list(tmp_path.glob("outputs/runs/run/x/checkpoints/step-*")))
    assert run(words, tmp_path) == 8
    assert f"is held by process {pid} on " in (tmp_path / "log").read_text()
    os.kill(pid, signal.SIGKILL)
    finish(pid)


def wait_for(there: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


# signals


def signalled(root: Path, words: list[str], number: int, step: int, group: bool = False) -> tuple[int, float]:
    """Send a signal once the run has come to a step; returns its exit status and the seconds to its end."""
    pid = start(words, root)
    metrics = "outputs/runs/run/*/metrics.jsonl"
    wait_for(lambda: any(f'"step": {step},' in path.read_text() for path in root.glob(metrics)))
    os.killpg(pid, number) if group else os.kill(pid, number)
    began = time.monotonic()
    return finish(pid), time.monotonic() - began


@pytest.mark.parametrize(("number", "status", "kind"), [(signal.SIGINT, 130, (2, 1, 1)), (signal.SIGTERM, 143, (2, 2, 1))])
def test_a_signal_saves_at_the_step_boundary(tmp_path: Path, number: int, status: int, kind: Kind) -> None:
    words = [*kind_words(kind), "trainer.max_steps=60", "trainer.val_every=20"]
    whole = train(words, corpora(tmp_path / "whole"))
    root = corpora(tmp_path / "cut")
    found, seconds = signalled(root, words, number, 4, group=True)
    assert found == status, (root / "log").read_text()[-3000:]
    assert seconds < 5
    assert "is saved, the same command goes on from it" in (root / "log").read_text()
    assert "Traceback" not in (root / "log").read_text()
    assert_same_run(whole, train(words, root))


@pytest.mark.slow
def test_a_signal_breaks_a_validation_off_and_it_is_made_up_for(tmp_path: Path) -> None:
    whole = train(WORDS, corpora(tmp_path / "whole"))
    for call in (1, 11):  # that of step 5, and the last
        root = corpora(tmp_path / f"cut{call}")
        status = run(WORDS, root, kill_at_call(GPT2Module, "validation_step", call, number=signal.SIGTERM))
        assert status == 143
        assert_same_losses(whole, train(WORDS, root))


def assert_same_losses(one: Path, other: Path) -> None:
    """All logged numbers and the result are equal; the last checkpoint may have been made before its validation."""
    assert lines(one) == lines(other)
    assert same(last_state(one)[1], last_state(other)[1])
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


def test_a_second_interrupt_ends_it_at_once(tmp_path: Path) -> None:
    def broken() -> None:
        Keeper.leave = lambda self, pending: time.sleep(60)  # type: ignore[method-assign, assignment, return-value]

    words = [*WORDS, "trainer.max_steps=100000"]
    pid = start(words, corpora(tmp_path), broken)
    wait_for(lambda: list(tmp_path.glob("outputs/runs/run/*/checkpoints/step-*")))
    os.kill(pid, signal.SIGINT)
    time.sleep(0.5)
    os.kill(pid, signal.SIGINT)
    assert finish(pid, 5) == 130
    assert newest_verified(only_run(tmp_path) / "checkpoints")[0] is not None


def test_slurm_requeues_and_the_job_finds_its_run_again(tmp_path: Path) -> None:
    corpora(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/scontrol").write_text('#!/bin/sh\necho "$@" >> scontrol.log\n')
    (tmp_path / "bin/scontrol").chmod(0o755)
    slurm = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}
    slurm["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    broken = kill_at_call(GPT2Module, "training_step", 4, number=signal.SIGUSR1)
    assert run(WORDS, tmp_path, broken, **slurm) == 143
    assert (tmp_path / "scontrol.log").read_text() == "requeue 77\n"
    folder = train(WORDS, tmp_path, **slurm, SLURM_RESTART_COUNT="1")
    assert folder.name.endswith("-job77")
    assert "goes on from step-00000004" in (tmp_path / "log").read_text()


def test_what_stops_another_rank_is_said_by_rank_0_with_its_status(tmp_path: Path) -> None:
    def broken() -> None:
        def fill(self: Lane, *args: Any, there: Callable[..., None] = Lane.fill) -> None:
            if self.number >= 2 and self.draw > 3:
                raise DataError("corpus", key="file", value="tales.txt", rule="was cut short")
            there(self, *args)

        Lane.fill = fill  # type: ignore[method-assign]

    assert run(kind_words((0, 2, 1)), corpora(tmp_path), broken) == 3
    assert "error: corpus (file = tales.txt): was cut short [rank 1]" in (tmp_path / "log").read_text()


# numbers


def spoil(what: str, step: int, rank: int = 0, accumulate: int = 1) -> Break:
    """Make the loss or a gradient of one step, on one rank, something that is not a number."""

    def broken() -> None:
        def training_step(self: GPT2Module, batch: Any, batch_idx: int, there: Any = GPT2Module.training_step) -> torch.Tensor:
            loss = there(self, batch, batch_idx)
            due = batch_idx // accumulate + 1 == step and self.trainer.global_rank == rank
            if due and what == "loss":
                self.step_loss *= float("nan")
                loss = loss * float("nan")
            elif due:
                self.decoder.wte.weight.register_hook(lambda g: g * float("inf"))
            return loss

        GPT2Module.training_step = training_step  # type: ignore[method-assign]

    return broken


def weights_after(steps: int, root: Path, kind: Kind) -> dict[str, torch.Tensor]:
    """The weights of a run of so many steps."""
    words = [*kind_words(kind), "schedule=constant", "checkpoint.every=1", f"trainer.max_steps={steps}"]
    return last_state(train(words, corpora(root)))[1]


def keep_weights_at_exit(kept: Path) -> Break:
    """Write the weights that the run ends with."""

    def broken() -> None:
        def on_exception(self: Keeper, trainer: Any, module: GPT2Module, exception: BaseException) -> None:
            if trainer.is_global_zero:
                torch.save(module.decoder.state_dict(), kept)

        Keeper.on_exception = on_exception  # type: ignore[method-assign]

    return broken


def stop_at_nan(root: Path, kind: Kind, what: str, step: int, rank: int) -> None:
    """The run ends with 6 before the weights are touched, and says where."""

    def broken() -> None:
        spoil(what, step, rank, kind[2])()
        keep_weights_at_exit(root / "kept.pt")()

    words = [*kind_words(kind), "schedule=constant", "checkpoint.every=2", "trainer.max_steps=12"]
    assert run(words, corpora(root), broken) == 6
    said = (root / "log").read_text()
    stands = f"the checkpoint 'step-{(step - 1) // 2 * 2:08d}' stands" if step > 2 else "there is no checkpoint yet"
    assert f"is not finite at step {step}, batch {step} of the stream" in said
    assert stands in said or "'step-00000005' stands" in said
    assert same(torch.load(root / "kept.pt"), weights_after(step - 1, root.with_name(f"{root.name}-before"), kind))


@pytest.mark.parametrize(("kind", "what", "step", "rank"), [((0, 1, 1), "loss", 4, 0), ((0, 2, 4), "gradient", 4, 1)])
def test_a_step_that_is_not_finite_stops_the_run_before_the_weights(
    tmp_path: Path, kind: Kind, what: str, step: int, rank: int
) -> None:
    stop_at_nan(tmp_path / "run", kind, what, step, rank)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [(0, 1, 4)])
def test_skip_leaves_out_one_step_and_counts_it(tmp_path: Path, kind: Kind) -> None:
    words = [*kind_words(kind), "trainer.on_nonfinite=skip"]
    skipped = train(words, corpora(tmp_path / "skip"), spoil("loss", 7, accumulate=4))
    assert json.loads((skipped / "result.json").read_text())["skipped_steps"] == 1
    plain = train(words, corpora(tmp_path / "plain"))
    before = [row for row in lines(skipped) if row["step"] <= 6]
    assert before == [row for row in lines(plain) if row["step"] <= 6]
    assert all(row["train/loss"] > 0 for row in lines(skipped) if "train/loss" in row)
    root = corpora(tmp_path / "cut")

    def broken() -> None:
        spoil("loss", 7, accumulate=4)()
        kill_at_call(GPT2Module, "training_step", 45)()

    assert run(words, root, broken) == -9
    assert_same_run(skipped, train(words, root, spoil("loss", 7, accumulate=4)))


def test_where_all_steps_were_skipped_no_loss_is_made_up(tmp_path: Path) -> None:
    words = [*NANO, "trainer.on_nonfinite=skip", "trainer.max_steps=8", "trainer.val_every=8", "trainer.log_every=2"]
    found = train(words, tmp_path, lambda: (spoil("loss", 5)(), spoil("loss", 6)()))
    assert ["train/loss" in row for row in lines(found) if "optimizer/learning_rate" in row] == [True, True, False, True]
    assert "step 6/8  nothing trained" in (tmp_path / "log").read_text()


def spoil_some_batches(share: int) -> None:
    """Make the loss of certain batches not a number, wherever in the run they come."""

    def training_step(self: GPT2Module, batch: Any, batch_idx: int, there: Any = GPT2Module.training_step) -> torch.Tensor:
        loss = there(self, batch, batch_idx)
        if int(batch.inputs.sum()) % share == 0:
            self.step_loss *= float("nan")
            loss = loss * float("nan")
        return loss

    GPT2Module.training_step = training_step  # type: ignore[method-assign]


@pytest.mark.slow
def test_rewind_leaves_the_batches_out_and_comes_to_the_same_result_twice(tmp_path: Path) -> None:
    words = [*WORDS, "trainer.on_nonfinite=rewind", "trainer.max_steps=24"]
    one, other = (train(words, corpora(tmp_path / name), lambda: spoil_some_batches(7)) for name in ("one", "other"))
    assert_same_run(one, other)
    log = (one / "rewinds.jsonl").read_text()
    assert log == (other / "rewinds.jsonl").read_text()
    entries = [json.loads(line) for line in log.splitlines()]
    assert entries
    assert all(entry["batches"][0] <= entry["batches"][1] for entry in entries)
    assert entries[-1]["skipped"] == last_state(one)[0]["StreamDataModule"]["skipped"] > 0
    assert json.loads((one / "result.json").read_text())["steps"] == 24
    root = corpora(tmp_path / "cut")

    def broken() -> None:
        spoil_some_batches(7)
        kill_at_call(GPT2Module, "training_step", 20)()

    assert run(words, root, broken) == -9
    assert_same_run(one, train(words, root, lambda: spoil_some_batches(7)))


@pytest.mark.slow
def test_places_are_those_of_the_batch_that_was_used(tmp_path: Path) -> None:
    """The loader has gone ahead of training by the workers' batches; the state has not."""
    assert TrainLoader.__len__  # the trainer asks for no batch ahead where it knows the length
    folder = train([*kind_words((2, 1, 1)), "trainer.max_steps=3"], corpora(tmp_path))
    shorter = train([*kind_words((0, 1, 1)), "trainer.max_steps=3"], corpora(tmp_path / "plain"))
    assert same(last_state(folder)[0]["StreamDataModule"]["places"], last_state(shorter)[0]["StreamDataModule"]["places"])
