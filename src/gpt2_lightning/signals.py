"""Signals: SIGTERM, SIGINT and Slurm's SIGUSR1 in; a number that the training loop looks at between two steps out.

Before training there is nothing to save, and a signal ends the process at once. While it is ``armed`` the first signal is
noted, and a second SIGINT ends it at once, with the last checkpoint as good as before.
One number: 128, added to a signal's number for the exit status. Choice not taken: exceptions raised in a handler, which come
up in the middle of anything.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from types import FrameType

from gpt2_lightning.errors import PlatformError
from gpt2_lightning.lock import job_id
from gpt2_lightning.world import may_speak

__all__ = ["Interrupted", "Signals", "end_with_parent", "ignore_signals", "requeue"]

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Interrupted(PlatformError):
    """A signal has ended the run at a step boundary."""

    def __init__(self, number: int, rule: str) -> None:
        self.number = number
        self.status = 143 if number == signal.SIGUSR1 else 128 + number
        super().__init__("interrupted" if number == signal.SIGINT else "terminated", rule=rule)


class Signals:
    """``number``: the first signal since the start, 0 while there is none."""

    def __init__(self) -> None:
        self.number, self.armed, self.listening = 0, False, False
        self.numbers = {signal.SIGTERM, signal.SIGINT} | ({signal.SIGUSR1} if job_id() else set())

    def install(self) -> None:
        """Handle them, and let them through. A thread of its own hears them even where the main one waits for other ranks."""
        if not self.listening:
            self.listening = True
            hear, tell = os.pipe()
            os.set_blocking(tell, False)
            signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
            threading.Thread(target=self.listen, args=(hear,), name="signals", daemon=True).start()
        for number in self.numbers:
            signal.signal(number, heard_elsewhere)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.numbers)

    def block(self) -> None:
        """Hold them back until ``install``: somebody else's handlers are in place meanwhile."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self.numbers)

    def listen(self, hear: int) -> None:
        """Take the numbers that the interpreter passes on."""
        while said := os.read(hear, 64):
            for number in said:
                if number in self.numbers:
                    self.take(number)

    def take(self, number: int) -> None:
        """Note the signal, or end the process at once."""
        if not self.armed or (number == signal.SIGINT and self.number):
            word = "interrupted" if number == signal.SIGINT else "terminated"
            if may_speak():
                os.write(2, f"error: {word}\n".encode())
            os._exit(Interrupted(number, "").status)
        self.number = self.number or number


def heard_elsewhere(number: int, frame: FrameType | None) -> None:
    """The handler of the main thread: the listening one has the number already."""


def requeue() -> str:
    """Ask Slurm to start this job again; returns what came of it, in words."""
    try:
        done = subprocess.run(["scontrol", "requeue", job_id()], capture_output=True, text=True, timeout=60)
        return "requeued" if done.returncode == 0 else f"not requeued: {done.stderr.strip()}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not requeued: {error}"


def ignore_signals() -> None:
    """For the loader's workers: what is sent to the whole group is their rank's business; they end with it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(os.getppid())


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, where it can; end now where it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
