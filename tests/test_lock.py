"""One run, one folder: who holds it, who may take it over, and that of many starts at once one wins."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2_lightning.errors import OutputError
from gpt2_lightning.lock import DEAD_SECONDS, Lock, living_holder, this_process
from tests.lab import finish


def hold(folder: Path) -> int:
    """A process that holds the lock until it is killed."""
    pid = os.fork()
    if pid == 0:
        Lock(folder).acquire()
        time.sleep(60)
        os._exit(0)
    while living_holder(folder) is None:
        time.sleep(0.01)
    return pid


def holder_file(folder: Path) -> Path:
    return max((folder / ".lock").glob("[0-9]*"), key=lambda path: int(path.name))


def written(folder: Path, age: float = 0.0, **changes: str | int) -> None:
    """A holder's file as another process or machine would have left it."""
    (folder / ".lock").mkdir(exist_ok=True)
    holder = {name: getattr(this_process(), name) for name in this_process().__slots__} | changes
    path = folder / ".lock" / "1"
    path.write_text(json.dumps(holder))
    os.utime(path, (time.time() - age, time.time() - age))


def test_a_living_holder_is_named_and_a_killed_one_is_taken_over(tmp_path: Path) -> None:
    pid = hold(tmp_path)
    with pytest.raises(OutputError, match=f"is held by process {pid} on ") as caught:
        Lock(tmp_path).acquire()
    assert caught.value.status == 8
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z":
        time.sleep(0.01)
    lock = Lock(tmp_path)
    lock.acquire()  # dead, though nobody has waited for it yet
    os.waitpid(pid, 0)
    assert [path.name for path in (tmp_path / ".lock").iterdir()] == ["2"]
    lock.release()
    other = hold(tmp_path)
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)


@pytest.mark.parametrize(
    ("changes", "age", "held"),
    [
        ({}, 0, False),  # this very process, as after an exec
        ({"pid": 1}, 0, False),  # a later process of the same number
        ({"pid": 2**22 + 1}, 0, False),
        ({"host": "elsewhere", "machine": "other"}, 5, True),
        ({"host": "elsewhere", "machine": "other"}, DEAD_SECONDS + 5, False),
        ({"machine": "an earlier boot"}, DEAD_SECONDS + 5, False),
        ({"machine": "other", "released": True}, 0, False),
        ({"machine": "other", "job": "77", "restart": "0"}, 0, False),  # the same Slurm job, started again
        ({"machine": "other", "job": "78", "restart": "0"}, 0, True),
    ],
)
def test_who_counts_as_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | int], age: float, held: bool
) -> None:
    written(tmp_path, age, **changes)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert (living_holder(tmp_path) is not None) == held


@pytest.mark.parametrize(
    ("squeue", "held"),
    [
        ("echo CANCELLED", False),
        ("echo FAILED; echo COMPLETED", False),
        ("echo RUNNING", True),
        ("echo FAILED; echo PENDING", True),
        ("echo NODE_FAIL", True),
        ("exit 0", True),  # as with another partition in SQUEUE_PARTITION
        ("exit 1", True),
    ],
)
def test_a_holder_elsewhere_is_dead_once_slurm_says_that_its_job_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squeue: str, held: bool
) -> None:
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n[ $4 = --jobs=78 ] || exit 1\n{squeue}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    written(tmp_path, machine="other", job="78")
    assert (living_holder(tmp_path, ask=True) is not None) == held
    assert living_holder(tmp_path) is not None  # who only looks does not ask


def test_a_file_cut_short_holds_while_it_is_fresh(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / ".lock/1").write_text("{")
    assert living_holder(tmp_path) is not None
    os.utime(tmp_path / ".lock/1", (0, 0))
    assert living_holder(tmp_path) is None


RACER = """
import sys, time
from pathlib import Path
from gpt2_lightning.errors import OutputError
from gpt2_lightning.lock import Lock
folder, start = Path(sys.argv[1]), float(sys.argv[2])
lock = Lock(folder)
time.sleep(max(0, start - time.time()))
try:
    lock.acquire()
    print("held", flush=True)
    time.sleep(3)
except OutputError:
    print("refused", flush=True)
"""


@pytest.mark.parametrize("before", ["nobody", "a dead holder", "released"])
def test_of_eight_starts_at_once_one_wins(tmp_path: Path, before: str) -> None:
    if before == "a dead holder":
        pid = hold(tmp_path)
        os.kill(pid, signal.SIGKILL)
        finish(pid)
    elif before == "released":
        lock = Lock(tmp_path)
        lock.acquire()
        lock.release()
    start = time.time() + 1.5
    words = [sys.executable, "-c", RACER, str(tmp_path), str(start)]
    racers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    assert sorted(racer.communicate()[0].strip() for racer in racers) == ["held", *["refused"] * 7]


def test_who_was_taken_over_is_told_before_it_writes(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    lock.acquire()
    lock.require()
    (tmp_path / ".lock/2").write_text(holder_file(tmp_path).read_text())
    with pytest.raises(OutputError, match="has taken it over"):
        lock.require()
    lock.release()
    assert not json.loads((tmp_path / ".lock/2").read_text())["released"]
