"""Perplexity over a sliding window: documents as tokens in, nats, tokens and bytes out.

Every token is predicted once. The first window predicts all it holds; each later one moves by ``stride`` and predicts that many
tokens, behind as many as the context has room for; the last one ends with the text, and its context is full too.
One number: block_size, the stride at which no token is read twice; at 1 every prediction has the longest context there is.
Choice not taken: windows cut from the start, the last one short: its predictions would know less than all others.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from gpt2_lightning.decoder import Decoder
from gpt2_lightning.evaluation.score import score
from gpt2_lightning.metrics import bits_per_byte, perplexity

__all__ = ["Measured", "measure", "text_figures", "windows"]

AT_ONCE = 64  # windows handed on together, so that a corpus's are never all there


class Measured(NamedTuple):
    """The code length of a text in nats, its predicted tokens, its bytes."""

    nats: float
    tokens: int
    n_bytes: int


def windows(tokens: np.ndarray, start: int, block_size: int, stride: int) -> Iterator[tuple[list[int], list[int]]]:
    """Contexts and continuations that predict each of the tokens once, the first behind the token ``start``.

    A context and its continuation are at most ``block_size + 1`` tokens together, as many as the decoder is able to use.
    """
    whole = np.concatenate([[start], tokens])
    first = min(block_size, len(tokens))
    if first:
        yield whole[:1].tolist(), whole[1 : first + 1].tolist()
    for done in range(first, len(tokens), stride):
        end = min(done + stride, len(tokens))
        yield whole[end - block_size : done + 1].tolist(), whole[done + 1 : end + 1].tolist()


def measure(
    decoder: Decoder,
    texts: Iterable[np.ndarray],
    start: int,
    bytes_per_token: np.ndarray,
    stride: int,
    batch_size: int = 8,
    progress: Callable[[int], object] = id,
) -> Measured:
    """The code length of texts, each with a context of its own that begins with ``start``; ``progress`` hears of the tokens."""
    size, total = decoder.config.block_size, Measured(0.0, 0, 0)
    asked = (window for tokens in texts for window in windows(tokens, start, size, stride))
    while some := list(islice(asked, AT_ONCE)):
        found = score(decoder, [context for context, _ in some], [tokens for _, tokens in some], batch_size)
        for (_, tokens), one in zip(some, found, strict=True):
            n_bytes = int(bytes_per_token[tokens].sum())
            total = Measured(total.nats - one.log_p, total.tokens + len(tokens), total.n_bytes + n_bytes)
        progress(sum(len(tokens) for _, tokens in some))
    return total


def text_figures(*texts: Measured) -> dict[str, int | float]:
    """The named figures of texts together."""
    nats, tokens, n_bytes = map(sum, zip(*texts, strict=True))
    mean = nats / max(1, tokens)
    figures = {"cross_entropy": mean, "perplexity": perplexity(mean), "bits_per_byte": bits_per_byte(nats, int(n_bytes))}
    return figures | {"tokens": tokens, "bytes": n_bytes}
