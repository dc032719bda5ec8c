"""How busy are a study's slots, and what do its agents and its storage pay for that, at 10, 100 and 1,000 slots?

In: a study whose trials are sleeping shells (sleeper.sh), two thirds of them and more ended early by successive halving; its
agents, ledger and storage are the real ones, and so is each trial's process. Out: a row for each number of slots, from when all
slots are taken to when the last trial starts: the share of their time that is idle, and of the slot that is idle most; the
time from a trial's end to the next one's start in its slot; outcomes told a second; the agents' CPU; what the storage did.
``--storage postgres`` starts a server of its own that syncs to the disk; ``postgresql://...`` takes one that is there, its
database empty.
Choice not taken: a run's start and its files other than those the agent reads; they are the trial's own time.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from contest import write_report

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpt2_lightning.__main__ import main as command
from gpt2_lightning.sweep import command as loaded  # before the agents are forked: what they import is not their work
from gpt2_lightning.sweep import pool
from tests.sweep.postgres import Postgres, programs

SLEEPER = ("/usr/bin/env", "bash", str(Path(__file__).with_name("sleeper.sh")))
STEPS, EVERY = 40, 10
Line = dict[str, Any]
Counts = dict[str, float]


def agent(folder: Path, words: list[str], env: dict[str, str], costs: Any) -> None:
    """One agent in a process of its own; puts its exit status, CPU seconds and peak memory."""
    os.chdir(folder)
    os.environ.update(env)
    pool.COMMAND = SLEEPER  # type: ignore[assignment]
    pool.Child.__init__ = in_its_slot  # type: ignore[method-assign]
    with (folder / f"log{os.getpid()}").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        status = command(["sweep", *words])
    used = resource.getrusage(resource.RUSAGE_SELF)
    costs.put((status, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024))


def in_its_slot(child: pool.Child, words: Any, slot: pool.Slot, *rest: Any, there: Any = pool.Child.__init__) -> None:
    """Start a trial that knows its slot."""
    os.environ["SLOT"] = f"{os.getpid()}.{slot.index}"
    there(child, words, slot, *rest)


def study(folder: Path, slots: int, storage: str, arguments: argparse.Namespace) -> tuple[list[Line], Counts]:
    """Run it; returns what its trials noted, and what its agents took."""
    agents, trials = arguments.agents, max(slots * arguments.rounds, slots + 1)
    words = ["model=nano", "trainer=cpu", "optimizer.lr=tag(log, interval(1e-4, 1e-1))", "loss.beta=interval(0, 0.05)",
             f"sweep.name=slots{slots}", f"sweep.n_trials={trials}", f"sweep.slots={slots // agents}",
             f"sweep.sampler={arguments.sampler}", "sweep.baseline=false", "sweep.report=false", f"trainer.max_steps={STEPS}",
             f"trainer.val_every={EVERY}", f"checkpoint.every={EVERY}"]  # fmt: skip
    env = {"STEPS": str(STEPS), "EVERY": str(EVERY), "PAUSE": str(arguments.seconds * EVERY / STEPS)}
    env |= {"AUDIT": str(folder / "audit"), "CUDA_VISIBLE_DEVICES": "", "GPT2_LIGHTNING_STORAGE": storage}
    costs: Any = multiprocessing.Queue()
    children = [multiprocessing.Process(target=agent, args=(folder, words, env, costs)) for _ in range(agents)]
    began = time.monotonic()
    for child in children:
        child.start()
    found = [costs.get() for _ in children]
    if any(status for status, *_ in found):
        raise SystemExit("\n".join(path.read_text()[-2000:] for path in folder.glob("log*")))
    cost = {"seconds": time.monotonic() - began, "agents_cpu": sum(cpu for _, cpu, _ in found)}
    cost |= {"agent_memory": max(memory for *_, memory in found)}
    return [json.loads(line) for line in (folder / "audit").read_text().splitlines()], cost


def occupation(lines: list[Line], slots: int) -> Line:
    """Use of the slots from when all are taken to when the last trial starts."""
    times: dict[str, list[float]] = {}
    for line in sorted(lines, key=lambda line: line["time"]):
        times.setdefault(line["slot"], []).append(line["time"])  # start and end in turn
    of_slots = [list(zip(own[::2], own[1::2], strict=True)) for own in times.values()]
    spans = [span for own in of_slots for span in own]
    starts, ends = sorted(span[0] for span in spans), [span[1] for span in spans]
    first, last = starts[slots - 1], starts[-1]
    used = [sum(max(0.0, min(last, end) - max(first, start)) for start, end in own) for own in of_slots]
    return {
        "filled_in": first - starts[0],
        "idle": 1 - sum(used) / (slots * (last - first)),
        "idle_most": 1 - min(used) / (last - first),
        "gaps": [then[0] - now[1] for own in of_slots for now, then in pairwise(own)],
        "trial_seconds": sum(end - start for start, end in spans) / len(spans),
        "told_a_second": sum(first < end < last for end in ends) / (last - first),
        "pruned": sum(line["event"] == "stopped" for line in lines) / len(spans),
        "trials": len(spans),
    }


@contextmanager
def opened(asked: str, folder: Path) -> Iterator[tuple[str, Callable[[], Counts]]]:
    """The storage to ask for, and what counts its work so far."""
    if asked == "postgres":
        place = programs()
        if place is None:
            raise SystemExit("PostgreSQL is not installed: apt-get install postgresql")
        server = Postgres(place, sync=True)
        try:
            yield server.url, lambda: {"server_cpu": cpu_of(server.server.pid), **transactions(server.url)}  # type: ignore[union-attr]
        finally:
            server.remove()
    elif asked == "journal":
        yield asked, lambda: journal_size(folder)
    else:
        yield asked, lambda: transactions(asked)


def transactions(url: str) -> Counts:
    """How many a database has had, and what it holds now."""
    import psycopg

    query = "SELECT xact_commit + xact_rollback, pg_database_size(datname) FROM pg_stat_database"
    with psycopg.connect(url) as connection:
        (found,) = connection.execute(f"{query} WHERE datname = current_database()").fetchall()
    return {"operations": float(found[0]), "bytes": float(found[1])}


def journal_size(folder: Path) -> Counts:
    """Its lines, each an append and a sync to the disk, and its bytes."""
    texts = [path.read_bytes() for path in folder.glob("outputs/sweeps/*/journal.log")]
    return {"operations": float(sum(text.count(b"\n") for text in texts)), "bytes": float(sum(map(len, texts)))}


def cpu_of(pid: int) -> float:
    """CPU seconds of a server, its processes, and those that have ended."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(path.parent.name) == pid:
            ticks += sum(map(int, fields[11:15]))
        elif int(fields[1]) == pid:
            ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(slots: int, arguments: argparse.Namespace) -> Line:
    """One row."""
    with tempfile.TemporaryDirectory() as name, opened(arguments.storage, Path(name)) as (storage, counts):
        before = counts()
        lines, cost = study(Path(name), slots, storage, arguments)
        after = counts()
    done = {key: after[key] - before.get(key, 0) for key in after}
    return occupation(lines, slots) | cost | {"slots": slots, "storage": done}


