"""Scores: contexts and continuations as tokens in, the log-probability of each continuation out.

Rows of unequal lengths lie side by side, padded on the right, where a causal decoder cannot look. Only the hidden states behind
which a continuation's token is expected are multiplied with the head.
One number: 1 token more than the context can be in a row, for the last one is only predicted.
Choice not taken: one row after another. Sorted by length, little of a batch is padding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from gpt2_lightning.decoder import Decoder
from gpt2_lightning.loss import IGNORED, token_losses

__all__ = ["Score", "score"]

Tokens = Sequence[int]


class Score(NamedTuple):
    """Of a continuation: its log-probability in nats, and whether each of its tokens was the likeliest in its place."""

    log_p: float
    greedy: bool


@torch.inference_mode()
def score(
    decoder: Decoder, context_tokens: Sequence[Tokens], continuation_tokens: Sequence[Tokens], batch_size: int = 8
) -> list[Score]:
    """The score of each continuation behind its context, of which the end is kept where both are too long for the decoder.

    Raises ValueError where a context is empty, or a continuation longer than ``block_size``. The decoder must be in eval mode.
    """
    rows = [checked(decoder, *pair) for pair in zip(context_tokens, continuation_tokens, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    scores: list[Score] = [Score(0.0, True)] * len(rows)
    for first in range(0, len(rows), batch_size):
        places = order[first : first + batch_size]
        for place, found in zip(places, score_batch(decoder, [rows[i] for i in places]), strict=True):
            scores[place] = found
    return scores


def checked(decoder: Decoder, context: Tokens, continuation: Tokens) -> tuple[list[int], int]:
    """A row's tokens, and how many of them at its end are the continuation."""
    if not context:
        raise ValueError("a context must not be empty: begin with end-of-text")
    if len(continuation) > decoder.config.block_size:
        rule = f"a continuation must be at most block_size = {decoder.config.block_size} tokens long, got {len(continuation)}"
        raise ValueError(rule)
    return [*context, *continuation][-decoder.config.block_size - 1 :], len(continuation)


def score_batch(decoder: Decoder, rows: list[tuple[list[int], int]]) -> list[Score]:
    """The scores of rows that are side by side ``[B, T]``, padded on the right; contexts and padding are IGNORED."""
    aims = [[IGNORED] * (len(tokens) - 1 - n) + tokens[len(tokens) - n :] for tokens, n in rows]
    inputs = pad_sequence([torch.tensor(tokens[:-1]) for tokens, _ in rows], batch_first=True)
    targets = pad_sequence([torch.tensor(aim) for aim in aims], batch_first=True, padding_value=IGNORED)
    inputs, targets = inputs.to(decoder.wte.weight.device), targets.to(decoder.wte.weight.device)
    wanted = targets != IGNORED
    losses, hits = token_losses(decoder.hidden(inputs)[wanted], decoder.wte.weight, targets[wanted])
    sizes = [n for _, n in rows]
    parts = zip(losses.double().split(sizes), hits.split(sizes), strict=True)
    return [Score(-float(loss.sum()), bool(hit.all())) for loss, hit in parts]
