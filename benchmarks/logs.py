"""What do logs cost: how large are the event files, what share of a step is a line, how soon does TensorBoard show a study?

In: models. Out: bytes of a run's files, by default and with every option; seconds of a logged line, of the update's norm, of
histograms and of attention's entropy over those of a step; seconds until 200 trials are written, and until TensorBoard's
HParams answer for all of them.
"""

import argparse
import io
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from contest import contest, print_ratios, ratios, write_report
from peers import fresh_decoder, plain
from train_step import SHAPES

from gpt2_lightning import run
from gpt2_lightning.board import events, open_board
from gpt2_lightning.config import compose_config
from gpt2_lightning.dashboard import RunLog
from gpt2_lightning.inspection import attention_entropy, histograms
from gpt2_lightning.loss import parameter_norm
from gpt2_lightning.study_board import write_board

SHAPES = SHAPES | {"quickstart": ["+experiment=quickstart"]}
STEPS = {"124m": 1, "10m": 3, "quickstart": 5, "nano": 50}  # of a round
TURNS = {"124m": 1, "10m": 2, "quickstart": 3, "nano": 10}  # of a contender in a round
STEPS_OF_A_RUN, TRIALS = 1000, 200
OPTIONS = ["board.histograms_every=250", "board.attention_entropy=true"]
EVERY = {"line": "log_every", "update_norm": "log_every", "histograms": "val_every", "attention_entropy": "val_every"}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=SHAPES, default=["nano", "quickstart"])
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count; one more is warm-up")
    parser.add_argument("--steps", type=int, default=STEPS_OF_A_RUN, help="steps of the runs whose files are measured")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = {name: run_sizes(words, args.steps, folder) for name, words in (("default", []), ("options", OPTIONS))}
        models = {model: model_costs(model, args.rounds, Path(folder)) for model in args.models}
        study = study_seconds(Path(folder) / "study", args.trials)
    for name, found in sizes.items():
        print(f"{name}: " + ", ".join(f"{1000 * n / args.steps / 1000:.1f} kB of {file}" for file, n in found.items())
              + " per 1,000 steps of a nano model")  # fmt: skip
    print(f"{args.trials} trials: written in {study['write']:.2f} s, again in {study['again']:.2f} s; TensorBoard is up in "
          f"{study['up']:.2f} s, and answers for all of them {study['answer']:.2f} s later")  # fmt: skip
    write_report(args.json, vars(args), sizes=sizes, models=models, study=study)


def run_sizes(words: list[str], steps: int, folder: str) -> dict[str, int]:
    """The bytes that a run of a nano model leaves in its event files and in metrics.jsonl."""
    name = f"run.name=run{len(words)}"
    small = ["data.batch_size=1", "data.val_batches=1", "checkpoint.save=false", "trainer.accelerator=cpu"]
    config = compose_config(["model=nano", *small, f"trainer.max_steps={steps}", f"run.folder={folder}", name, *words])
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        run.train(config)
    (found,) = (Path(folder) / "runs" / config.run.name).glob("[!.]*")
    event_files = sum(path.stat().st_size for path in (found / "tensorboard").iterdir())
    return {"events": event_files, "metrics.jsonl": (found / "metrics.jsonl").stat().st_size}


