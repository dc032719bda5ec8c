"""Real trainings on two ranks each: one configuration on all ranks, pruning that ends both, a best that comes out again."""

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import lightning.pytorch.strategies.launchers.subprocess_script as launcher
import pytest

from gpt2_lightning import trial as _trial  # noqa: F401  loaded before the first fork
from gpt2_lightning.sweep import pool
from tests.lab import Fork, lines, play, run
from tests.sweep.stage import Stage
from tests.sweep.test_agent import storage  # noqa: F401  a fixture

WORDS = ("sweep.devices_per_trial=2", "trainer.max_steps=12", "trainer.val_every=4", "checkpoint.every=4")


class ForkedChild(subprocess.Popen):  # type: ignore[type-arg]
    """A trial as a fork of its agent, which saves it Python's start; so are its ranks."""

    def __init__(self, command: Any, env: dict[str, str], stdout: Any, **_: Any) -> None:
        words = list(command)[len(pool.COMMAND) :]
        self.returncode, self.args = None, command
        self._waitpid_lock = __import__("threading").Lock()
        self.stdin = self.stdout = self.stderr = None
        self._child_created = True
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            for descriptor in (1, 2):
                os.dup2(stdout.fileno(), descriptor)
            os.environ.clear()
            os.environ.update(env)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)

            def fork_ranks(self: Any) -> None:
                port = self.cluster_environment.main_port
                os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": "2"})
                os.environ["LOCAL_RANK"] = "0"
                self.procs = [Fork(words, rank, None) for rank in range(1, 2)]

            launcher._SubprocessScriptLauncher._call_children_scripts = fork_ranks  # type: ignore[method-assign]
            play(words, None)


def real(stage: Stage, *words: str) -> int:
    def broken() -> None:
        pool.COMMAND = ("python", "-m", "gpt2_lightning")  # type: ignore[assignment]
        pool.subprocess.Popen = ForkedChild  # type: ignore[misc]

    return stage.run(*words, broken=broken, seconds=300)


@pytest.mark.slow
def test_four_trials_of_two_ranks_each(tmp_path: Path, storage: str) -> None:  # noqa: F811
    stage = Stage(tmp_path, storage, *WORDS, "sweep.n_trials=4")
    assert real(stage) == 0, stage.said()
    stage.assert_whole(4)
    assert sorted(p.name for p in stage.study.glob("trial-*")) == [f"trial-{i:03d}" for i in range(4)]
    assert len(stage.trials()) == 4
    for root in stage.roots(4):
        config = (stage.study / root.name / "config.yaml").read_text()
        assert float(re.search(r"^  lr: (\S+)", config, re.M)[1]) == root.last.user_attrs["point"]["optimizer.lr"]  # type: ignore[index]
        assert "devices: 2" in config
        values = [line["val/cross_entropy"] for line in lines(stage.study / root.name) if "val/cross_entropy" in line]
        assert len(values) == 3 and root.outcome and root.outcome["values"] == {"val/cross_entropy": min(values)}
    reproduces_its_best(stage)


def reproduces_its_best(stage: Stage) -> None:
    """Whether best.yaml alone gives the best trial's numbers, to the bit."""
    best = next(row["trial"] for row in stage.table() if row["best"] == "1")
    assert run(["train", f"best={stage.study}", "run.name=again"], stage.folder, CUDA_VISIBLE_DEVICES="") == 0, stage.said()
    (again,) = (stage.folder / "outputs/runs/again").glob("[!.]*")
    assert lines(again) == lines(stage.study / best)


@pytest.mark.slow
def test_pruning_ends_both_ranks(tmp_path: Path) -> None:
    options = ("sweep.pruner=threshold", "sweep.pruner_options={upper: 0.1}", "sweep.n_trials=2", "trainer.max_steps=400")
    stage = Stage(tmp_path, "journal", *WORDS, *options, "sweep.baseline=false")
    assert real(stage) == 0, stage.said()
    stage.assert_whole(2, ("pruned",))
    assert all(int(row["steps"]) < 400 for row in stage.table())
    assert stage.living() == []
