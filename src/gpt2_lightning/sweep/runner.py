"""A trial on its node of a cluster: words and files in; the process, what it has written since the last answer, its status out.

One number: 1 s at least between two answers. Choice not taken: knowing Ray, or anything that takes time to load; it is started
once for each trial.
"""

import os
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gpt2_lightning.sweep import pool
from gpt2_lightning.sweep.pool import Child, Slot

__all__ = ["LOG", "SHARED", "Runner"]

NEWS_SECONDS = 1.0
LOG, SHARED = "log", ".shared"
SENT = ("metrics.jsonl", "result.json", "scores.json", "config.yaml")  # what an agent and its report read of a trial


class Runner:
    """The actor of a trial. ``home``: the study's folder, which is shared where the ``token`` is in it, or else made here."""

    def __init__(self, command: Sequence[str], folder: str, home: str, token: str, name: str) -> None:
        pool.COMMAND = (sys.executable, *command)  # type: ignore[assignment]
        self.home = Path(home)
        self.shared = read(self.home / SHARED) == token
        self.log, self.folder = self.home / "logs" / f"{name}.txt", self.home / name
        Path(folder).mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        self.child: Child | None = None
        self.stopping, self.over = False, threading.Event()
        self.sent: dict[str, tuple[int, int]] = {}
        self.log_sent = self.log.stat().st_size if self.log.exists() else 0

    def where(self) -> tuple[str, bool]:
        """The node, and whether it sees the study's folder."""
        return socket.gethostname(), self.shared

    def run(self, words: list[str], files: dict[str, str], slot: Slot, ranks: int) -> int:
        """The trial's exit status. What it was to take from another trial that is not here, it trains itself."""
        try:
            self.child = Child(words if self.shared else self.at_home(words, files), slot, self.log, ranks)
            if self.stopping:
                self.child.stop()
            return self.child.process.wait()
        finally:
            self.over.set()

    def at_home(self, words: list[str], files: dict[str, str]) -> list[str]:
        """Write down the files that the words name; the words that hold here."""
        for path, text in files.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text, encoding="utf-8")
        return [w for w in words if not w.startswith("trained=") or (Path(w.partition("=")[2]) / "result.json").exists()]

    def news(self) -> dict[str, bytes]:
        """The files that an agent reads, as far as they have changed, once any has or the trial is over."""
        while not (found := self.changed()) and not self.over.is_set():
            self.over.wait(NEWS_SECONDS)
        self.over.wait(NEWS_SECONDS)
        return found

    def changed(self) -> dict[str, bytes]:
        """Files and what is new in the log since it was last asked."""
        found = {}
        for name in SENT:
            with suppress(OSError):
                stat = (self.folder / name).stat()
                if self.sent.get(name) != (mark := (stat.st_mtime_ns, stat.st_size)):
                    found[name], self.sent[name] = (self.folder / name).read_bytes(), mark
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(self.log_sent)
            if said := file.read():
                found[LOG], self.log_sent = said, self.log_sent + len(said)
        return found

    def stop(self) -> None:
        """Ask the trial to end at its next step, or as soon as it has started."""
        self.stopping = True
        if self.child is not None:
            self.child.stop()

    def end(self) -> None:
        """Kill what is left of it."""
        if self.child is not None:
            self.child.kill()


def read(path: Path) -> str:
    """A file's text; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
