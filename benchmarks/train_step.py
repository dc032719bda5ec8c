"""How long is one of our training steps, with Trainer, dashboard and data, beside those of our peers?

In: a model, a precision, how many rounds. Out: ratios of seconds per step, and of peak memory when asked for.
The other contenders run inside our Trainer's run, from a callback, between two of our rounds and outside our time.
With --apart every contender has a process of its own, still in turns: what ours does to its allocator helps no other then.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contest import Seconds, clock, contest, difference, print_ratios, ratios, turns, write_report
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from peers import PEERS, Loop

from gpt2_lightning.config import RunConfig, compose_config
from gpt2_lightning.dashboard import Dashboard, peak_memory
from gpt2_lightning.folder import RunFolder
from gpt2_lightning.keeper import Keeper
from gpt2_lightning.module import GPT2Module
from gpt2_lightning.run import fit, open_data
from gpt2_lightning.trainer import build_trainer

SHAPES = {
    "124m": ["model=gpt2", "model.block_size=512", "data=shakespeare_bpe", "data.batch_size=2"],
    "10m": ["model=small", "data=shakespeare", "data.batch_size=16"],
    "nano": ["model=nano", "data=shakespeare", "data.batch_size=8"],
}
STEPS = {"124m": 2, "10m": 5, "nano": 50}  # of one contender in one round: a second or more, except for nano
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
PAIRS = [
    ("transformers", "ours"),
    ("transformers_fused", "ours"),
    ("textbook", "ours"),
    ("ours_fp32", "ours"),
    ("ours", "plain"),
]
MEMORY_STEPS = 3
NOTHING = "nothing"  # imports and data alone: what of the memory is no contender's


class Turns(Callback):
    """Times our rounds, and gives the others their turns in between. Has to be the last callback."""

    def __init__(self, others: dict[str, Loop], rounds: int, steps: int) -> None:
        self.others, self.steps = others, steps
        self.order = turns(["ours", *others], rounds)
        self.seconds: Seconds = {name: [] for name in ("ours", *others)}
        self.first_loss: float | None = None
        self.peak_memory = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """The turns before our first."""
        self.pass_on()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After the last step of a round: stop the time, and let the others play."""
        if self.first_loss is None:
            self.first_loss = outputs["loss"].item()
        if trainer.global_step % self.steps == 0:
            self.seconds["ours"].append((clock() - self.started) / self.steps)
            self.peak_memory = peak_memory(module.device)
            self.pass_on()

    def pass_on(self) -> None:
        """Play the turns up to our next, and start our time."""
        for name in self.order:
            if name == "ours":
                break
            self.seconds[name].append(self.others[name].round(self.steps))
        self.started = clock()


class Gate(Callback):
    """Trains our rounds one at a time: a line on standard input begins one, its seconds a step are printed."""

    def __init__(self, steps: int) -> None:
        self.steps, self.first_loss = steps, 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Wait for the first turn."""
        self.wait()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After the last step of a round: say how long it took, and wait for the next."""
        self.first_loss = self.first_loss or outputs["loss"].item()
        if trainer.global_step % self.steps == 0:
            answer((clock() - self.started) / self.steps, self.first_loss)
            self.wait()

    def wait(self) -> None:
        """Block until it is our turn."""
        sys.stdin.readline()
        self.started = clock()


def main() -> None:
    """Run what the command line asks for."""
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        if args.serve:
            serve(args, run_config(args, folder, args.steps * (1 + args.rounds)))
        elif args.apart:
            compete_apart(args)
        elif args.memory:
            print(memory_alone(args.memory, run_config(args, folder, MEMORY_STEPS)))
        else:
            compete(args, run_config(args, folder, args.steps * (1 + args.rounds)))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="10m")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile for every contender")
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count; one more is warm-up")
    parser.add_argument("--steps", type=int, help="steps of a contender in a round; default: by model")
    parser.add_argument("--rows", type=int, help="rows of a batch; default: by model")
    parser.add_argument("--contenders", nargs="*", choices=PEERS, default=list(PEERS), help="beside ours")
    parser.add_argument("--with-memory", action="store_true", help="each contender's peak memory, in a process of its own")
    parser.add_argument("--memory", choices=("ours", *PEERS, NOTHING), help="only the peak memory of this one, in bytes")
    parser.add_argument("--apart", action="store_true", help="each contender in a process of its own, still in turns")
    parser.add_argument("--serve", choices=("ours", *PEERS), help="be the process of this contender")
    parser.add_argument("--threads", type=int, help="of torch; 1 where other work shares the cores")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.steps = args.steps or STEPS[args.model]
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def run_config(args: argparse.Namespace, folder: str, max_steps: int) -> RunConfig:
    """The run that all contenders share; it saves and validates nothing until its last step, which is not timed."""
    trainer = {"max_steps": max_steps, "val_every": max_steps, "log_every": 50}
    trainer |= {"precision": PRECISIONS[args.precision], "accelerator": args.accelerator, "compile": args.compile}
    overrides = [f"trainer.{key}={value}" for key, value in trainer.items()]
    overrides += [
        "optimizer.lr=1e-5",
        "schedule=constant",
        "data.val_batches=1",
        "checkpoint.save=false",
        "samples.max_new_tokens=0",
    ]
    overrides += [f"data.batch_size={args.rows}"] if args.rows else []
    return compose_config([*SHAPES[args.model], *overrides, f"run.folder={folder}"])


