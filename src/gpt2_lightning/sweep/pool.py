"""Slots: a machine's devices in; as many places for a trial as they make, each with devices and threads of its own, out.

A trial is a child process in a group of its own, which ends with the agent. One number: 1 slot on a machine without GPUs, whose
run then has all threads, as it would have alone. Choice not taken: threads or forks of the agent, which one trial's fault would
take along.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from gpt2_lightning.errors import MachineError
from gpt2_lightning.lock import process_state
from gpt2_lightning.settings.sweep import SweepConfig
from gpt2_lightning.settings.trainer import TrainerConfig
from gpt2_lightning.world import GPU_SHARE

__all__ = ["AGENT", "LOST", "Child", "Slot", "Start", "Trial", "end_group", "make_slots"]

AGENT = "GPT2_LIGHTNING_AGENT"  # tells a trial its agent, which it does not outlive
NOT_INHERITED = ("GPT2_LIGHTNING_RUN", "GPT2_LIGHTNING_START", "GPT2_LIGHTNING_INIT", "GPT2_LIGHTNING_RANK_0",
                 "GPT2_LIGHTNING_LINE", "GPT2_LIGHTNING_ATTEMPT", "GPT2_LIGHTNING_STORAGE", "LOCAL_RANK", "RANK", "WORLD_SIZE",
                 "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID",
                 "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT")  # fmt: skip

LOST = 256  # the status, no process's own, of a trial whose machine is gone
COMMAND = (sys.executable, "-m", "gpt2_lightning")
PORTS: deque[int] = deque(maxlen=64)  # given to children, who may not listen on them yet


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one trial: which GPUs, none on a machine without; how many CPU threads; which share of the GPUs' memory."""

    index: int
    gpus: tuple[str, ...]
    threads: int | None
    share: float = 1.0


@runtime_checkable
class Trial(Protocol):
    """A trial that was started, wherever it runs."""

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""

    def stop(self) -> None:
        """Ask it to end at its next step."""

    def kill(self) -> None:
        """End it and all it has started."""


Start = Callable[[Sequence[str], Slot, Path, int], Trial]  # words of the command, slot, log, ranks


def make_slots(config: SweepConfig, trainer: TrainerConfig) -> list[Slot]:
    """The slots of this machine; raises MachineError where a trial's devices are not there."""
    gpus = [] if trainer.accelerator == "cpu" else visible_gpus()
    n = config.devices_per_trial
    if (gpus or trainer.accelerator == "gpu") and len(gpus) < n:
        rule = f"{n} GPUs asked for, {len(gpus)} visible"
        raise MachineError("devices of a trial", key="sweep.devices_per_trial", value=n, rule=rule)
    groups = [tuple(gpus[i : i + n]) for i in range(0, len(gpus) - n + 1, n)] or [()]
    count = config.slots or len(groups)
    cores, whole = own_cores()
    threads = None if count * n == 1 and whole else max(1, cores // (count * n))
    share = 1 / -(-count // len(groups)) if groups[0] else 1.0
    return [Slot(i, groups[i % len(groups)], threads, share) for i in range(count)]


def own_cores() -> tuple[int, bool]:
    """How many cores are this process's, and whether torch would find as many: Slurm need not bind what it counts."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counted = int(os.environ.get("SLURM_CPUS_ON_NODE", bound))
    return min(bound, counted), counted >= bound


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as their driver counts or names them; without loading torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = [name.strip() for name in given.split(",") if name.strip()]
        return names[: names.index("-1")] if "-1" in names else names
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
        return [str(i) for i, line in enumerate(x for x in done.stdout.splitlines() if x.startswith("GPU "))]
    return []


class Child:
    """A trial's process; what it says goes to ``log``."""

    def __init__(self, words: Sequence[str], slot: Slot, log: Path, ranks: int = 1) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        env = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED and not k.startswith("SLURM_")}
        env |= {AGENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        if slot.threads is not None:
            env["OMP_NUM_THREADS"] = str(slot.threads)
        if slot.gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
            env[GPU_SHARE] = str(slot.share)
        if ranks > 1:
            env["MASTER_PORT"] = str(free_port())
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*COMMAND, *words], env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        return self.process.poll()

    def stop(self) -> None:
        """Ask it to end at its next step."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and all it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def end_group(pid: int) -> None:
    """Kill a trial that its agent has left, and wait until it is gone."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while process_state(pid) is not None and time.monotonic() < end:
        time.sleep(0.02)
    if process_state(pid) is not None:
        print(f"warning: process {pid} does not end", file=sys.stderr)


def free_port() -> int:
    """A port nobody listens on, and no child was given lately."""
    while True:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = int(s.getsockname()[1])
        if port not in PORTS:
            PORTS.append(port)
            return port
