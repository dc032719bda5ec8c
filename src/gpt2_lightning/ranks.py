"""The ranks of a run: how they meet, and how all end with the reason when one of them does.

Ranks that others have started hear from rank 0 in a store which folder, checkpoint and weights it has chosen; those that
Lightning starts are told by their environment. While they train every rank holds a line to rank 0, a TCP connection that the
kernel closes when its process ends: a rank that is killed would leave the others waiting in a collective. A rank that
fails by itself leaves word in the run's folder and ends with 0, since launchers kill rank 0 within seconds of any other's
failure; rank 0 speaks and has the exit status.
One number: 20 s until a machine that is gone without a word is missed. Choice not taken: the timeouts of process groups,
which are either long or end a run whose disk was slow.
"""

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from gpt2_lightning.errors import MachineError, PlatformError, first_line
from gpt2_lightning.folder import write_whole
from gpt2_lightning.world import World

__all__ = ["ATTEMPT", "HERE", "Line", "Meeting", "Watch", "leave_word"]

POLL_SECONDS = 0.5
GRACE_SECONDS = 3.0  # between another rank's word and rank 0's end, in which rank 0 may come to an end of its own
END_SECONDS = 15.0  # for another rank's own end, once rank 0 has come to its
COMING = timedelta(minutes=5)  # from the first rank's start to the last one's
MEETING = timedelta(hours=2)  # rank 0 may have to read a corpus first
HERE = "127.0.0.1"
GONE = "Was it out of memory? The same command goes on from the last checkpoint"
ATTEMPT = "GPT2_LIGHTNING_ATTEMPT"  # counts the starts of one process, which all use one store


def leave_word(folder: Path, rank: int, status: int, text: str) -> None:
    """Tell rank 0 what has ended this rank."""
    with suppress(PlatformError):  # a disk that is full or away: the line closes all the same
        write_whole(folder / f".rank{rank}", json.dumps({"status": status, "text": text}))


class Meeting:
    """The store of ranks that were started together; rank 0 tells, the others hear. Raises MachineError."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hosts = world.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                world.address, world.port, is_master=self.hosts, timeout=COMING, wait_for_workers=False
            )
        except RuntimeError as error:
            remedy = "Set MASTER_ADDR and MASTER_PORT to where rank 0 can be reached"
            place = f"{world.address}:{world.port}"
            raise MachineError("ranks", key="rank 0", value=place, rule=first_line(error), remedy=remedy) from error
        prefix = f"gpt2_lightning/{world.restarts}/{os.environ.get(ATTEMPT, '0')}"
        store.set_timeout(MEETING)
        self.store, self.told = PrefixStore(prefix, store), False

    def tell(self, start: dict[str, str]) -> None:
        """Rank 0's choices, as variables of the environment; raises MachineError with what keeps another rank from them."""
        self.store.set("start", json.dumps(start))
        for rank in range(1, self.world.size):
            if said := self.store.get(f"ready/{rank}").decode():
                raise MachineError(f"rank {rank}", rule=said)
        self.store.set("go", "yes")
        self.told = True

    def dismiss(self) -> None:
        """Rank 0 does not come to train: the others end. The store lasts until they know, if it ends with this process."""
        if self.told:
            return
        self.told = True
        self.store.set("start", "")
        self.store.set("go", "")
        if self.hosts:
            with suppress(RuntimeError):
                self.store.wait([f"heard/{rank}" for rank in range(1, self.world.size)], COMING)

    def hear(self) -> dict[str, str] | None:
        """What rank 0 has chosen; None where there is nothing to do."""
        if not (said := self.get("start")):
            self.leave()
            return None
        return json.loads(said)

    def is_ready(self, complaint: str = "") -> bool:
        """Say that this rank can do what was chosen, or why it cannot; returns whether all train."""
        self.store.set(f"ready/{self.world.rank}", complaint)
        goes = bool(self.get("go"))
        if not goes:
            self.leave()
        return goes

    def leave(self) -> None:
        """Let rank 0 know that this rank knows."""
        with suppress(RuntimeError):
            self.store.set(f"heard/{self.world.rank}", "yes")

    def get(self, key: str) -> str:
        """A word of rank 0; empty where rank 0 is gone, which the first other rank says."""
        try:
            return self.store.get(key).decode()
        except RuntimeError as error:
            if self.world.rank == 1:
                raise MachineError("rank 0", rule=f"ended before training began: {first_line(error)}") from error
            return ""

    def join(self, device: torch.device) -> None:
        """The process group, in this store: Lightning takes one that is there."""
        backend = "nccl" if device.type == "cuda" else "gloo"
        own = device if device.type == "cuda" else None
        group = PrefixStore("group", self.store)
        dist.init_process_group(backend, store=group, rank=self.world.rank, world_size=self.world.size, device_id=own)


