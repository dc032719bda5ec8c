"""Blocks: the validation rows.

In: documents' tokens in stored order. Out: inputs and targets ``[N, block_size]``, every token a target once.
One number: 4 bytes a token, since inputs and targets are views of one array.
"""

from collections.abc import Iterator

import numpy as np

from gpt2_lightning.data.documents import Documents
from gpt2_lightning.data.lanes import EndOfStream, Lane, Passage, Read, Rows
from gpt2_lightning.data.tokens import Tokenizer
from gpt2_lightning.errors import DataError
from gpt2_lightning.loss import IGNORED

__all__ = ["record_blocks", "sample_tokens", "validation_blocks", "validation_tokens"]

Tokens = np.ndarray
MOST_DRAWS = 100_000


def sample_tokens(read: Read, enough: int) -> Tokens:
    """The first tokens of the training stream that are predicted, at least ``enough`` unless it ends before."""
    found, held = [np.empty(0, np.int64)], 0
    try:
        for g in range(MOST_DRAWS):
            if held >= enough:
                break
            passage = read(g)
            if passage is not None:
                labels = passage.tokens if passage.labels is None else passage.labels
                found.append(labels[labels != IGNORED].astype(np.int64))
                held += len(found[-1])
    except EndOfStream:
        pass
    return np.concatenate(found)


def validation_tokens(documents: Documents, tokenizer: Tokenizer, enough: int | None) -> Iterator[np.ndarray]:
    """The tokens of the validation documents in stored order, until there are ``enough``."""
    seen = 0
    for i in range(len(documents)):
        if enough is not None and seen >= enough:
            return
        tokens = documents.tokens(i, tokenizer)
        yield tokens if documents.is_whole(i) else tokens[:-1]
        seen += len(tokens)


def validation_blocks(name: str, documents: Iterator[Tokens], block_size: int, end_of_text: int) -> tuple[Tokens, Tokens]:
    """Inputs and targets ``[N, block_size]`` in stored order, every token a target once; the last row is padded with IGNORED.

    Both are views of one array. Raises DataError when there is no text.
    """
    tokens = np.concatenate([np.array([end_of_text], np.int32), *documents]).astype(np.int32)
    if len(tokens) == 1:
        raise nothing_left(name, f"Set data.corpora.{name}.split=blank_line to make several of one text, or .validation=FILE")
    tokens = np.append(tokens, np.full(-(len(tokens) - 1) % block_size, IGNORED, np.int32))
    return tokens[:-1].reshape(-1, block_size), tokens[1:].reshape(-1, block_size)


def record_blocks(
    name: str, passages: Iterator[Passage], block_size: int, end_of_text: int, most: int | None
) -> tuple[Tokens, Tokens]:
    """The same of records: rows of whole ones in stored order, as in training, and what of them is predicted; at most ``most``.

    Raises DataError when there is no record.
    """
    held: dict[int, Passage] = {}

    def read(g: int) -> Passage:
        while len(held) <= g:
            passage = next(passages, None)
            if passage is None:
                raise EndOfStream
            held[len(held)] = passage
        return held[g]

    lane = Lane(read, 0, 1, end_of_text, records=True)
    filled: list[tuple[Tokens, Tokens]] = []
    while most is None or len(filled) < most:
        rows = Rows(1, block_size, several=False)
        lane.fill(rows, 0)
        if (rows.labels[0, 1:] == IGNORED).all():
            break
        filled.append((rows.tokens[0, :-1], rows.labels[0, 1:]))
    if not filled:
        raise nothing_left(name, f"Set data.corpora.{name}.holdout_every=2, or .validation=FILE")
    inputs, targets = zip(*filled, strict=True)
    return np.stack(inputs), np.stack(targets)


def nothing_left(name: str, remedy: str) -> DataError:
    """The error for a corpus without any document for validation."""
    rule = "no document is left for validation"
    return DataError("corpus", key="data.corpora", value=name, rule=rule, remedy=remedy)
