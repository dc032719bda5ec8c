"""A made-up recall task: one digit among letters, asked for at the end of the row, far from where it stands.

Out: rows of bytes, ``letters digit letters ? digit``; only the last token is a target, so chance is one in ten.
The digit stands in the first quarter, so that it lies three quarters of the context back or more: attention over the whole
context sees it, n_layer stacked windows of N tokens reach n_layer * (N - 1) tokens back.
"""

import numpy as np

__all__ = ["RecallBlocks"]

DIGITS, LETTERS, QUESTION = (
    np.frombuffer(b"0123456789", np.uint8),
    np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8),
    63,
)
VALIDATION_ROWS = 1024


class RecallBlocks:
    """Row n of the task, a pure function of (seed, n)."""

    def __init__(self, block_size: int, seed: int) -> None:
        self.block_size, self.seed = block_size, seed

    def gather(self, start: int, count: int) -> np.ndarray:
        """Rows ``start`` to ``start + count``, int32 ``[count, block_size + 1]``."""
        return np.stack([self.row(n) for n in range(start, start + count)])

    def row(self, n: int) -> np.ndarray:
        """One row."""
        random = np.random.default_rng([self.seed, n])
        row = random.choice(LETTERS, self.block_size + 1).astype(np.int32)
        row[random.integers(max(1, self.block_size // 4))] = row[-1] = random.choice(DIGITS)
        row[-2] = QUESTION
        return row


def recall_validation(block_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of rows that training never sees: those of another seed."""
    rows = RecallBlocks(block_size, seed + 1_000_003).gather(0, VALIDATION_ROWS)
    return rows[:, :-1], answers(rows)


def answers(rows: np.ndarray) -> np.ndarray:
    """Targets with all but the last ignored (-1)."""
    targets = np.full_like(rows[:, 1:], -1)
    targets[:, -1] = rows[:, -1]
    return targets
