"""What a person sees of a running study: the slots' state in; lines on the terminal out.

On a terminal a block that is rewritten in place, a line for each slot and one for the study; in a pipe a plain line whenever a
trial starts or ends, and one for all that run each minute. One number: 0.5 s between two drawings. Choice not taken: a terminal
library.
"""

import shutil
import sys
import time
from contextlib import suppress
from typing import TextIO

__all__ = ["View"]

DRAW_SECONDS, PLAIN_SECONDS = 0.5, 60.0


class View:
    """Draws; ``note`` is a line that stays."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.in_place, self.drawn, self.last = self.stream.isatty(), 0, time.monotonic()

    def note(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self.write(f"{printable(text)}\n")

    def due(self) -> bool:
        """Whether it is time to show everything."""
        return time.monotonic() - self.last >= (DRAW_SECONDS if self.in_place else PLAIN_SECONDS)

    def show(self, total: str, slots: list[str]) -> None:
        """The slots, on a terminal as many as it has room for, and the study."""
        self.last = time.monotonic()
        width, height = shutil.get_terminal_size()
        lines = [printable(f"  {line}") for line in slots]
        if self.in_place:
            self.clear()
            room = max(1, height - 3)
            more = [f"  ... and {len(lines) - room} more"] if len(lines) > room else []
            lines = [line[: width - 1] for line in (*lines[:room], *more, total)]
            self.drawn = len(lines)
        else:
            lines = [total, *lines]
        self.write("\n".join(lines) + "\n")

    def write(self, text: str) -> None:
        """Have it on the stream; one that is full, or closed, ends no study."""
        with suppress(OSError):
            self.stream.write(text)
            self.stream.flush()

    def clear(self) -> None:
        """Take the block away."""
        if self.drawn:
            self.write(f"\x1b[{self.drawn}A\x1b[J")
            self.drawn = 0


def printable(text: str) -> str:
    """The text as one line that moves no cursor, whatever a setting or a failed trial's last words hold."""
    return "".join(c if c.isprintable() else " " for c in text)