HEAD = ("slots", "trials", "ended early", "trial", "filled in", "idle", "idle most", "gap: median", "longest", "told/s",
        "agents' CPU", "a trial", "memory", "storage: operations/s", "a trial", "bytes a trial",
        "server's CPU a trial")  # fmt: skip


def shown(row: Line) -> tuple[str, ...]:
    """The row as text; the agents' CPU in cores, over the whole study, and in milliseconds a trial."""
    s, n, seconds, cpu = row["storage"], row["trials"], row["seconds"], row["agents_cpu"]
    server = f"{1e3 * s['server_cpu'] / n:.0f} ms" if "server_cpu" in s else "-"
    return (
        f"{row['slots']}", f"{n}", f"{row['pruned']:.0%}", f"{row['trial_seconds']:.1f} s", f"{row['filled_in']:.1f} s",
        f"{row['idle']:.1%}", f"{row['idle_most']:.1%}", f"{statistics.median(row['gaps']):.2f} s", f"{max(row['gaps']):.2f} s",
        f"{row['told_a_second']:.2f}", f"{cpu / seconds:.2f}", f"{1e3 * cpu / n:.0f} ms",
        f"{row['agent_memory'] / 2**20:.0f} MiB", f"{s['operations'] / seconds:.0f}", f"{s['operations'] / n:.0f}",
        f"{s['bytes'] / n:.0f}", server,
    )  # fmt: skip


def main() -> None:
    """Print a row for each number of slots."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slots", type=int, nargs="+", default=[8])
    parser.add_argument("--agents", type=int, default=1, help="that share the slots")
    parser.add_argument("--rounds", type=int, default=6, help="trials a slot")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a trial that is not ended early")
    parser.add_argument("--storage", default="journal", help="journal, postgres, or an empty database's URL")
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    assert loaded
    print(" | ".join(HEAD), flush=True)
    rows = []
    for slots in arguments.slots:
        rows.append(measure(slots, arguments))
        print(" | ".join(shown(rows[-1])), flush=True)
    write_report(arguments.json, vars(arguments), rows=rows)


if __name__ == "__main__":
    main()
