"""Real trainings on two ranks each: one configuration on all ranks, pruning that ends both, a best that comes out again."""

import re
from pathlib import Path

import pytest

from gpt2_lightning.sweep import pool
from tests.lab import fork_trials, lines, run
from tests.sweep.stage import Stage
from tests.sweep.test_agent import storage  # noqa: F401  a fixture

WORDS = ("sweep.devices_per_trial=2", "trainer.max_steps=12", "trainer.val_every=4", "checkpoint.every=4")


def real(stage: Stage, *words: str) -> int:
    def broken() -> None:
        pool.COMMAND = ("python", "-m", "gpt2_lightning")  # type: ignore[assignment]
        fork_trials()

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
