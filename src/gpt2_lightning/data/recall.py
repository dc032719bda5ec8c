"""A made-up recall task: one digit among letters, asked for at the end of the row, far from where it stands.

Out: passages of bytes that fill one row each, ``letters digit letters ? digit``; only the last token is a label, so chance is
one in ten. The digit stands in the first quarter, so that it lies three quarters of the context back or more: attention over
the whole context sees it, n_layer stacked windows of N tokens reach n_layer * (N - 1) tokens back.
"""

import numpy as np

from gpt2_lightning.data.lanes import Passage
from gpt2_lightning.loss import IGNORED

__all__ = ["recall_passage", "recall_validation"]

DIGITS = np.frombuffer(b"0123456789", np.uint8)
LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)
QUESTION = ord("?")
VALIDATION_ROWS = 1024


def recall_passage(block_size: int, seed: int, g: int) -> Passage:
    """Passage number g of the task, a pure function of (seed, g)."""
    random = np.random.default_rng([seed, g])
    tokens = random.choice(LETTERS, block_size).astype(np.int32)
    tokens[random.integers(max(1, block_size // 4))] = tokens[-1] = random.choice(DIGITS)
    tokens[-2] = QUESTION
    labels = np.full(block_size, IGNORED, np.int32)
    labels[-1] = tokens[-1]
    return Passage(tokens, labels)


def recall_validation(block_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of rows that training never sees: those of another seed."""
    passages = [recall_passage(block_size, seed + 1_000_003, g) for g in range(VALIDATION_ROWS)]
    tokens = np.stack([passage.tokens for passage in passages])
    labels = [passage.labels for passage in passages if passage.labels is not None]
    before = np.full((VALIDATION_ROWS, 1), QUESTION, np.int32)
    return np.concatenate([before, tokens[:, :-1]], 1), np.stack(labels)
