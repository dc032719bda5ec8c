"""Runs in forks of the test process: what a command does, with whatever is broken in it, without a Python's start each time.

``start`` gives a process, ``run`` its status. Ranks are forks too: Lightning would start them with this process's arguments.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch.strategies.launchers.subprocess_script as launcher
import torch

from gpt2_lightning import run as _run  # noqa: F401  loaded before the first fork
from gpt2_lightning import trial as _trial  # noqa: F401
from gpt2_lightning.__main__ import main
from gpt2_lightning.checkpoint import checkpoints, load_checkpoint, verify_checkpoint
from gpt2_lightning.sweep import pool
from gpt2_lightning.sweep.pool import NOT_INHERITED

NANO = ("model=nano", "trainer=cpu", "data.batch_size=4", "data.val_batches=2", "samples.max_new_tokens=0")
Break = Callable[[], None]


class Again(BaseException):
    """The process would have replaced itself by the same command."""


class Fork:
    """A rank, as Lightning's launcher wants to see it."""

    def __init__(self, words: Sequence[str], rank: int, broken: Break | None) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.environ["LOCAL_RANK"] = str(rank)
            play(words, broken)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 60) -> int | None:
        end = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def play(words: Sequence[str], broken: Break | None) -> None:
    """The command in this process, which ends with its status."""
    status = 99
    try:
        try:
            if broken:
                broken()
            while True:
                try:
                    status = main(list(words))
                    break
                except Again:
                    continue
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # on a full disk nothing can be said, and this fork is still not to go on with the tests
        os._exit(status)


def fork_ranks(words: Sequence[str], broken: Break | None) -> None:
    """From here on, Lightning's other ranks are forks of this process."""

    def call(self: Any) -> None:
        port, ranks = self.cluster_environment.main_port, self.num_processes * self.num_nodes
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)})
        os.environ["LOCAL_RANK"] = "0"
        self.procs = [Fork(words, rank, broken) for rank in range(1, ranks)]

    launcher._SubprocessScriptLauncher._call_children_scripts = call  # type: ignore[method-assign]


class ForkedChild(subprocess.Popen):  # type: ignore[type-arg]
    """A trial as a fork of its agent; so are its ranks."""

    def __init__(self, command: Any, env: dict[str, str], stdout: Any, **_: Any) -> None:
        words = list(command)[len(pool.COMMAND) :]
        self.returncode, self.args = None, command
        self._waitpid_lock = threading.Lock()
        self.stdin = self.stdout = self.stderr = None
        self._child_created = True
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            for descriptor in (1, 2):
                os.dup2(stdout.fileno(), descriptor)
            os.environ.clear()
            os.environ.update(env)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            fork_ranks(words, None)
            play(words, None)


def fork_trials() -> None:
    """From here on, trials are forks of this process, their agent."""
    pool.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": ForkedChild})  # type: ignore[assignment]


