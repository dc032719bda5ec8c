"""Blocks: what a corpus must fill, and the validation rows.

In: documents' tokens in stored order. Out: inputs and targets ``[N, block_size]``, every token a target once.
One number: -1, the target of a padded place.
"""

from collections.abc import Iterator

import numpy as np

from gpt2_lightning.data.lanes import NOTHING, EndOfStream, Passage, Read
from gpt2_lightning.errors import DataError

__all__ = ["passage_labels", "require_tokens", "sample_tokens", "validation_blocks"]

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
        rule = "no document is left for validation"
        remedy = f"Set data.corpora.{name}.split=blank_line to make several of one text, or .validation=FILE"
        raise DataError("corpus", key="data.corpora", value=name, rule=rule, remedy=remedy)
    tokens = np.append(tokens, np.full(-(len(tokens) - 1) % block_size, NOTHING, np.int32))
    return tokens[:-1].reshape(-1, block_size), tokens[1:].reshape(-1, block_size)
