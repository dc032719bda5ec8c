"""How busy are a study's slots, how long is one idle between two trials, what does its agent cost?

In: a study whose trials sleep instead of training, most of them ended early by successive halving, on one storage. Out: the
share of the slots' time that is used while there are trials to start; the time from a trial's end to the next one's start in
its slot, without what a child's start takes (measured beside it); the agents' CPU per running trial; outcomes told per second.
``--slots 10 100 1000`` prints a row for each. PostgreSQL: ``--storage postgresql://...``, the database empty.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contest import write_report

from gpt2_lightning.__main__ import main as command
from gpt2_lightning.sweep import pool

FAKE = (sys.executable, "-S", "-E", str(Path(__file__).parents[1] / "tests/sweep/fake_trial.py"))
STEPS, EVERY = 40, 10
Line = dict[str, Any]


def agent(folder: Path, words: list[str], env: dict[str, str], costs: Any) -> None:
    """One agent in a process of its own; puts its CPU seconds."""
    os.chdir(folder)
    os.environ.update(env)
    pool.COMMAND = FAKE  # type: ignore[assignment]
    with (folder / f"log{os.getpid()}").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        status = command(["sweep", *words])
    used = resource.getrusage(resource.RUSAGE_SELF)
    costs.put((status, used.ru_utime + used.ru_stime))


def study(folder: Path, slots: int, agents: int, trials: int, seconds: float, storage: str) -> tuple[list[Line], float]:
    """Run it; returns what its trials noted, and the agents' CPU seconds."""
    words = ["model=nano", "trainer=cpu", "optimizer.lr=tag(log, interval(1e-4, 1e-1))", "loss.beta=interval(0, 0.05)",
             f"sweep.name=slots{slots}", f"sweep.n_trials={trials}", f"sweep.slots={slots // agents}", "sweep.sampler=random",
             "sweep.baseline=false", "sweep.report=false", f"trainer.max_steps={STEPS}", f"trainer.val_every={EVERY}",
             f"checkpoint.every={EVERY}"]  # fmt: skip
    env = {"FAKE": json.dumps({"ms": 1000 * seconds / STEPS}), "AUDIT": str(folder / "audit"), "CUDA_VISIBLE_DEVICES": ""}
    env |= {"GPT2_LIGHTNING_STORAGE": storage}
    costs: Any = multiprocessing.Queue()
    children = [multiprocessing.Process(target=agent, args=(folder, words, env, costs)) for _ in range(agents)]
    for child in children:
        child.start()
    found = [costs.get() for _ in children]
    if any(status for status, _ in found):
        raise SystemExit("\n".join(path.read_text()[-2000:] for path in folder.glob("log*")))
    return [json.loads(line) for line in (folder / "audit").read_text().splitlines()], sum(cpu for _, cpu in found)


def child_start(folder: Path) -> float:
    """The seconds that a child takes until it trains, on this machine as it is now."""
    began = time.perf_counter()
    for _ in range(5):
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1] / 'src')!r}); import gpt2_lightning.signals"
        subprocess.run([sys.executable, "-S", "-E", "-c", code], check=True, cwd=folder)
    return (time.perf_counter() - began) / 5


def occupation(lines: list[Line], slots: int) -> Line:
    """Use of the slots from when all are taken to when the last trial starts; idle gaps by order of ends and starts."""
    lines = sorted(lines, key=lambda line: line["time"])
    begun, spans = {}, []
    for line in lines:
        if line["event"] == "start":
            begun[line["pid"]] = line["time"]
        elif line["event"] in ("end", "stopped"):
            spans.append((begun[line["pid"]], line["time"]))
    starts, ends = sorted(span[0] for span in spans), sorted(span[1] for span in spans)
    first, last = starts[slots - 1], starts[-1]
    used = sum(max(0.0, min(last, end) - max(first, start)) for start, end in spans)
    return {
        "busy": used / (slots * (last - first)),
        "gaps": [start - end for start, end in zip(starts[slots:], ends, strict=False)],
        "running": sum(end - start for start, end in spans),
        "told_a_second": len(spans) / (ends[-1] - starts[0]),
        "pruned": sum(line["event"] == "stopped" for line in lines) / len(spans),
    }


def measure(slots: int, arguments: argparse.Namespace) -> Line:
    """One row."""
    with tempfile.TemporaryDirectory() as name:
        lines, cpu = study(Path(name), slots, arguments.agents, max(slots * arguments.rounds, slots + 1), arguments.seconds,
                           arguments.storage)  # fmt: skip
        found = occupation(lines, slots) | {"child": child_start(Path(name))}
    return found | {"slots": slots, "agent": cpu / found["running"]}


def main() -> None:
    """Print a row for each number of slots."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slots", type=int, nargs="+", default=[8])
    parser.add_argument("--agents", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6, help="trials a slot")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a trial that is not ended early")
    parser.add_argument("--storage", default="journal")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = [measure(slots, arguments) for slots in arguments.slots]
    print("slots  ended early  busy  idle gap: median, longest  child's start  agent's CPU a running trial  told a second")
    for row in rows:
        idle = f"{statistics.median(row['gaps']):16.2f} s, {max(row['gaps']):.2f} s"
        print(f"{row['slots']:5}  {row['pruned']:11.0%}  {row['busy']:4.0%}  {idle}  {row['child']:11.2f} s"
              f"  {row['agent']:27.2%}  {row['told_a_second']:13.1f}")  # fmt: skip
    write_report(arguments.json, vars(arguments), rows=rows)


if __name__ == "__main__":
    main()