def start(words: Sequence[str], cwd: Path, broken: Break | None = None, log: str = "log", errors: str = "", **env: str) -> int:
    """The process number of the command, started in a folder; its words go to a file there, its errors to another if named."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        for descriptor, name in ((1, log), (2, errors or log)):
            os.dup2(os.open(cwd / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(cwd)
        for name in NOT_INHERITED:
            os.environ.pop(name, None)
        os.environ.update(env)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

        def again(program: str, words: Any, environ: dict[str, str]) -> None:
            os.environ.update(environ)
            raise Again

        fork_ranks(words, broken)
        os.execve = again  # type: ignore[assignment]
    except BaseException:  # such as a full disk: this fork is not to go on with the tests
        os._exit(98)
    play(words, broken)
    raise AssertionError


def start_world(
    words: Sequence[str], cwd: Path, size: int, nodes: int = 1, broken: Break | None = None, starter: str = "torchrun"
) -> list[int]:
    """The ranks of a command as torchrun or srun starts them, all on this machine; each has its own log."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cwd.mkdir(parents=True, exist_ok=True)
    local = size // nodes
    found = []
    for rank in range(size):
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank % local)}
        if starter == "torchrun":
            env |= {"TORCHELASTIC_RUN_ID": "none", "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(local)}
        else:
            env |= {"SLURM_STEP_NUM_TASKS": str(size), "SLURM_STEP_NUM_NODES": str(nodes), "SLURM_PROCID": str(rank)}
            env |= {"SLURM_LOCALID": str(rank % local)}
        found.append(start(words, cwd, broken, log=f"log.{rank}", **env))
    return found


def run_world(words: Sequence[str], cwd: Path, size: int, nodes: int = 1, broken: Break | None = None) -> list[int]:
    """Start and finish; returns each rank's status."""
    return [finish(pid) for pid in start_world(words, cwd, size, nodes, broken)]


def said(cwd: Path, what: str = "error: ") -> list[str]:
    """The lines of all ranks' logs with these words."""
    logs = sorted(cwd.glob("log.*"))
    return [line for log in logs for line in log.read_text().splitlines() if what in line]


def finish(pid: int, seconds: float = 120) -> int:
    """The exit status of a process; negative for the signal that killed it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"process {pid} took more than {seconds} s")


def run(words: Sequence[str], cwd: Path, broken: Break | None = None, **env: str) -> int:
    """Start and finish."""
    cwd.mkdir(parents=True, exist_ok=True)
    return finish(start(words, cwd, broken, **env))


def train(words: Sequence[str], cwd: Path, broken: Break | None = None, **env: str) -> Path:
    """A run that has to end well; returns its folder."""
    status = run(words, cwd, broken, **env)
    assert status == 0, (status, (cwd / "log").read_text()[-3000:])
    return only_run(cwd)


def only_run(cwd: Path) -> Path:
    """The one run in a folder."""
    (found,) = (cwd / "outputs/runs").glob("*/[!.]*")
    return found


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows]


def last_state(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and weights of the newest checkpoint, every byte of it verified."""
    newest = checkpoints(folder / "checkpoints")[0]
    verify_checkpoint(newest)
    return load_checkpoint(newest)


def same(a: Any, b: Any) -> bool:
    """Equal in all parts, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(one: Path, other: Path) -> None:
    """All logged numbers, the weights, the optimizer, the random states and the stream's places are equal."""
    assert lines(one) == lines(other)
    (state, weights), (other_state, other_weights) = last_state(one), last_state(other)
    assert same(weights, other_weights)
    assert same(state["optimizer_states"], other_state["optimizer_states"])
    assert state["StreamDataModule"]["step"] == other_state["StreamDataModule"]["step"]
    assert same(state["StreamDataModule"]["places"], other_state["StreamDataModule"]["places"])
    mine, others = state["callbacks"]["Keeper"], other_state["callbacks"]["Keeper"]
    for rank in (*mine["ranks"], *others["ranks"]):
        del rank["random"]["python"]  # the type checks of the test suite draw from it
    assert same(mine, others), [key for key in mine if not same(mine[key], others[key])]


def leftovers(folder: Path) -> list[str]:
    """What has no business in a run's folder."""
    hidden = [path for path in folder.rglob(".*") if path.name != ".lock"]
    return [str(path) for path in (*hidden, *folder.rglob("*.partial"), *folder.rglob("damaged*"))]


def kill_at_call(owner: Any, name: str, call: int, rank: int = 0, number: int = signal.SIGKILL) -> Break:
    """Kill the process at the n-th call of a function, before it does anything."""

    def broken() -> None:
        there, calls = getattr(owner, name), [0]

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == call and os.environ.get("LOCAL_RANK", "0") == str(rank):
                os.kill(os.getpid(), number)
                time.sleep(0.2)  # until it is heard
            return there(*args, **kwargs)

        setattr(owner, name, counted)

    return broken
