"""Runs and studies as jobs of a real Slurm with two nodes: cancelled, requeued or killed they are what a direct start gives."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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
LONGER = (*WORDS, "trainer.max_steps=200", "trainer.val_every=100")
KILLS = {
    "launch.nodes=2": {
        "rank 1": "error: rank 1: has ended",
        "rank 0": "error: rank 0: was ended",
        "step": "srun: Job step aborted",
    },
    "trainer.devices=2": {"rank 1": "error: rank 1: was ended by signal 9"},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if why := missing():
        pytest.skip(why)
    found = Cluster()
    try:
        yield found
    finally:
        found.remove()


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, started here."""
    return train([*WORDS, "trainer.devices=2"], tmp_path_factory.mktemp("direct"), CUDA_VISIBLE_DEVICES="")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, started here."""
    return train([*LONGER, "trainer.devices=2"], tmp_path_factory.mktemp("direct"), CUDA_VISIBLE_DEVICES="")


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
        time.sleep(0.1)
    logs = [path.read_text(errors="replace")[-3000:] for path in (folder / "outputs").rglob("slurm/*.log")]
    raise TimeoutError("\n".join([*cluster.jobs(), *logs, cluster.logs()]))


def said(folder: Path, job: str) -> str:
    path = folder / f"outputs/slurm/{job}.log"
    return path.read_text(errors="replace") if path.exists() else ""


def living(folder: Path) -> dict[int, str]:
    """Processes of this package's commands that work in a folder: what they are, a rank of Slurm's or of ours, or else."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == folder and b"gpt2_lightning" in (process / "cmdline").read_bytes():
                env = dict(line.partition("=")[::2] for line in (process / "environ").read_text().split("\0"))
                rank = env.get("SLURM_PROCID" if "SLURM_STEP_NUM_TASKS" in env else "LOCAL_RANK")
                words = (process / "cmdline").read_text().replace("\0", " ")
                found[int(process.name)] = f"rank {rank}" if rank else words
    return found


def step(folder: Path) -> int:
    """How far the run of a folder has come, as it says itself."""
    found = list((folder / "outputs/runs/r").glob("[!.]*/metrics.jsonl"))
    return max((line["step"] for path in found for line in lines(path.parent)), default=0)


def run_of(folder: Path) -> Path:
    (found,) = (folder / "outputs/runs/r").glob("[!.]*")
    return found


@pytest.mark.parametrize("where", ["launch.nodes=2", "trainer.devices=2"])
def test_a_run_on_two_nodes_or_on_two_devices_of_one_is_the_run_of_two_ranks_here(
    cluster: Cluster, short: Path, tmp_path: Path, where: str
) -> None:
    job = submit(cluster, tmp_path, *WORDS, where)
    wait_for(cluster, tmp_path, lambda: cluster.state(job) == "COMPLETED")
    assert_same_run(short, run_of(tmp_path))
    assert said(tmp_path, job).count("best validation") == 1
    assert living(tmp_path) == {}


def test_a_run_that_is_requeued_twice_is_the_undisturbed_one(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, *LONGER, "launch.nodes=2")
    wait_for(cluster, tmp_path, lambda: step(tmp_path) >= 20)
    cluster.said("scancel", "--signal=USR1", job)  # as Slurm does before the time is over
    wait_for(cluster, tmp_path, lambda: REQUEUED in said(tmp_path, job))
    saved = step(tmp_path)
    wait_for(cluster, tmp_path, lambda: step(tmp_path) >= saved + 20)
    cluster.said("scontrol", "requeue", job)  # as Slurm does for a job of more weight
    wait_for(cluster, tmp_path, lambda: cluster.state(job) == "COMPLETED")
    assert_same_run(undisturbed, run_of(tmp_path))
    log = said(tmp_path, job)
    assert log.count("starts from the beginning") == 1 and log.count("goes on from step-") == 2
    assert log.count("is saved, the same command goes on from it") == 2
    assert living(tmp_path) == {}


@pytest.mark.parametrize("where", KILLS)
def test_a_rank_that_is_killed_ends_the_job_and_the_same_command_goes_on(
    cluster: Cluster, undisturbed: Path, tmp_path: Path, where: str
) -> None:
    for whom, reason in KILLS[where].items():
        assert reason in broken_off(cluster, tmp_path, whom, where)
        elsewhere(run_of(tmp_path))
    job = submit(cluster, tmp_path, *LONGER, where)
    wait_for(cluster, tmp_path, lambda: cluster.state(job) == "COMPLETED")
    assert_same_run(undisturbed, run_of(tmp_path))
    assert said(tmp_path, job).count("goes on from step-") == 1 and living(tmp_path) == {}


def broken_off(cluster: Cluster, folder: Path, whom: str, where: str) -> str:
    """Submit the run, kill a rank or cancel the step in the middle of it, and return what the job says."""
    before = step(folder)
    job = submit(cluster, folder, *LONGER, where)
    wait_for(cluster, folder, lambda: step(folder) >= before + 20)
    process = next((process for process, what in living(folder).items() if what == whom), None)
    begin = time.monotonic()
    os.kill(process, signal.SIGKILL) if process else cluster.said("scancel", f"{job}.0")
    wait_for(cluster, folder, lambda: not living(folder), 30)
    gone = time.monotonic() - begin
    wait_for(cluster, folder, lambda: cluster.state(job) == "FAILED", 30)
    print(f"{whom}, {where}: no process is left after {gone:.1f} s, the job is over after {time.monotonic() - begin:.1f} s")
    return said(folder, job)


def elsewhere(run: Path) -> None:
    """Have the lock's holder be a process of another machine, as the nodes of a real cluster are."""
    (path,) = (run / ".lock").glob("[0-9]*")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "elsewhere"}))


@pytest.mark.postgres
def test_agents_that_are_cancelled_and_requeued_make_the_undisturbed_study(
    cluster: Cluster,
    tmp_path: Path,
    postgres: Postgres,  # noqa: F811
) -> None:
    words = ("trainer.max_steps=40", "sweep.n_trials=3", "sweep.lease_seconds=20")
    stage = Stage(tmp_path / "slurm", postgres.fresh_database(), *words)
    more = ("sweep.agents=2", f"sweep.storage={stage.storage}")
    job = submit(cluster, stage.folder, *stage.words, *more)
    wait_for(cluster, stage.folder, lambda: len(running(stage)) == 2)
    cluster.said("scancel", f"{job}_1")
    cluster.said("scancel", "--batch", "--signal=USR1", f"{job}_0")  # as Slurm does before the time is over
    direct = Stage(tmp_path / "direct", "journal", *words)
    assert real(direct) == 0, direct.said()
    wait_for(cluster, stage.folder, lambda: cluster.state(f"{job}_0") == "COMPLETED")
    stage.assert_whole(3)
    assert stage.values(3) == direct.values(3)
    logs = {n: said(stage.folder, f"{job}_{n}") for n in (0, 1)}
    assert logs[0].count("study study goes on") == 2 and REQUEUED in logs[0]
    assert all(log.count("ending: each trial saves a checkpoint") == 1 for log in logs.values())
    assert living(stage.folder) == {}
    secrets = (PASSWORD.encode(), quote(PASSWORD, safe="").encode())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if any(secret in path.read_bytes() for secret in secrets)]


def running(stage: Stage) -> list[Path]:
    """Trials that have begun and have no result."""
    return [path.parent for path in stage.study.glob("trial-*/metrics.jsonl") if not (path.parent / "result.json").exists()]
