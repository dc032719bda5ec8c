"""What would end a command on a GPU, as far as it can be told without one: tensors of two devices that meet."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2_lightning import trial
from gpt2_lightning.config import compose_config
from gpt2_lightning.module import GPT2Module
from gpt2_lightning.trained import find_run
from tests.lab import assert_same_run, kill_at_call, lines, run, train
from tests.pretend import pretend
from tests.test_resume import corpora

GPU = "trainer.accelerator=gpu"
RUN = ["model=nano", "trainer.precision=32-true", "data.batch_size=4", "data.val_batches=2", "trainer.max_steps=6",
       "trainer.val_every=3", "trainer.log_every=2", "checkpoint.every=2", "samples.max_new_tokens=3"]  # fmt: skip
KINDS = {
    "muon": ["optimizer=muon", "loss.beta=0.01", "trainer.accumulate=2", "trainer.clip=0.5"],
    "mixture": ["data=mix", "augment=all", "data.workers=1", "board.histograms_every=3", "board.attention_entropy=true"],
    "sgd": ["optimizer=sgd", "model.document_mask=true", "model.attention_window=16", "trainer.on_spike=skip"],
    "adafactor": ["optimizer=adafactor", "trainer.on_nonfinite=rewind", "model.norm=post"],
}
RECORDS = ["task=classification", "task.labels=[ham,spam]", "task.head=last_token", "task.eval_records=6", "data=spam",
           "data.tokenizer=bytes", "model.block_size=64", "model.n_layer=1", "trainer.max_steps=3"]  # fmt: skip


def close(a: Any, b: Any) -> bool:
    return a == pytest.approx(b, rel=2e-3, abs=1e-5) if isinstance(a, float) else a == b


def assert_same_numbers(one: Path, other: Path) -> None:
    for a, b in zip(lines(one), lines(other), strict=True):
        assert a.keys() == b.keys()
        assert all(close(a[key], b[key]) for key in a), (a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_that_of_a_cpu_and_goes_on_where_it_was_killed(tmp_path: Path, kind: str) -> None:
    for name in ("cpu", "gpu", "cut"):
        corpora(tmp_path / name)
    words = [*RUN, *KINDS[kind]]
    on_cpu = train([*words, "trainer.accelerator=cpu"], tmp_path / "cpu")
    on_gpu = train([*words, GPU], tmp_path / "gpu", pretend)
    assert_same_numbers(on_cpu, on_gpu)

    def killed() -> None:
        pretend()
        kill_at_call(GPT2Module, "training_step", 5)()

    assert run([*words, GPU], tmp_path / "cut", killed) == -9
    assert_same_run(on_gpu, train([*words, GPU], tmp_path / "cut", pretend))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("trained")
    train([*RUN, "run.name=r", "trainer.accelerator=cpu"], folder, CUDA_VISIBLE_DEVICES="")
    return folder


@pytest.mark.parametrize("words", [["sampler=greedy"], ["sampler=rank_threshold", "n=2"], ["sampler=beam", "n=2"]])
def test_generate_writes_there_what_it_writes_on_a_cpu(trained: Path, tmp_path: Path, words: list[str]) -> None:
    asked = ["generate", f"run={trained}/outputs/runs/r", "prompt=hello", "max_new_tokens=70", "sampler.k=4", *words]
    assert run([*asked, "accelerator=cpu"], tmp_path, log="cpu") == 0
    assert run(asked, tmp_path, pretend, log="gpu", errors="errors") == 0, (tmp_path / "errors").read_text()
    assert (tmp_path / "gpu").read_text() == (tmp_path / "cpu").read_text()
    uncaptured = "cannot be captured as a CUDA graph" in (tmp_path / "errors").read_text()  # for no graph is pretended
    assert uncaptured == ("sampler=beam" not in words)
    assert run([*asked, "step=fixed"], tmp_path, pretend) == (7 if uncaptured else 2)


def test_a_run_is_judged_there_as_on_a_cpu(trained: Path, tmp_path: Path) -> None:
    asked = ["evaluate", f"run={trained}/outputs/runs/r", "limit=2"]
    figures = []
    for accelerator, broken in (("cpu", None), ("auto", pretend)):
        assert run([*asked, f"accelerator={accelerator}", "out=out.json"], tmp_path, broken) == 0, (
            tmp_path / "log"
        ).read_text()
        figures.append(json.loads((tmp_path / "out.json").read_text())["figures"])
    (one,), (other,) = (found.values() for found in figures)
    assert all(close(one[name], other[name]) for name in one)


def test_candidates_of_a_trial_are_scored_there(trained: Path, tmp_path: Path) -> None:
    def scored(accelerator: str) -> Callable[[], None]:
        def broken() -> None:
            if accelerator == "gpu":
                pretend()
            config = compose_config([*RUN, f"trainer.accelerator={accelerator}"])
            asked = {"candidates": [{}], "samplers": [{"k": 1}], "rows": 3, "tokens": 4}
            found = trial.score_candidates(config, find_run(str(trained / "outputs/runs/r"), tmp_path), asked)
            Path(accelerator).write_text(json.dumps(found))
            os._exit(0)

        return broken

    assert run([], tmp_path, scored("cpu")) == 0 and run([], tmp_path, scored("gpu")) == 0, (tmp_path / "log").read_text()
    one, other = (json.loads((tmp_path / name).read_text())[0]["measures"] for name in ("cpu", "gpu"))
    assert one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)


def test_a_task_is_judged_there(tmp_path: Path) -> None:
    rows = [{"text": f"a letter, number {i}", "label": ("ham", "spam")[i % 2]} for i in range(60)]
    for place in ("cpu", "gpu"):
        (tmp_path / place / "outputs/data").mkdir(parents=True)
        for part in ("train", "test"):
            path = tmp_path / place / f"outputs/data/spam_{part}.jsonl"
            path.write_text("\n".join(map(json.dumps, rows)))
    on_cpu = train([*RUN, *RECORDS, "trainer.accelerator=cpu"], tmp_path / "cpu")
    assert "task/label_nats" in lines(on_cpu)[-1]
    assert_same_numbers(on_cpu, train([*RUN, *RECORDS, GPU], tmp_path / "gpu", pretend))


def test_tensors_of_two_devices_do_not_meet(tmp_path: Path) -> None:
    def broken() -> None:
        pretend()
        there = torch.ones(3, device="cuda")
        assert there.device == torch.device("cuda", 0) and there.is_cuda and (there + torch.tensor(1.0)).tolist() == [2.0] * 3
        for mixed in (lambda: torch.stack([there.sum(), torch.tensor(3.0)]), lambda: there + torch.ones(3)):
            with pytest.raises(RuntimeError, match="on the same device"):
                mixed()
        os._exit(0)

    assert run([], tmp_path, broken) == 0, (tmp_path / "log").read_text()


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert run(["generate", "run=r", "prompt=a", "accelerator=gpu"], tmp_path) == 7
    assert run(["generate", "run=r", "prompt=a", "accelerator=tpu"], tmp_path) == 2
    assert "must be one of auto, cpu, gpu" in (tmp_path / "log").read_text()
