"""Slots on a Ray cluster: a plan and an address in; slots, and what starts a trial on whichever node has room, out.

The agent that a person starts stays the only one that writes the study. Each trial has an actor that holds its GPUs and cores,
starts the same process as on one machine, and hears of stopping. A node that sees the study's folder works in it; one that does
not works in a folder of its own at the same place, and the actor sends home what the agent reads. A trial whose node is gone is
started again elsewhere: from its checkpoint where the folder is shared, from the start where it is not.
One number: 1 message a second at most from a trial without a shared folder, none from the others until they end.
Choice not taken: Ray Tune, whose trials are functions in its own workers, with its own storage, pruning and recovery.
"""

import socket
import sys
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path

from gpt2_lightning.errors import MachineError, first_line
from gpt2_lightning.folder import write_whole
from gpt2_lightning.settings.launch import LaunchConfig, RayLaunch
from gpt2_lightning.sweep import pool
from gpt2_lightning.sweep.plan import Plan
from gpt2_lightning.sweep.pool import LOST, Slot, Start
from gpt2_lightning.sweep.runner import LOG, SHARED, Runner

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    remedy = "Install it: pip install 'gpt2-lightning[ray]'"
    raise MachineError("Ray", key="launch", value="ray", rule="is not installed here", remedy=remedy) from error

__all__ = ["RayChild", "connect"]

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 20.0
TOKEN = uuid.uuid4().hex  # in a file of the study's folder: who sees it shares the folder
ALONE: set[str] = set()  # nodes that do not, which was said


def connect(plan: Plan, launch: LaunchConfig) -> tuple[list[Slot], Start]:
    """The cluster's slots, and what starts a trial in one; raises MachineError where there is no cluster or no room in it."""
    assert isinstance(launch, RayLaunch)
    join(launch.address)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    n, most = plan.sweep.devices_per_trial, int(max(node.get("GPU", 0) for node in nodes))
    gpus = n if plan.base.trainer.accelerator == "gpu" or (plan.base.trainer.accelerator == "auto" and most) else 0
    if gpus > most:
        rule = f"{n} GPUs asked for, and no node of the cluster has more than {most}"
        raise MachineError("devices of a trial", key="sweep.devices_per_trial", value=n, rule=rule)
    room = int(sum(min(node.get("CPU", 0) // launch.cpus, node.get("GPU", 0) // gpus if gpus else 1e9) for node in nodes))
    if not room:
        rule = f"no node of the cluster has as many cores{f' beside {gpus} GPUs' if gpus else ''}"
        raise MachineError("cores of a trial", key="launch.cpus", value=launch.cpus, rule=rule)
    slots = [Slot(i, (), launch.cpus) for i in range(plan.sweep.slots or room)]
    return slots, partial(RayChild, needs={"num_cpus": launch.cpus, "num_gpus": gpus})


def join(address: str) -> None:
    """Be a driver of the cluster; raises MachineError."""
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address, log_to_driver=False, logging_level="ERROR", namespace="gpt2_lightning")
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        rule = f"no cluster answers: {first_line(error)}"
        remedy = "Start one with `ray start --head`, or set launch.address=HOST:PORT"
        raise MachineError("Ray", key="launch.address", value=address, rule=rule, remedy=remedy) from error


class RayChild:
    """A trial on the cluster, or waiting for room in it; as ``Child`` is on this machine."""

    def __init__(self, words: Sequence[str], slot: Slot, log: Path, ranks: int, *, needs: dict[str, int]) -> None:
        self.log, self.home = log, log.parents[1]
        self.status: int | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.home / SHARED, TOKEN)
        named = [Path(word.partition("=")[2]) for word in words if word.startswith(("config=", "score="))]
        files = {str(path): path.read_text(encoding="utf-8") for path in named}
        actor = ray.remote(Runner).options(max_concurrency=4, **needs)
        self.runner = actor.remote(pool.COMMAND[1:], str(Path.cwd()), str(self.home), TOKEN, log.stem)
        self.where: Future[tuple[str, bool]] = self.runner.where.remote().future()
        self.ended: Future[int] = self.runner.run.remote(list(words), files, slot, ranks).future()
        self.news: Future[dict[str, bytes]] | None = None
        self.placed = False

    def poll(self) -> int | None:
        """The exit status, LOST where its node is gone; None while it runs."""
        if self.status is None:
            try:
                self.look()
                self.status = self.ended.result() if self.ended.done() else None
            except (RayError, TimeoutError) as error:
                self.status, line = fault(error)
                self.said(f"error: {line}")
        return self.status

    def look(self) -> None:
        """Write down what a trial without the shared folder has sent, all of it once it has ended; raises RayError."""
        if not self.placed and self.where.done():
            node, shared = self.where.result()
            self.placed, self.news = True, None if shared else self.runner.news.remote().future()
            if not shared and node not in ALONE:
                ALONE.add(node)
                print(f"{node} does not see {self.home}: a trial that it loses starts from its beginning", file=sys.stderr)
        if self.news is not None and (self.news.done() or self.ended.done()):
            self.take(self.news.result(ANSWER_SECONDS))
            self.news = self.runner.news.remote().future()
            if self.ended.done():
                self.take(self.news.result(ANSWER_SECONDS))

    def take(self, news: dict[str, bytes]) -> None:
        """Write down files of the trial as they are now; of its log what is new."""
        (self.home / self.log.stem).mkdir(exist_ok=True)
        for name, content in news.items():
            if name == LOG:
                with self.log.open("ab") as file:
                    file.write(content)
            else:
                partial_file = self.home / self.log.stem / f".{name}.partial"
                partial_file.write_bytes(content)
                partial_file.replace(self.home / self.log.stem / name)

    def said(self, line: str) -> None:
        """Add a line to the trial's log."""
        with suppress(OSError), self.log.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def stop(self) -> None:
        """Ask it to end at its next step; one that waits for room has none."""
        with suppress(RayError):
            self.runner.stop.remote()
        if self.status is None and not self.where.done():
            self.said("error: terminated")
            self.status = 143

    def kill(self) -> None:
        """End it and all it has started."""
        if self.where.done():
            with suppress(RayError):
                ray.get(self.runner.end.remote(), timeout=ANSWER_SECONDS)
        ray.kill(self.runner)


def fault(error: Exception) -> tuple[int, str]:
    """The status of a trial whose actor has failed, and the reason: its node is gone, or cannot run it at all."""
    if isinstance(error, RayTaskError) or getattr(error, "actor_init_failed", False):
        return 1, f"a node of the cluster cannot run it: {str(error).strip().splitlines()[-1]}"
    return LOST, f"its node is gone: {first_line(error)}"
