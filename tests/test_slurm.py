"""Runs and studies as jobs of a real Slurm with two nodes: cancelled and requeued too they give what a direct start gives."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.lab import NANO, assert_same_run, lines, train
from tests.slurm import Cluster, missing
from tests.sweep.conftest import postgres  # noqa: F401  a fixture
from tests.sweep.postgres import PASSWORD, Postgres
from tests.sweep.stage import Stage
from tests.sweep.test_real import real

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
REQUEUED = "DUE TO JOB REQUEUE"
WORDS = (*NANO, "run.name=r", "trainer.max_steps=20", "trainer.val_every=10", "trainer.log_every=5", "checkpoint.every=10")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if why := missing():
        pytest.skip(why)
    found = Cluster()
    try:
        yield found
    finally:
        found.remove()


def submit(cluster: Cluster, folder: Path, *words: str, **env: str) -> str:
    """The number of the job."""
    folder.mkdir(exist_ok=True)
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **cluster.env, **env}
    done = subprocess.run(
        [sys.executable, "-m", "gpt2_lightning", "train", *words, "launch=slurm"],
        cwd=folder, env=os.environ | own, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    found = re.search(r"^submitted job (\d+), ", done.stdout)
    assert done.returncode == 0 and found, done.stdout + done.stderr
    return found[1]


def wait_for(cluster: Cluster, folder: Path, what: Callable[[], Any], seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.3)
    logs = [path.read_text(errors="replace")[-3000:] for path in (folder / "outputs").rglob("slurm/*.log")]
    raise TimeoutError("\n".join([*cluster.jobs(), *logs, cluster.logs()]))


def hasten(cluster: Cluster, folder: Path, job: str) -> None:
    """Have a job that is requeued start as soon as its last start is over; Slurm by itself lets two minutes pass."""
    wait_for(cluster, folder, lambda: cluster.state(job) == "PENDING" and not living(folder))
    time.sleep(3)  # for what slurmd still has to do; a job that it launches too early fails
    cluster.said("scontrol", "update", f"JobId={job}", "StartTime=now")


def said(folder: Path, job: str) -> str:
    path = folder / f"outputs/slurm/{job}.log"
    return path.read_text(errors="replace") if path.exists() else ""


def living(folder: Path) -> list[str]:
    """Processes of a Python that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder and b"gpt2_lightning" in (process / "cmdline").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def step(folder: Path) -> int:
    """How far the run of a folder has come, as it says itself."""
    found = list((folder / "outputs/runs/r").glob("[!.]*/metrics.jsonl"))
    return max((line["step"] for path in found for line in lines(path.parent)), default=0)


def run_of(folder: Path) -> Path:
    (found,) = (folder / "outputs/runs/r").glob("[!.]*")
    return found


def test_a_run_on_two_nodes_is_the_run_of_two_ranks_here(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path / "slurm", *WORDS, "launch.nodes=2")
    direct = train([*WORDS, "trainer.devices=2"], tmp_path / "direct", CUDA_VISIBLE_DEVICES="")
    wait_for(cluster, tmp_path / "slurm", lambda: cluster.state(job) == "COMPLETED")
    assert_same_run(direct, run_of(tmp_path / "slurm"))
    assert "best validation" in said(tmp_path / "slurm", job)
    assert living(tmp_path / "slurm") == []


def test_a_run_that_is_requeued_twice_is_the_undisturbed_one(cluster: Cluster, tmp_path: Path) -> None:
    folder, longer = tmp_path / "slurm", [*WORDS, "trainer.max_steps=300", "trainer.val_every=100"]
    job = submit(cluster, folder, *longer, "launch.nodes=2")
    wait_for(cluster, folder, lambda: step(folder) >= 20)
    cluster.said("scancel", "--signal=USR1", job)  # as Slurm does before the time is over
    wait_for(cluster, folder, lambda: REQUEUED in said(folder, job))
    saved = step(folder)
    hasten(cluster, folder, job)
    wait_for(cluster, folder, lambda: step(folder) >= saved + 20)
    cluster.said("scontrol", "requeue", job)  # as Slurm does for a job of more weight
    hasten(cluster, folder, job)
    direct = train([*longer, "trainer.devices=2"], tmp_path / "direct", CUDA_VISIBLE_DEVICES="")
    wait_for(cluster, folder, lambda: cluster.state(job) == "COMPLETED")
    assert_same_run(direct, run_of(folder))
    log = said(folder, job)
    assert log.count("starts from the beginning") == 1 and log.count("goes on from step-") == 2
    assert log.count("is saved, the same command goes on from it") == 2
    assert living(folder) == []


@pytest.mark.postgres
def test_agents_that_are_cancelled_and_requeued_make_the_undisturbed_study(
    cluster: Cluster,
    tmp_path: Path,
    postgres: Postgres,  # noqa: F811
) -> None:
    words = ("trainer.max_steps=40", "sweep.n_trials=5", "sweep.lease_seconds=20")
    stage = Stage(tmp_path / "slurm", postgres.fresh_database(), *words)
    more = ("sweep.agents=2", f"sweep.storage={stage.storage}")
    job = submit(cluster, stage.folder, *stage.words, *more)
    wait_for(cluster, stage.folder, lambda: len(running(stage)) == 2)
    cluster.said("scancel", f"{job}_1")
    cluster.said("scancel", "--batch", "--signal=USR1", f"{job}_0")  # as Slurm does before the time is over
    direct = Stage(tmp_path / "direct", "journal", *words)
    hasten(cluster, stage.folder, f"{job}_0")
    assert real(direct) == 0, direct.said()
    wait_for(cluster, stage.folder, lambda: cluster.state(f"{job}_0") == "COMPLETED")
    stage.assert_whole(5)
    assert stage.values(5) == direct.values(5)
    logs = {n: said(stage.folder, f"{job}_{n}") for n in (0, 1)}
    assert logs[0].count("study study goes on") == 2 and REQUEUED in logs[0]
    assert all(log.count("ending: each trial saves a checkpoint") == 1 for log in logs.values())
    assert living(stage.folder) == []
    secrets = (PASSWORD.encode(), quote(PASSWORD, safe="").encode())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if any(secret in path.read_bytes() for secret in secrets)]


def running(stage: Stage) -> list[Path]:
    """Trials that have begun and have no result."""
    return [path.parent for path in stage.study.glob("trial-*/metrics.jsonl") if not (path.parent / "result.json").exists()]
