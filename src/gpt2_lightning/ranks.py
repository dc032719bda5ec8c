"""Ranks of one machine: another rank's fault in, rank 0's words and exit status out.

Lightning kills rank 0 within seconds of any rank's non-zero exit, and a rank that is gone leaves the others waiting in a
collective. So other ranks end with 0 and leave word in the run's folder, and rank 0 watches for it while it trains.
One number: 3 s between another rank's word and rank 0's end, in which rank 0 may come to an end of its own.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt2_lightning.errors import MachineError
from gpt2_lightning.folder import write_whole

__all__ = ["Watch", "leave_word", "require_ranks"]

POLL_SECONDS = 0.5
GRACE_SECONDS = 3.0


def leave_word(folder: Path, status: int, text: str) -> None:
    """Tell rank 0 what has ended this rank."""
    name = f".rank{os.environ['LOCAL_RANK']}"
    write_whole(folder / name, json.dumps({"status": status, "text": text}))


def require_ranks(processes: Sequence[Any]) -> None:
    """Raise MachineError where a rank was killed: a collective that breaks is the first that rank 0 hears of it."""
    for rank, process in enumerate(processes, start=1):
        for _ in range(10):
            if process.poll() is None:
                time.sleep(0.05)  # its end may be younger than that of its connections
        if process.poll():
            remedy = "Was it out of memory? The same command goes on from the last checkpoint"
            rule = f"was ended by signal {-process.poll()}" if process.poll() < 0 else f"ended with {process.poll()}"
            raise MachineError(f"rank {rank}", rule=rule, remedy=remedy)


class Watch:
    """A thread of rank 0 for the time of a ``with``; nothing where there is one rank."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder, self.ranks, self.over = folder, ranks, threading.Event()

    def __enter__(self) -> "Watch":
        if self.ranks > 1:
            threading.Thread(target=self.look, name="ranks", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.over.set()

    def look(self) -> None:
        """Wait for a word, give rank 0 time for its own, and end the process."""
        while not self.over.wait(POLL_SECONDS):
            if self.words() and not self.over.wait(GRACE_SECONDS):
                self.say()

    def speak(self) -> None:
        """Rank 0 has met a broken collective: where another rank has left word, end with that."""
        for _ in range(round(GRACE_SECONDS / POLL_SECONDS) if self.ranks > 1 else 0):
            if self.words():
                self.say()
            self.over.wait(POLL_SECONDS)

    def words(self) -> list[Path]:
        """What other ranks have left."""
        return sorted(self.folder.glob(".rank[0-9]*"))

    def say(self) -> None:
        """Print the first word and end with its status; the kernel ends the other ranks."""
        told = json.loads(self.words()[0].read_text(encoding="utf-8"))
        text = told["text"] if told["status"] == 1 else f"error: {told['text']}"
        print(f"{text} [rank {self.words()[0].name.removeprefix('.rank')}]", file=sys.stderr, flush=True)
        os._exit(told["status"])
