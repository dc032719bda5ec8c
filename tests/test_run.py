"""A run from its command to its files: what is written, that it is repeatable, that it learns, that ranks agree."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt2_lightning.config import load_config
from gpt2_lightning.sweep.outcome import broken_by
from tests.conftest import Command

NANO = ("model=nano", "trainer=cpu", "data.batch_size=4", "data.val_batches=4", "samples.max_new_tokens=20")
TIMES = ("speed/",)


def folder(root: Path, name: str = "run") -> Path:
    """The only folder of that run's name."""
    (found,) = (root / "outputs/runs" / name).iterdir()
    return found


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_times(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if not k.startswith(TIMES)} for line in lines(run)]


def train(command: Command, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    done = command(*NANO, *words, **env)
    assert done.returncode == 0, done.stderr
    return done


def test_a_run_leaves_what_it_promises(command: Command, tmp_path: Path) -> None:
    done = train(command, "trainer.max_steps=7", "trainer.val_every=3", "trainer.log_every=2", "loss.beta=0.01")
    run = folder(tmp_path)
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.jsonl", "result.json", "samples.txt", "checkpoints", "tensorboard", ".lock",
    }  # fmt: skip
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000006", "step-00000007"]
    files = {path.name for path in (run / "checkpoints/step-00000007").iterdir()}
    assert files == {"manifest.json", "model.safetensors", "state.ckpt"}
    rows = lines(run)
    assert [row["step"] for row in rows if "train/loss" in row] == [2, 4, 6, 7]
    assert [row["step"] for row in rows if "val/cross_entropy" in row] == [3, 6, 7]
    assert all(row["tokens"] == row["step"] * 4 * 64 for row in rows)
    training = rows[0]
    assert set(training) == {
        "step", "tokens", "train/cross_entropy", "train/penalty", "train/loss", "train/shakespeare/cross_entropy",
        "data/shakespeare/share", "optimizer/learning_rate",
        "optimizer/gradient_norm", "optimizer/parameter_norm", "optimizer/update_norm", "speed/tokens_per_second",
        "speed/data_wait", "speed/peak_memory",
    }  # fmt: skip
    assert training["train/loss"] == pytest.approx(training["train/cross_entropy"] + training["train/penalty"], rel=1e-6)
    assert training["train/penalty"] == pytest.approx(0.01 * training["optimizer/parameter_norm"], rel=1e-3)
    result = json.loads((run / "result.json").read_text())
    assert (result["state"], result["steps"], result["tokens"]) == ("finished", 7, 7 * 256)
    assert result["last"]["val/cross_entropy"] == rows[-1]["val/cross_entropy"]
    assert result["best"]["val/cross_entropy"] == min(row["val/cross_entropy"] for row in rows if "val/cross_entropy" in row)
    weights = load_file(run / "checkpoints/step-00000007/model.safetensors")
    assert result["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert broken_by(run, {"parameters": result["parameters"] - 5.0})["parameters"] == 5
    assert load_config(str(run / "config.yaml"), []).loss.beta == 0.01
    for word in ("best validation", "generate run=run", "tensorboard --logdir outputs", "config.yaml"):
        assert word in done.stdout
    assert "step 2/7" in done.stderr


def test_what_is_generated_is_measured_at_each_validation_and_leaves_training_alone(command: Command, tmp_path: Path) -> None:
    steps = ("trainer.max_steps=6", "trainer.val_every=3", "trainer.log_every=1")
    measured = ("samples.measure=3", "samples.at_validation=true", "model.dropout=0.1")
    train(command, *steps, "model.dropout=0.1", "run.id=plain")
    train(command, *steps, *measured, "run.id=measured")
    train(command, *steps, *measured, "sampler=beam", "sampler.beams=2", "run.id=beams")
    plain, rows, beams = (without_times(tmp_path / "outputs/runs/run" / name) for name in ("plain", "measured", "beams"))
    assert [{k: v for k, v in row.items() if not k.startswith("generation/")} for row in rows] == plain
    validations = [row for row in rows if "val/loss" in row or "val/cross_entropy" in row]
    for row in validations:
        assert row["generation/sampled_entropy"] < row["generation/entropy"] < 5.6
        assert row["generation/length"] == row["generation/human/length"] == 20
        gap = abs(math.log(row["generation/perplexity"] / row["generation/human/perplexity"]))
        assert row["generation/perplexity_gap"] == pytest.approx(gap, rel=1e-6)
    human = {k: v for k, v in validations[-1].items() if "/human/" in k}
    assert human and human == {k: v for k, v in beams[-1].items() if "/human/" in k}
    assert beams[-1]["generation/perplexity"] < validations[-1]["generation/perplexity"]
    board = EventAccumulator(str(tmp_path / "outputs/runs/run/measured/tensorboard")).Reload()
    (tag,) = (tag for tag in board.Tags()["tensors"] if "samples" in tag)
    assert [event.step for event in board.Tensors(tag)] == [3, 6, 6]


def test_tensorboard_holds_what_metrics_jsonl_holds(command: Command, tmp_path: Path) -> None:
    train(command, "trainer.max_steps=4", "trainer.val_every=2", "trainer.log_every=1")
    run = folder(tmp_path)
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    for name in board.Tags()["scalars"]:
        expected = [(row["step"], row[name]) for row in lines(run) if name in row]
        assert [event.step for event in board.Scalars(name)] == [step for step, _ in expected]
        assert [event.value for event in board.Scalars(name)] == pytest.approx([value for _, value in expected], rel=1e-6)
    assert "val/cross_entropy" in board.Tags()["scalars"]
    assert any("samples" in tag for tag in board.Tags()["tensors"])


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(command: Command, tmp_path: Path) -> None:
    common = ("model.dropout=0.1", "trainer.max_steps=6", "trainer.val_every=3", "trainer.log_every=1")
    for run_id, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(command, *common, f"run.id={run_id}", f"seed={seed}")
    runs = {name: without_times(tmp_path / "outputs/runs/run" / name) for name in "abc"}
    assert runs["a"] == runs["b"]
    assert runs["a"] != runs["c"]


def test_beta_zero_is_plain_training_bit_for_bit_and_beta_is_not(command: Command, tmp_path: Path) -> None:
    for run_id, words in (("none", []), ("zero", ["loss=penalised", "loss.beta=0"]), ("some", ["loss.beta=0.1"])):
        train(command, "trainer.max_steps=3", "trainer.val_every=3", f"run.id={run_id}", *words)
    runs = tmp_path / "outputs/runs/run"
    weights = {n: load_file(runs / n / "checkpoints/step-00000003/model.safetensors") for n in ("none", "zero", "some")}
    assert all(torch.equal(a, b) for a, b in zip(weights["none"].values(), weights["zero"].values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights["none"].values(), weights["some"].values(), strict=True))


def test_accumulation_equals_the_larger_batch(command: Command, tmp_path: Path) -> None:
    common = ("trainer.max_steps=5", "trainer.val_every=5", "trainer.log_every=1", "loss.beta=0.1")
    train(command, *common, "run.id=whole")
    train(command, *common, "run.id=parts", "data.batch_size=2", "trainer.accumulate=2", "data.val_batches=8")
    whole, parts = (without_times(tmp_path / "outputs/runs/run" / name) for name in ("whole", "parts"))
    for a, b in zip(whole, parts, strict=True):
        assert a == pytest.approx(b, rel=2e-4, abs=1e-6)


def test_two_ranks_equal_one(command: Command, tmp_path: Path) -> None:
    common = ("trainer.max_steps=5", "trainer.val_every=5", "trainer.log_every=1", "loss.beta=0.1")
    train(command, *common, "run.id=one")
    train(command, *common, "run.id=two", "data.batch_size=2", "trainer.devices=2", "data.val_batches=8")
    assert sorted(path.name for path in (tmp_path / "outputs/runs/run").iterdir()) == ["one", "two"]
    one, two = (without_times(tmp_path / "outputs/runs/run" / name) for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "adafactor", "muon"])