def train_ours(config: RunConfig, last: Callback) -> None:
    """What ``gpt2_lightning.run.train`` does up to the end of training, with one more callback."""
    seed_everything(config.seed, verbose=False)
    data = open_data(config)
    run = RunFolder(config)
    module = GPT2Module(config, data.names, data.bytes_per_token)
    dashboard = Dashboard(run.path, config, data)
    keeper = Keeper(config, run, run.path, dashboard, module.signals)
    fit(build_trainer(config, run.path, [dashboard, keeper, last]), module, data)
    dashboard.finish()
    run.lock.release()


def compete(args: argparse.Namespace, config: RunConfig) -> None:
    """The contest and its report."""
    names = ["ours", *args.contenders]
    memory = {name: spawn(name) for name in (*names, NOTHING)} if args.with_memory else {}  # while this process is small
    others = {name: PEERS[name](config) for name in args.contenders}
    played = Turns(others, 1 + args.rounds, args.steps)
    train_ours(config, played)
    seconds = {name: times[1:] for name, times in played.seconds.items()}
    first_loss = {"ours": played.first_loss, **{name: loop.first_loss for name, loop in others.items()}}
    overhead = difference(seconds, "ours", "plain") if "plain" in seconds else None
    found = {"ratios": ratios(seconds, PAIRS), "overhead": overhead, "peak_memory": memory, "first_loss": first_loss}
    print_report(found)
    write_report(args.json, vars(args), seconds_per_step=seconds, **found)


def serve(args: argparse.Namespace, config: RunConfig) -> None:
    """Train a round for every line of standard input."""
    if args.serve == "ours":
        train_ours(config, Gate(args.steps))
        return
    loop = PEERS[args.serve](config)
    while sys.stdin.readline():
        answer(loop.round(args.steps), float(loop.first_loss or 0))


def answer(seconds: float, first_loss: float) -> None:
    """Tell the parent how long the round took."""
    print(json.dumps([seconds, first_loss]), flush=True)


def compete_apart(args: argparse.Namespace) -> None:
    """The contest between processes: what one does to its allocator or its threads does not help the others."""
    names = ["ours", *args.contenders, *(["ours_fp32"] if args.precision != "fp32" else [])]
    common = [sys.executable, __file__, "--model", args.model, "--rounds", str(args.rounds), "--steps", str(args.steps)]
    own = ["--precision", args.precision, *(["--compile"] if args.compile else [])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    words = {name: [*own, "--serve", name] for name in names} | {"ours_fp32": ["--precision", "fp32", "--serve", "ours"]}
    children = {name: subprocess.Popen([*common, *words[name]], **pipes) for name in names}
    losses: dict[str, float] = {}

    def turn(name: str) -> float:
        children[name].stdin.write("\n")
        children[name].stdin.flush()
        seconds, losses[name] = json.loads(children[name].stdout.readline())
        return seconds

    seconds = contest({name: partial(turn, name) for name in names}, args.rounds)
    for child in children.values():
        child.kill()
    found = {"ratios": ratios(seconds, PAIRS), "overhead": difference(seconds, "ours", "plain") if "plain" in seconds else None}
    found |= {"peak_memory": {}, "first_loss": losses}
    print_report(found)
    write_report(args.json, vars(args), seconds_per_step=seconds, **found)


def print_report(found: dict[str, Any]) -> None:
    """The ratios, what Lightning and dashboard cost a step, memory, and that all began with the same loss."""
    print_ratios(found["ratios"])
    if overhead := found["overhead"]:
        low, high = overhead["quartile_1"], overhead["quartile_3"]
        print(f"ours - plain: {overhead['median_ms']:.3f} ms a step, quartiles {low:.3f} to {high:.3f}")
    for name, size in found["peak_memory"].items():
        print(f"peak memory {name}: {size / 2**20:,.0f} MiB, {size / found['peak_memory']['ours']:.3f} of ours")
    print("first loss", ", ".join(f"{name} {loss:.6f}" for name, loss in found["first_loss"].items()))


def spawn(name: str) -> float:
    """The peak memory of one contender, in bytes, in a process of its own with this one's other options.

    On Linux a child's maximum begins at its parent's size: to be called before this process has grown.
    """
    words = [sys.executable, __file__, *sys.argv[1:], "--memory", name]
    child = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return float(child.stdout.split()[-1])


def memory_alone(name: str, config: RunConfig) -> float:
    """The peak memory of one contender over a few steps, in bytes."""
    if name == "ours":
        alone = Turns({}, 1, config.trainer.max_steps)
        train_ours(config, alone)
        return alone.peak_memory
    if name == NOTHING:
        data = open_data(config)
        return peak_memory(data.bytes_per_token.device)
    loop = PEERS[name](config)
    loop.round(config.trainer.max_steps)
    return peak_memory(next(iter(loop.parameters)).device)


if __name__ == "__main__":
    main()
