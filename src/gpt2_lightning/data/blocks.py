"""Blocks: what a corpus must fill, and the validation rows.

In: documents' tokens in stored order. Out: inputs and targets ``[N, block_size]``, every token a target once.
One number: -1, the target of a padded place.
"""

from collections.abc import Iterator

import numpy as np

from gpt2_lightning.data.lanes import NOTHING, EndOfStream, Lane, Passage, Read, Rows
from gpt2_lightning.errors import DataError

__all__ = ["passage_labels", "record_blocks", "require_tokens", "sample_tokens", "validation_blocks"]

Tokens = np.ndarray
MOST_DRAWS = 100_000


def passage_labels(passage: Passage) -> Tokens:
    """What of a passage is predicted, int64."""
    labels = passage.tokens if passage.labels is None else passage.labels
    return labels[labels != NOTHING].astype(np.int64)


def sample_tokens(read: Read, enough: int) -> Tokens:
    """The first tokens of the training stream that are predicted, at least ``enough`` unless it ends before."""
    found, held = [np.empty(0, np.int64)], 0
    try:
        for g in range(MOST_DRAWS):
            if held >= enough:
                break
            passage = read(g)
            if passage is not None:
                found.append(passage_labels(passage))
                held += len(found[-1])
    except EndOfStream:
        pass
    return np.concatenate(found)


def require_tokens(documents: Iterator[Tokens], block_size: int) -> None:
    """Raise DataError when the documents do not fill one row."""
    there = 0
    for tokens in documents:
        there += len(tokens)
        if there > block_size:
            return
    rule = f"holds {there} tokens for training, and one block needs {block_size + 1}"
    raise DataError("corpus", key="data", value="train", rule=rule, remedy="Give it more text, or lower model.block_size")


def validation_blocks(name: str, documents: Iterator[Tokens], block_size: int, end_of_text: int) -> tuple[Tokens, Tokens]:
    """Inputs and targets ``[N, block_size]`` in stored order, every token a target once; the last row is padded with -1.

    Both are views of one array, 4 bytes a token.

    Raises DataError when there is no text.
    """
    tokens = np.concatenate([np.array([end_of_text], np.int32), *documents]).astype(np.int32)
    if len(tokens) == 1:
        raise nothing_left(name, f"Set data.corpora.{name}.split=blank_line to make several of one text, or .validation=FILE")
    tokens = np.append(tokens, np.full(-(len(tokens) - 1) % block_size, NOTHING, np.int32))
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
        if (rows.labels[0, 1:] == NOTHING).all():
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
