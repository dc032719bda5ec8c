"""How soon does each way of searching find what random search finds in the end, counted in optimizer steps?

In: short real trainings of a small GPT-2 on the bundled Shakespeare, all of as many steps. Each way, with each seed, proposes
settings and ends trials early until it has used the steps of ``--trials`` whole trainings. Out: the share of those steps after
which it had a value as good as random search's last one with the same seed, and the best it came to. A training's curve is kept
in ``--curves`` by its settings: ways that propose the same point share it, and a search that was cut off goes on.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import optuna
from contest import write_report

from gpt2_lightning import run  # loaded before the first fork
from gpt2_lightning.config import RunConfig
from gpt2_lightning.settings.sweep import SweepConfig
from gpt2_lightning.sweep.plan import fingerprint, read_plan
from gpt2_lightning.sweep.proposals import build_pruner, build_sampler

WORDS = ["+experiment=quickstart", "trainer=cpu", "model.n_layer=2", "model.n_embd=128", "optimizer=adamw", "optimizer.lr=1e-3",
         "data.val_batches=8", "samples.max_new_tokens=0", "checkpoint.save=false", "trainer.threads=1",
         "schedule.warmup_steps=20"]  # fmt: skip
SPACE = ["optimizer.lr=tag(log, interval(1e-4, 1e-1))", "loss.beta=interval(0, 0.2)", "optimizer.weight_decay=interval(0, 1)",
         "schedule.warmup_steps=range(0, 101)"]  # fmt: skip
WAYS = {
    "random": ("random", "none"),
    "tpe": ("tpe", "none"),
    "random+halving": ("random", "halving"),
    "tpe+halving": ("tpe", "halving"),
}

Curve = list[tuple[int, float]]


def main() -> None:
    """Search and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=12, help="whole trainings whose steps each way has")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--val-every", type=int, default=25)
    parser.add_argument("--curves", type=Path, default=Path("outputs/search"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        traces = list(pool.map(partial(searches, args=args), range(args.seeds)))
    report(traces, args)


def searches(seed: int, args: argparse.Namespace) -> dict[str, Curve]:
    """Every way of searching with one seed."""
    return {way: search(way, seed, args) for way in WAYS}


def search(way: str, seed: int, args: argparse.Namespace) -> Curve:
    """The best so far by the steps used, for one way of searching with one seed."""
    plan = read_plan([*WORDS, *SPACE, f"trainer.max_steps={args.steps}", f"trainer.val_every={args.val_every}",
                      f"run.folder={args.curves}"])  # fmt: skip
    sampler, pruner = WAYS[way]
    config = SweepConfig(sampler=sampler, pruner=pruner, seed=seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(pruner=build_pruner(config, args.val_every, args.steps))
    used, trace = 0, []
    while used < args.trials * args.steps:
        study.sampler = build_sampler(config, len(study.trials))
        trial = study.ask()
        curve = train(plan.variants.at(plan.space.ask(trial)), args.curves)
        used += watch(study, trial, curve, args.steps)
        done = [t.value for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
        trace.append((used, min(done, default=float("inf"))))
    print(f"{way} seed {seed}: {len(study.trials)} trials, best {trace[-1][1]:.4f}", file=sys.stderr, flush=True)
    return trace


def watch(study: optuna.Study, trial: optuna.Trial, curve: Curve, steps: int) -> int:
    """Report a training until it ends or is ended; returns the steps it took. A diverged one is told as the engine tells it."""
    best = float("inf")
    for step, value in curve:
        trial.report(value, step)
        best = min(best, value)
        if step < steps and trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return step
    if curve and curve[-1][0] == steps:
        study.tell(trial, best)
        return steps
    study.tell(trial, 10.0)
    return curve[-1][0] if curve else 1


def train(config: RunConfig, curves: Path) -> Curve:
    """The validations of a training by step, from a process of its own, or from the last time."""
    kept = curves.absolute() / f"{fingerprint(config)}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        config.run.id, config.run.name = fingerprint(config), "search"
        pid = os.fork()
        if pid == 0:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            try:
                run.train(config)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        kept.write_text(json.dumps(read_curve(curves.absolute() / "runs" / "search" / config.run.id / "metrics.jsonl")))
    return [(step, value) for step, value in json.loads(kept.read_text())]


def read_curve(path: Path) -> Curve:
    """The validations in a run's log."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["step"], line["val/cross_entropy"]) for line in lines if "val/cross_entropy" in line]


def report(traces: list[dict[str, Curve]], args: argparse.Namespace) -> None:
    """Shares of random search's steps to its last best, and the last bests; median and range over the seeds."""
    budget = args.trials * args.steps
    shares: dict[str, list[float]] = {way: [] for way in WAYS}
    bests: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in traces:
        goal = seed["random"][-1][1]
        for way, trace in seed.items():
            reached = [used for used, best in trace if best <= goal]
            shares[way].append(min(reached, default=float("inf")) / budget)
            bests[way].append(trace[-1][1])
    print(f"{'':16}{'share of the steps to the best of random':>46}{'best value (nats a token)':>34}")
    for way in WAYS:
        print(f"{way:16}{spread(shares[way], 2):>46}{spread(bests[way], 4):>34}")
    write_report(args.json, {k: str(v) for k, v in vars(args).items()}, shares=shares, bests=bests)


def spread(values: list[float], digits: int) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{(time.monotonic() - began) / 60:.0f} minutes", file=sys.stderr)