def test_every_optimizer_overfits_one_batch(command: Command, tmp_path: Path, optimizer: str) -> None:
    train(command, "debug=overfit", f"optimizer={optimizer}", "samples.max_new_tokens=0", "checkpoint.save=false")
    losses = [row["train/cross_entropy"] for row in lines(folder(tmp_path)) if "train/cross_entropy" in row]
    assert losses[0] > 2
    assert losses[-1] < 0.1


MIX = """tokenizer: bytes
corpora:
  plays: {path: "bundled:shakespeare.jsonl"}
  noise: {path: noise.txt, split: line}
"""


def mixed(root: Path) -> None:
    """A mixture in the folder's own conf: the plays, and a corpus that has nothing to learn but its letters."""
    random = torch.Generator().manual_seed(0)
    lines = ["".join("abcd"[i] for i in torch.randint(4, (4000,), generator=random).tolist()) for _ in range(40)]
    (root / "noise.txt").write_text("\n".join(lines))
    (root / "conf/data").mkdir(parents=True)
    (root / "conf/data/mix.yaml").write_text(MIX)


def test_the_loss_of_each_corpus_is_logged_apart_and_can_be_weighted(command: Command, tmp_path: Path) -> None:
    mixed(tmp_path)
    common = (
        "data=mix",
        "data.batch_size=16",
        "trainer.max_steps=80",
        "trainer.val_every=80",
        "trainer.log_every=20",
        "augment=reverse",
    )
    train(command, *common, "run.id=even")
    train(command, *common, "run.id=plays", "data.corpora.noise.loss_weight=0")
    even, plays = (lines(tmp_path / "outputs/runs/run" / name) for name in ("even", "plays"))
    for row in even[:-1]:
        shares = [row[f"data/{name}/share"] for name in ("plays", "noise")]
        losses = [row[f"train/{name}/cross_entropy"] for name in ("plays", "noise")]
        assert sum(shares) == pytest.approx(1)
        assert sum(s * x for s, x in zip(shares, losses, strict=True)) == pytest.approx(row["train/cross_entropy"], rel=1e-5)
    assert 0.1 < even[0]["augment/reverse/share"] < 0.9  # of the first 16 documents, at p = 0.5
    assert even[-1]["val/noise/cross_entropy"] < 2 < even[-1]["val/plays/cross_entropy"]
    assert plays[-1]["val/noise/cross_entropy"] > 1.5 * even[-1]["val/noise/cross_entropy"]
    assert plays[-2]["train/cross_entropy"] == pytest.approx(plays[-2]["train/plays/cross_entropy"], rel=0.02)


