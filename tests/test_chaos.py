"""The laws of ``test_resume`` by the hundred: ``pytest -m chaos -s`` prints the faults, the losses and the most work lost."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from gpt2_lightning import checkpoint
from gpt2_lightning.checkpoint import checkpoints, newest_verified, read_manifest
from gpt2_lightning.module import GPT2Module
from tests.lab import assert_same_run, finish, kill_at_call, last_state, leftovers, lines, only_run, run, start, train
from tests.test_checkpoint import FAULTS, FaultyDisk
from tests.test_resume import (
    EVERY,
    STEPS,
    WORDS,
    Kind,
    assert_each_batch_once,
    assert_same_losses,
    corpora,
    cut_and_resume,
    kind_words,
    stop_at_nan,
    whole_run,
)

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(7200)]

KINDS = [(workers, ranks, accumulate) for accumulate in (1, 4) for ranks in (1, 2) for workers in (0, 2)]
CUTS, KILLS, SIGNALS = (int(os.environ.get(f"CHAOS_{name}", n)) for name, n in (("CUTS", 20), ("KILLS", 200), ("SIGNALS", 30)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"workers{kind[0]}-ranks{kind[1]}-accumulate{kind[2]}")
def test_cuts(tmp_path: Path, kind: Kind) -> None:
    """Every cut run equals the whole one, each sample exactly once, also when it goes on with other workers."""
    chance = random.Random(repr(kind))
    whole = whole_run(tmp_path / "whole", kind)
    for n in range(CUTS):
        call, rank = chance.randrange(1, STEPS * kind[2] + 1), chance.randrange(kind[1])
        resumed = (2 - kind[0], *kind[1:]) if n % 3 == 2 else kind
        cut = cut_and_resume(tmp_path / f"cut{n}", kind, call, rank, resumed)
        assert_same_run(whole, cut)
        assert_each_batch_once(whole, cut)
        assert leftovers(cut) == []
    print(f"\n{CUTS} cuts of {kind}: all losses, weights, optimizer and random states equal; {final(whole)}")


def final(folder: Path) -> str:
    rows = [row for row in lines(folder) if "val/cross_entropy" in row]
    return f"final val/cross_entropy {rows[-1]['val/cross_entropy']:.6f}"


@pytest.mark.parametrize("tmpdir", ["", "/dev/shm"])
def test_kills(tmp_path: Path, tmpdir: str) -> None:
    """Killed at random times, some of them in the midst of a save, five and more kills a run: nothing is ever lost."""
    words = [*WORDS, "checkpoint.every=2", "trainer.max_steps=60", "trainer.val_every=20"]
    whole = train(words, corpora(tmp_path / "whole"))
    chance, env = random.Random(1), {"TMPDIR": tmpdir} if tmpdir else {}
    kills = runs = lost = most = in_saves = 0
    while kills < KILLS:
        root, runs, status = corpora(tmp_path / f"run{runs}"), runs + 1, -9
        reached = saved = 0
        while status == -9:
            pid = start(words, root, **env)
            quick = kills < KILLS and not (reached >= 50 and chance.random() < 0.5)
            time.sleep(chance.uniform(0.2, 2.0)) if quick else None
            if quick:
                os.kill(pid, signal.SIGKILL)
            status = finish(pid)
            kills += status == -9
            run_folders = list(root.glob("outputs/runs/run/[!.]*"))
            assert len(run_folders) <= 1
            if status == -9 and run_folders:
                reached = max([reached, *(row["step"] for row in whole_lines(run_folders[0]))])
                in_saves += bool(list(run_folders[0].glob("checkpoints/.step-*")))
                newest, faults = newest_verified(run_folders[0] / "checkpoints")
                assert faults == []
                assert newest is not None or saved == 0
                now = read_manifest(newest)["step"] if newest else 0
                assert now >= saved
                saved = now
                lost += max(0, reached - saved)
                most = max(most, reached - saved)
                assert reached - saved <= 2 + 2  # an interval, and what is logged before it is saved
        assert status == 0, (root / "log").read_text()[-2000:]
        assert_same_run(whole, only_run(root))
        assert leftovers(only_run(root)) == []
    print(f"\n{kills} kills in {runs} runs, {in_saves} of them within a save, TMPDIR={tmpdir or 'as it is'}: "
          f"most work lost {most} steps (saved every 2), {lost} in all; {final(whole)}")  # fmt: skip


def whole_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a killed run, of which the last may have been cut."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_within_runs(tmp_path: Path, fault: str) -> None:
    """A fault at every operation of the third save and its pruning."""
    whole = train(WORDS, corpora(tmp_path / "whole"))
    ended: dict[int, int] = {}
    for at in range(37, 61):
        root = corpora(tmp_path / f"at{at}")
        status = run(WORDS, root, lambda at=at: setattr(checkpoint, "disk", FaultyDisk(at, fault)))  # type: ignore[misc]
        assert newest_verified(only_run(root) / "checkpoints")[1] == []
        assert len(checkpoints(only_run(root) / "checkpoints")) >= 2
        ended[status] = ended.get(status, 0) + 1
        if status != 0:
            train(WORDS, root)
        assert_same_run(whole, only_run(root))
        assert leftovers(only_run(root)) == []
    print(f"\n24 operations x {fault}: exit statuses {ended}, all ended like the whole run")


@pytest.mark.parametrize("file", ["state.ckpt", "model.safetensors", "manifest.json"])
def test_flips_within_runs(tmp_path: Path, file: str) -> None:
    """A flipped byte of the newest checkpoint is noticed and said, and the run falls back and finishes."""
    chance = random.Random(file)
    whole = train(WORDS, corpora(tmp_path / "whole"))
    root = corpora(tmp_path / "cut")
    assert run(WORDS, root, kill_at_call(GPT2Module, "training_step", 8)) == -9
    for n in range(50):
        other = tmp_path / f"flip{n}"
        subprocess.run(["cp", "-r", str(root), str(other)], check=True)
        path = checkpoints(only_run(other) / "checkpoints")[0] / file
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        cut = train(WORDS, other)
        assert f"{file}): is damaged" in (other / "log").read_text()
        assert_same_run(whole, cut)
    print(f"\n50 flips of {file}: all noticed, all runs ended like the whole one")


def is_gone(group: int, seconds: float = 10.0) -> bool:
    """Whether no rank and no worker outlives its run."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("ranks", [1, 2])
