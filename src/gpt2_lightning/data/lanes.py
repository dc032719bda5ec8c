"""Lanes: documents in, rows of tokens out. There are as many lanes as rows in a step's global batch; lane r fills row r.

Lane r packs the documents of draws r, r + lanes, r + 2 * lanes, ... end to end. Its place is two numbers, how many of its draws
it has used up and how far it is in the next, so any process can take any lane on from any place: the rows are the same
whatever the number of ranks and workers.
One number: 8 bytes of state a lane. Choice not taken: dealing whole batches to workers, of which each would need rows of
almost every lane.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpt2_lightning.loss import IGNORED

__all__ = ["Lane", "Passage", "Read", "Rows"]


class Passage(NamedTuple):
    """What one draw gives: tokens ``[n]``, end-of-text among them; the labels ``[n]`` where they are others than the tokens."""

    tokens: np.ndarray
    labels: np.ndarray | None = None
    corpus: int = 0
    applied: tuple[str, ...] = ()


class EndOfStream(Exception):
    """All corpora have ended."""


Read = Callable[[int], Passage | None]  # a draw's number in, its passage out, None where it has none; raises EndOfStream


class Rows:
    """``[n, block_size + 1]`` tokens, int64: inputs are all but the last; ``labels`` the same array until they differ.

    ``corpora``, uint8, is there where several corpora are told apart. ``places`` ``[n, 2]`` are the lanes' behind their rows.
    ``counts`` counts the documents that were begun, those of each corpus and those that each augmentation was applied to, and
    the rows behind whose end the stream has nothing left.
    """

    def __init__(self, n: int, block_size: int, several: bool) -> None:
        self.tokens = np.empty((n, block_size + 1), np.int64)
        self.labels = self.tokens
        self.corpora = np.zeros((n, block_size + 1), np.uint8) if several else None
        self.places = np.zeros((n, 2), np.int32)
        self.counts = Counter[str]()

    def own_labels(self) -> np.ndarray:
        """The labels, from now on an array of their own."""
        if self.labels is self.tokens:
            self.labels = self.tokens.copy()
        return self.labels


class Lane:
    """Lane ``number`` of ``lanes``; ``draw`` and ``offset`` are its place.

    With ``records`` no passage goes on in the next row: what does not fit the rest of a row begins the next one, behind
    end-of-text, and what is longer than a row is cut.
    """

    def __init__(
        self, read: Read, number: int, lanes: int, end_of_text: int, draw: int = 0, offset: int = 0, records: bool = False
    ) -> None:
        self.read, self.number, self.lanes, self.end_of_text, self.records = read, number, lanes, end_of_text, records
        self.draw, self.offset = draw, offset
        self.passage: Passage | None = None
        self.last = -1  # the token before the place, first of the next row; -1 when it has to be looked up

    def fill(self, rows: Rows, j: int) -> None:
        """Fill row j, whose first token is the last of the row before, or end-of-text: every token is a label once.

        At the end of the stream the rest of the row, or all of it, predicts nothing.
        """
        row, size, at = rows.tokens[j], rows.tokens.shape[1], 1
        row[0] = self.end_of_text if self.records else self.token_before(rows)
        while at < size:
            try:
                passage = self.passage or self.open(rows)
            except EndOfStream:
                rows.counts["ended"] += 1
                self.pad(rows, j, at)
                break
            if self.records and at > 1 and size - at < len(passage.tokens):
                self.pad(rows, j, at)
                break
            n = min(size - at, len(passage.tokens) - self.offset)
            taken = slice(self.offset, self.offset + n)
            row[at : at + n] = passage.tokens[taken]
            if passage.labels is not None or rows.labels is not rows.tokens:
                labels = passage.tokens if passage.labels is None else passage.labels
                rows.own_labels()[j, at : at + n] = labels[taken]
            if rows.corpora is not None:
                rows.corpora[j, at : at + n] = passage.corpus
            at += n
            self.offset += n
            if self.records or self.offset == len(passage.tokens):  # what a record is too long by is not read
                self.draw, self.offset, self.passage = self.draw + 1, 0, None
        self.last = int(row[-1])
        rows.places[j] = self.draw, self.offset

    def pad(self, rows: Rows, j: int, at: int) -> None:
        """Nothing more stands in this row."""
        rows.own_labels()[j, at:] = IGNORED
        rows.tokens[j, at:] = self.end_of_text

    def open(self, rows: Rows) -> Passage:
        """The passage of this place, that of the next draw that has one."""
        while (passage := self.read(self.draw * self.lanes + self.number)) is None or not len(passage.tokens):
            self.draw += 1
        self.passage = passage
        if self.offset == 0:
            rows.counts["documents"] += 1
            rows.counts[f"corpus/{passage.corpus}"] += 1
            rows.counts.update(f"augment/{name}" for name in passage.applied)
        return passage

    def token_before(self, rows: Rows) -> int:
        """The last token before the place: after a resume the passage it lies in is read again."""
        if self.last >= 0:
            return self.last
        if self.offset:
            return int(self.open(rows).tokens[self.offset - 1])
        before = (self.read(draw * self.lanes + self.number) for draw in range(self.draw - 1, -1, -1))
        return next((int(passage.tokens[-1]) for passage in before if passage is not None), self.end_of_text)