@pytest.mark.slow
def test_a_run_ends_with_its_corpora(command: Command, tmp_path: Path) -> None:
    for devices in (1, 2):
        words = (
            "data.corpora.shakespeare.documents=5",
            "data.corpora.shakespeare.epochs=2",
            f"data.batch_size={4 // devices}",
        )
        train(
            command,
            *words,
            f"trainer.devices={devices}",
            f"run.id=d{devices}",
            "trainer.max_steps=100000",
            "trainer.log_every=100",
        )
    results = [json.loads((tmp_path / f"outputs/runs/run/d{n}/result.json").read_text()) for n in (1, 2)]
    assert 100 < results[0]["steps"] < 1000
    assert results[0]["steps"] == results[1]["steps"]
    assert results[0]["last"]["val/cross_entropy"] == pytest.approx(results[1]["last"]["val/cross_entropy"], rel=0.05)


def test_workers_change_nothing(command: Command, tmp_path: Path) -> None:
    for workers in (0, 2):
        train(command, "trainer.max_steps=4", "trainer.val_every=4", f"run.id=w{workers}", f"data.workers={workers}")
    assert without_times(tmp_path / "outputs/runs/run/w0") == without_times(tmp_path / "outputs/runs/run/w2")


def test_patience_stops_a_run_that_gets_no_better(command: Command, tmp_path: Path) -> None:
    words = (
        "optimizer.lr=0",
        "optimizer.allow_zero_lr=true",
        "trainer.max_steps=50",
        "trainer.val_every=2",
        "trainer.patience=2",
    )
    train(command, *words)
    result = json.loads((folder(tmp_path) / "result.json").read_text())
    assert (result["steps"], result["best_step"]) == (6, 2)