def model_costs(model: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Ratios to a step of each that is logged, its share of a run at the defaults' intervals, and its bytes."""
    config = compose_config([*SHAPES[model], "data.val_batches=1", "trainer.accelerator=cpu", f"run.folder={folder}"])
    loop, decoder = plain(config), fresh_decoder(config)
    tokens = torch.randint(config.model.vocab_size, (4, config.model.block_size))
    decoder(tokens[:1, :8]).sum().backward()
    log, board = RunLog(folder), open_board(folder / "inside")

    def show_attention() -> None:
        board.scalars(entropies(decoder, tokens), 1)

    contenders: dict[str, Callable[[], object]] = {
        "line": lambda: log.write(1, 1, dict.fromkeys(LINE, 1.2345)),
        "update_norm": lambda: update_norm(loop.parameters),
        "histograms": lambda: board.histograms(histograms(decoder), 1),
        "attention_entropy": show_attention,
    }
    steps, logged = STEPS[model], {name: behind(loop.step, play, TURNS[model]) for name, play in contenders.items()}
    seconds = contest({"step": lambda: loop.round(steps), **logged}, rounds)
    found = ratios(seconds, [(name, "step") for name in contenders])
    print(f"\n{model}")
    print_ratios(found)
    shares = {name: r["ratio"] / getattr(config.trainer, EVERY[name.partition("/")[0]]) for name, r in found.items()}
    shares["line and update_norm"] = shares["line/step"] + shares["update_norm/step"]
    for name, share in shares.items():
        what = name.partition("/")[0]
        print(f"{what}: {100 * share:.3f} % of the steps' time, every {EVERY.get(what, 'log_every')}")
    sizes = {
        "histograms": len(events(lambda b: b.histograms(histograms(decoder), 1), 0.0)),
        "attention_entropy": len(events(lambda b: b.scalars(entropies(decoder, tokens), 1), 0.0)),
    }
    print(", ".join(f"{n / 1000:.1f} kB of {name} each time" for name, n in sizes.items()))
    return {"seconds": seconds, "ratios": found, "shares": shares, "sizes": sizes}


LINE = (
    "train/cross_entropy", "train/penalty", "train/loss", "train/shakespeare/cross_entropy", "data/shakespeare/share",
    "optimizer/learning_rate", "optimizer/gradient_norm", "optimizer/parameter_norm", "optimizer/update_norm",
    "speed/tokens_per_second", "speed/data_wait", "speed/peak_memory",
)  # fmt: skip


def entropies(decoder: Any, tokens: Any) -> dict[str, float]:
    """The entropy of each head by its tag."""
    heads = attention_entropy(decoder, tokens).tolist()
    return {f"attention/h.{i:02d}/entropy.{j:02d}": value for i, layer in enumerate(heads) for j, value in enumerate(layer)}


def update_norm(parameters: list[torch.nn.Parameter]) -> float:
    """What a logged step has beyond others: a copy of the weights, and the norm of its difference."""
    before = [p.detach().clone() for p in parameters]
    for old, p in zip(before, parameters, strict=True):
        old.sub_(p.detach())
    return float(parameter_norm(before))


def behind(step: Callable[[], object], play: Callable[[], object], turns: int) -> Callable[[], float]:
    """The seconds that it takes behind a step, which leaves nothing of it in the caches; the median of some."""

    def turn() -> float:
        seconds = []
        for _ in range(turns):
            step()
            seconds.append(timed(play))
        return statistics.median(seconds)

    return turn


def timed(play: Callable[[], object]) -> float:
    """The seconds it takes."""
    started = time.perf_counter()
    play()
    return time.perf_counter() - started


def study_seconds(folder: Path, trials: int) -> dict[str, float]:
    """Until a made-up study is written, until TensorBoard is up, and until its HParams have all trials."""
    record = made_up(trials)
    for trial in record["trials"]:
        if trial["state"] != "failed":
            train(folder / trial["name"])
    found = {name: timed(lambda: write_board(record, folder)) for name in ("write", "again")}
    started = time.perf_counter()
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0", "--host", "127.0.0.1"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            address = next(seen for line in process.stderr if (seen := re.search(r"http://\S+?:\d+/", line)))[0]
            up = time.perf_counter()
            while len(rows(address)) < trials:
                time.sleep(0.05)
            return found | {"up": up - started, "answer": time.perf_counter() - up}
        finally:
            process.terminate()


def rows(address: str) -> list[Any]:
    """What the HParams tab asks for."""
    states = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    asked = {"experimentName": "", "allowedStatuses": states, "colParams": [], "startIndex": 0, "sliceSize": 10**4}
    request = urllib.request.Request(f"{address}data/plugin/hparams/session_groups", json.dumps(asked).encode(),
                                     {"Content-Type": "application/json"})  # fmt: skip
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["sessionGroups"]


def made_up(trials: int) -> dict[str, Any]:
    """The record of a study, every tenth trial failed."""
    start = datetime(2026, 11, 27)
    made = [
        {
            "name": f"trial-{i:03d}", "place": i, "state": "complete" if i % 10 else "failed", "class": "",
            "values": {"val/cross_entropy": 2 + 1 / (i + 1)}, "beside": {}, "steps": 1000, "outcome": {},
            "point": {"loss.beta": 0.001 * i, "optimizer.lr": 1e-3 * math.exp(i / trials), "sampler.k": i + 1},
            "started": (start + timedelta(minutes=i)).isoformat(), "ended": (start + timedelta(minutes=i + 4)).isoformat(),
        }
        for i in range(trials)
    ]  # fmt: skip
    return {"study": "made-up", "objectives": ["val/cross_entropy"], "directions": ["minimize"], "trials": made}


def train(folder: Path) -> None:
    """The logs of a training of 1,000 steps at the default intervals."""
    folder.mkdir(parents=True)
    log = RunLog(folder)
    for step in range(50, 1001, 50):
        log.write(step, step, dict.fromkeys(LINE, 1.2345))
        if step % 250 == 0:
            log.write(step, step, {"val/cross_entropy": 3.0, "val/perplexity": 20.0})
    log.close()


if __name__ == "__main__":
    main()
