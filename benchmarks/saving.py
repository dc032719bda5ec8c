"""What does going on exactly cost a run: a checkpoint, its verification, and the guard of every step?

In: a model. Out: seconds of a save and of a verification over those of writing as many bytes plainly, a save's share of
the time between two at the experiment's interval, and the guard's time over a training step of the nano model.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from contest import contest, print_ratios, ratios, write_report
from peers import plain
from train_step import SHAPES

from gpt2_lightning.checkpoint import load_checkpoint, remove_folder, save_checkpoint, verify_checkpoint
from gpt2_lightning.config import compose_config
from gpt2_lightning.guard import Guard
from gpt2_lightning.settings.trainer import TrainerConfig

EXPERIMENT = "gpt2_124m"  # whose interval is taken
GUARDED = 200  # steps judged in a round


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="124m")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count; one more is warm-up")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        seconds = contest(contenders(args.model, Path(folder)), args.rounds)
    pairs = [("save", "write"), ("verify", "write"), ("load", "write"), ("guard", "nano_step")]
    found = ratios(seconds, pairs)
    print_ratios(found)
    share = share_of_interval(seconds)
    print(f"a save every interval of {EXPERIMENT} on this machine: {100 * share:.4f} % of its training time")
    write_report(args.json, vars(args), seconds=seconds, ratios=found, share=share)


def contenders(model: str, folder: Path) -> dict[str, Callable[[], float]]:
    """Each returns the seconds of one turn."""
    big, nano = loop(model, folder), loop("nano", folder)
    weights = {name: p.detach() for name, p in zip(map(str, range(len(big.parameters))), big.parameters, strict=True)}
    big.step()  # makes the optimizer's moments
    nano.step()
    state = {"optimizer_states": [big.optimizer.state_dict()]}
    facts = {"step": 1, "best_step": 1, "config": {}}
    content = os.urandom(2**20) * (sum(3 * p.nbytes for p in weights.values()) // 2**20)  # weights and two moments
    saved = save_checkpoint(folder / "kept", state, weights, facts)
    guard = Guard(TrainerConfig(), torch.device("cpu"))
    one = torch.ones(())

    def save() -> None:
        remove_folder(save_checkpoint(folder / "saved", state, weights, facts))

    def write() -> None:
        with (folder / "plain").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def judge() -> None:
        for step in range(GUARDED):
            guard.judge(step, one, one, nano.optimizer, 0)
            guard.verdicts(flush=False)

    return {
        "save": timed(save), "write": timed(write), "verify": timed(lambda: verify_checkpoint(saved)),
        "load": timed(lambda: load_checkpoint(saved)), "step": timed(big.step), "nano_step": lambda: nano.round(20),
        "guard": lambda: timed(judge)() / GUARDED,
    }  # fmt: skip


def loop(model: str, folder: Path):
    """A plain training loop of that model."""
    overrides = ["data.val_batches=1", "optimizer.lr=1e-5", "trainer.accelerator=cpu", f"run.folder={folder}"]
    return plain(compose_config([*SHAPES[model], *overrides]))


def timed(play: Callable[[], object]) -> Callable[[], float]:
    """The seconds it takes."""

    def turn() -> float:
        started = time.perf_counter()
        play()
        return time.perf_counter() - started

    return turn


def share_of_interval(seconds: dict[str, list[float]]) -> float:
    """The median save over the time that the experiment's steps between two saves would take here, at the measured speed."""
    config, measured = compose_config([f"+experiment={EXPERIMENT}"]), compose_config(SHAPES["124m"])
    rows = config.data.batch_size * config.trainer.accumulate * config.trainer.devices
    tokens = (config.checkpoint.every or config.trainer.val_every) * rows * config.model.block_size
    step = sorted(seconds["step"])[len(seconds["step"]) // 2] / (measured.data.batch_size * measured.model.block_size)
    return sorted(seconds["save"])[len(seconds["save"]) // 2] / (tokens * step)


if __name__ == "__main__":
    main()