@pytest.mark.slow
def test_compiled_training_gives_the_same_losses(process: Command, tmp_path: Path) -> None:
    for run_id, flag in (("plain", "false"), ("compiled", "true")):
        train(
            process,
            "trainer.max_steps=3",
            "trainer.val_every=3",
            "trainer.log_every=1",
            f"run.id={run_id}",
            f"trainer.compile={flag}",
        )
    plain, compiled = (without_times(tmp_path / "outputs/runs/run" / name) for name in ("plain", "compiled"))
    for a, b in zip(plain, compiled, strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def test_bf16_trains_close_to_float32(command: Command, tmp_path: Path) -> None:
    for precision in ("32-true", "bf16-mixed"):
        train(
            command,
            "trainer.max_steps=5",
            "trainer.val_every=5",
            f"run.id={precision}",
            f"trainer.precision={precision}",
        )
    exact, rough = (lines(tmp_path / "outputs/runs/run" / p)[-1]["val/cross_entropy"] for p in ("32-true", "bf16-mixed"))
    assert rough == pytest.approx(exact, rel=0.02)
    assert rough != exact


def test_it_goes_on_from_a_config_yaml_with_changes(command: Command, tmp_path: Path) -> None:
    train(command, "trainer.max_steps=2", "trainer.val_every=2", "optimizer=muon", "run.id=first")
    config = "outputs/runs/run/first/config.yaml"
    done = command("train", f"config={config}", "trainer.max_steps=3", "run.id=second")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "outputs/runs/run/second/result.json").read_text())["steps"] == 3


@pytest.mark.slow
def test_the_profile_preset_writes_a_trace(process: Command, tmp_path: Path) -> None:
    train(process, "debug=profile")
    assert list((folder(tmp_path) / "tensorboard").glob("*.pt.trace.json"))


def test_a_number_that_is_not_finite_ends_the_run_with_6(command: Command, tmp_path: Path) -> None:
    done = command(*NANO, "trainer.max_steps=40", "optimizer=sgd", "optimizer.lr=1e30", "trainer.clip=0", "trainer.log_every=5")
    assert done.returncode == 6
    assert done.stderr.strip().splitlines()[-1].startswith("error: loss or gradient (train/loss = nan): is not finite")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["data=local", "data.path=none.txt"], 3, "does not exist"),
        (
            ["data=local", "data.path=short.txt", "data.split=line"],
            3,
            "holds 12 tokens for training, and one block needs 65",
        ),
        (["data=local", "data.path=short.txt"], 3, "no document is left for validation"),
        (["data=local", "data.path=blank.txt"], 3, "holds 0 tokens"),
        (["data=local", "data.path=bad.txt"], 3, "not UTF-8 at byte 700"),
        (["trainer.accelerator=gpu"], 7, "1 GPU asked for, 0 available"),
        (["trainer.precision=16-mixed"], 7, "is not supported on this cpu, which supports 32-true, bf16-mixed"),
        (["run.folder=short.txt"], 8, "is not a folder"),
        (["run.folder=short.txt/deeper"], 8, "is not a folder"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    command: Command, tmp_path: Path, words: list[str], status: int, message: str
) -> None:
    (tmp_path / "short.txt").write_text(
        "\n".join("abcdefghijklmnop"[i] for i in range(10)) * 1 if "split" in str(words) else "x" * 500
    )
    (tmp_path / "blank.txt").write_text(" \n \n")
    (tmp_path / "bad.txt").write_bytes(b"a" * 700 + b"\xff")
    if "data.split=line" in words:
        (tmp_path / "short.txt").write_text("a\nb\nc\nd\ne\nf\n")
    before = sorted(tmp_path.iterdir())
    done = command("model=nano", "trainer=cpu", *words)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused_at_the_start(command: Command, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    done = command("model=nano")
    assert done.returncode == 8


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_with_their_status(tmp_path: Path, number: signal.Signals, status: int) -> None:
    words = [*NANO, "trainer.max_steps=1000000", "trainer.val_every=50", "trainer.log_every=10"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2_lightning", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("outputs/runs/run/*/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in err