class Watch:
    """Rank 0's end of the lines, a thread for the time of a ``with``; nothing where there is one rank.

    ``launcher`` is Lightning's, whose processes can tell by which signal they ended; ``before_end`` is called before the
    process is ended from here.
    """

    def __init__(self, folder: Path, ranks: int, address: str = HERE, before_end: Callable[[], None] = lambda: None) -> None:
        self.folder, self.ranks, self.address, self.before_end = folder, ranks, address, before_end
        self.over, self.launcher = threading.Event(), object()
        self.token = secrets.token_hex(16)
        self.lines: dict[socket.socket, tuple[int, str]] = {}
        self.thread = threading.Thread(target=self.look, name="ranks", daemon=True)

    def __enter__(self) -> "Watch":
        if self.ranks > 1:
            self.wake, self.woken = socket.socketpair()
            self.server = socket.create_server((HERE if self.address == HERE else "", 0), backlog=self.ranks)
            self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.over.set()
        if self.ranks > 1:
            self.wake.send(b".")
            self.thread.join(END_SECONDS)

    @property
    def place(self) -> str:
        """Where the others find this end, and what they show there; empty for one rank."""
        return f"{self.server.getsockname()[1]} {self.token} {self.address}" if self.ranks > 1 else ""

    def look(self) -> None:
        """Take lines, hear their ends, and look for words, which leave rank 0 some time for an end of its own."""
        seen = None
        with selectors.DefaultSelector() as waiting, self.server:
            waiting.register(self.server, selectors.EVENT_READ)
            waiting.register(self.woken, selectors.EVENT_READ)
            while not self.over.is_set():
                for key, _ in waiting.select(POLL_SECONDS):
                    self.attend(waiting, key.fileobj)
                if self.words():
                    seen = seen or time.monotonic()
                    if time.monotonic() - seen > GRACE_SECONDS and not self.over.is_set():
                        self.say()
            self.send(b".")

    def attend(self, waiting: selectors.BaseSelector, ready: Any) -> None:
        """A new line, or a word or the end of one."""
        if ready is self.server:
            if line := self.greet():
                waiting.register(line, selectors.EVENT_READ)
        elif ready in self.lines:
            waiting.unregister(ready)
            rank, host = self.lines.pop(ready)
            if not heard(ready) and not self.over.is_set():
                self.end(7, f"error: {self.death(rank, host)}")

    def greet(self) -> socket.socket | None:
        """The line of a rank that has shown the token."""
        line, _ = self.server.accept()
        line.settimeout(END_SECONDS)
        with suppress(OSError, ValueError):
            token, rank, host = line.makefile("r").readline().split()
            if secrets.compare_digest(token, self.token):
                keep_alive(line)
                self.lines[line] = int(rank), host
                return line
        line.close()
        return None

    def death(self, rank: int, host: str) -> MachineError:
        """The error for a rank that has ended without a word."""
        there, status = "" if self.address == HERE else f" on {host}", None
        for _ in range(20):
            processes = getattr(self.launcher, "procs", [])
            status = processes[rank - 1].poll() if processes else None
            if status is not None or not processes:
                break
            time.sleep(0.05)  # its end may be younger than that of its line
        rule = f"was ended by signal {-status}" if status and status < 0 else "has ended, or its machine is gone"
        return MachineError(f"rank {rank}{there}", rule=rule, remedy=GONE)

    def speak(self) -> None:
        """Rank 0 has met a broken collective: the reason is on its way."""
        if self.ranks > 1:
            self.over.wait(2 * GRACE_SECONDS)

    def words(self) -> list[Path]:
        """What other ranks have left."""
        return sorted(self.folder.glob(".rank[0-9]*"))

    def say(self) -> None:
        """End with the first word and its status."""
        told = json.loads(self.words()[0].read_text(encoding="utf-8"))
        text = told["text"] if told["status"] == 1 else f"error: {told['text']}"
        self.end(told["status"], f"{text} [rank {self.words()[0].name.removeprefix('.rank')}]")

    def end(self, status: int, text: str) -> None:
        """Print the reason and end this process, and with it the others."""
        print(text, file=sys.stderr, flush=True)
        self.before_end()
        self.send(b"!")
        os._exit(status)

    def send(self, said: bytes) -> None:
        """Tell the others: ``.`` this rank has come to its end, ``!`` the reason is told."""
        for line in self.lines:
            with suppress(OSError):
                line.send(said)


class Line:
    """Another rank's end of its line, a thread for the time of a ``with``; raises MachineError where there is no rank 0."""

    def __init__(self, place: str, rank: int) -> None:
        port, token, address = place.split(" ", 2)
        try:
            self.line = socket.create_connection((address, int(port)), timeout=60)
            self.line.sendall(f"{token} {rank} {socket.gethostname() or '?'}\n".encode())
        except OSError as error:
            rule = f"cannot be reached from rank {rank}: {error}"
            raise MachineError("rank 0", key="address", value=f"{address}:{port}", rule=rule) from error
        self.line.settimeout(None)
        keep_alive(self.line)
        self.rank, self.over = rank, threading.Event()

    def __enter__(self) -> "Line":
        threading.Thread(target=self.look, name="line", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.over.set()
        with suppress(OSError):
            self.line.send(b".")
            self.line.shutdown(socket.SHUT_RDWR)

    def look(self) -> None:
        """End with rank 0. Where nobody has spoken, the first of the others does."""
        said = heard(self.line)
        if said == b".":
            self.over.wait(END_SECONDS)
        if self.over.is_set():
            return
        speaks = not said and self.rank == 1
        if speaks:
            print(f"error: {MachineError('rank 0', rule='was ended', remedy=GONE)}", file=sys.stderr, flush=True)
        os._exit(MachineError.status if speaks else 0)


def heard(line: socket.socket) -> bytes:
    """The next byte; none where the line has ended."""
    try:
        return line.recv(1)
    except OSError:
        return b""


def keep_alive(line: socket.socket) -> None:
    """Have the kernel ask whether the other end is still there."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