def test_signals(tmp_path: Path, ranks: int) -> None:
    """Signals at random times: the right status, a checkpoint within 5 s, and an exact resume."""
    kind = (2, ranks, 1)
    words = [*kind_words(kind), "trainer.max_steps=200", "trainer.val_every=50", "checkpoint.every=50"]
    whole = train(words, corpora(tmp_path / "whole"))
    chance, slowest, counts = random.Random(ranks), 0.0, {130: 0, 143: 0, 0: 0}
    for n in range(SIGNALS // 2):
        root = corpora(tmp_path / f"run{n}")
        number, status = chance.choice([(signal.SIGINT, 130), (signal.SIGTERM, 143)])
        pid = start(words, root)
        time.sleep(chance.uniform(0.2, 3.0))
        os.killpg(pid, number) if chance.random() < 0.5 else os.kill(pid, number)
        began = time.monotonic()
        found = finish(pid)
        slowest = max(slowest, time.monotonic() - began)
        assert found in (status, 0, -number), (root / "log").read_text()[-3000:]
        assert found != 0 or (only_run(root) / "result.json").exists()
        counts[abs(found) if found >= 0 else 128 - found] += 1
        assert is_gone(pid)
        assert "Traceback" not in (root / "log").read_text(), (root / "log").read_text()
        if found != 0:
            train(words, root)
        assert_same_losses(whole, only_run(root))
        assert leftovers(only_run(root)) == []
    assert slowest < 5
    print(f"\n{SIGNALS // 2} signals to {ranks} rank(s): exit statuses {counts}, slowest end {slowest:.2f} s; {final(whole)}")


def test_nans(tmp_path: Path) -> None:
    """In the loss or a gradient of any step, on any rank: the weights at exit are those of the step before."""
    chance = random.Random(0)
    for n in range(12):
        kind, what = chance.choice(KINDS), chance.choice(["loss", "gradient"])
        stop_at_nan(tmp_path / f"run{n}", kind, what, chance.randrange(2, 12), chance.randrange(kind[1]))
    print("\n12 numbers that are none: exit 6 each time, weights as after the step before")
    assert EVERY and last_state
