"""Blocks: documents in, rows of block_size + 1 tokens out, in an order that depends on the seed and the position alone.

In: a way to read the documents again, a tokenizer. Out: row n of the stream, any n, as int32 ``[block_size + 1]``: inputs
are all but the last token, targets all but the first. Documents stand end to end with end-of-text between them, and every
token is a target once an epoch.
One number: documents and blocks are shuffled within windows of 16,777,216 tokens, 64 MiB; a smaller corpus is one window.
Choice not taken: a shuffle buffer, whose content would have to be saved to resume; a window is made again from its number.
"""

from collections.abc import Callable, Iterator

import numpy as np

from gpt2_lightning.data.corpus import Piece
from gpt2_lightning.data.tokens import Tokenizer
from gpt2_lightning.errors import DataError

__all__ = ["TextBlocks", "read_documents", "validation_blocks"]

Tokens = np.ndarray  # int32


def read_documents(pieces: Iterator[Piece], tokenizer: Tokenizer) -> Iterator[Tokens]:
    """Each document's tokens, end-of-text at its end."""
    parts: list[Tokens] = []
    for text, ends in pieces:
        parts.append(tokenizer.encode(text))
        if ends:
            yield np.concatenate([*parts, np.array([tokenizer.end_of_text], np.int32)])
            parts = []


class TextBlocks:
    """Row n of the shuffled, packed training stream of one corpus, repeated without end."""

    def __init__(self, read: Callable[[], Iterator[Tokens]], block_size: int, seed: int, window_tokens: int) -> None:
        self.read, self.block_size, self.seed, self.window_tokens = read, block_size, seed, window_tokens
        self.whole: list[Tokens] | None = None  # the corpus itself, once it is known to be a single window
        self.restart()

    def restart(self) -> None:
        """Stand before row 0."""
        self.windows = self.window_order()
        self.first, self.rows = 0, np.empty((0, self.block_size + 1), np.int32)

    def gather(self, start: int, count: int) -> Tokens:
        """Rows ``start`` to ``start + count`` of the stream, ``[count, block_size + 1]``."""
        if start < self.first:
            self.restart()
        while start >= self.first + len(self.rows):
            self.first += len(self.rows)
            self.rows = next(self.windows)
        at = start - self.first
        rows = self.rows[at : at + count]
        return rows if len(rows) == count else np.concatenate([rows, self.gather(start + len(rows), count - len(rows))])

    def window_order(self) -> Iterator[Tokens]:
        """Window after window of shuffled rows; what fills no row is carried into the next window."""
        carried = np.empty(0, np.int32)
        epoch = 0
        while True:
            for number, documents in enumerate(self.window_documents()):
                random = np.random.default_rng([self.seed, epoch, number])
                order = random.permutation(len(documents))
                tokens = np.concatenate([carried, *(documents[i] for i in order)])
                rows, carried = pack(tokens, self.block_size)
                if len(rows):
                    yield rows[random.permutation(len(rows))]  # a copy: neighbours overlap by a token
            epoch += 1

    def window_documents(self) -> Iterator[list[Tokens]]:
        """The documents of each window of one epoch."""
        if self.whole is not None:
            yield self.whole
            return
        window: list[Tokens] = []
        held, full_windows = 0, 0
        for document in self.read():
            window.append(document)
            held += len(document)
            if held >= self.window_tokens:
                yield window
                window, held, full_windows = [], 0, full_windows + 1
        if not full_windows:
            self.whole = window
            require_tokens(held, self.block_size)
        if window:
            yield window


def pack(tokens: Tokens, block_size: int) -> tuple[Tokens, Tokens]:
    """Rows of block_size + 1 tokens, each beginning with the last of the row before; and the tokens left over."""
    if len(tokens) <= block_size:
        return np.empty((0, block_size + 1), np.int32), tokens
    rows = np.lib.stride_tricks.sliding_window_view(tokens, block_size + 1)[::block_size]
    return rows, tokens[len(rows) * block_size :]


def require_tokens(there: int, block_size: int) -> None:
    """Raise DataError when a corpus does not fill one row."""
    if there < block_size + 1:
        rule = f"holds {there} tokens for training, and one block needs {block_size + 1}"
        raise DataError("corpus", key="data", value="train", rule=rule, remedy="Give it more text, or lower model.block_size")


def validation_blocks(documents: Iterator[Tokens], block_size: int, end_of_text: int) -> tuple[Tokens, Tokens]:
    """Inputs and targets ``[N, block_size]`` in stored order, every token a target once; the last row is padded with -1.

    Raises DataError when there is no text.
    """
    tokens = np.concatenate([np.array([end_of_text], np.int32), *documents])
    if len(tokens) == 1:
        rule = "no document is left for validation"
        remedy = "Set data.split=blank_line to make several of one file, or name a file with data.validation"
        raise DataError("corpus", key="data", value="validation", rule=rule, remedy=remedy)
    padding = -(len(tokens) - 1) % block_size
    inputs = np.concatenate([tokens[:-1], np.full(padding, end_of_text, np.int32)])
    targets = np.concatenate([tokens[1:], np.full(padding, -1, np.int32)])
    return inputs.reshape(-1, block_size), targets.reshape(-1, block_size)
