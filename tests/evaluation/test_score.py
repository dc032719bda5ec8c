"""Scores and perplexity: what a loop over single rows with transformers gives, whatever the batch, the window, the stride."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2_lightning.evaluation.perplexity import Measured, measure, text_figures, windows
from gpt2_lightning.evaluation.score import score
from tests.generation.decoders import KINDS, prompts_of, small, twin

PAIRS = [([3], [4, 5, 6]), ([1, 2, 3, 4, 5, 6, 7], [8]), ([9, 9], [9] * 11), (list(range(20)), [1, 2]), ([28], list(range(12)))]


@torch.no_grad()
def by_hand(model: torch.nn.Module, context: list[int], continuation: list[int], block_size: int = 12) -> tuple[float, bool]:
    """One row through transformers' GPT-2, the end of it that the context holds; each token's log-probability summed."""
    row = (context + continuation)[-block_size - 1 :]
    log_p = F.log_softmax(model(torch.tensor([row[:-1]])).logits[0].double(), -1)
    behind = log_p[len(row) - 1 - len(continuation) :]
    total = sum(float(behind[i, token]) for i, token in enumerate(continuation))
    return total, behind.argmax(-1).tolist() == continuation


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_scores_equal_those_of_transformers_row_by_row(batch_size: int) -> None:
    decoder = small()
    theirs = twin(decoder)
    found = score(decoder, [context for context, _ in PAIRS], [tokens for _, tokens in PAIRS], batch_size)
    for (context, continuation), one in zip(PAIRS, found, strict=True):
        log_p, greedy = by_hand(theirs, context, continuation)
        assert one.log_p == pytest.approx(log_p, abs=1e-5)
        assert one.greedy == greedy


def test_what_greedy_decoding_writes_is_greedy() -> None:
    decoder = small()
    text = [1, 2, 3]
    with torch.no_grad():
        for _ in range(6):
            text.append(int(decoder(torch.tensor([text]))[0, -1].argmax()))
    good, spoilt = score(decoder, [text[:3]] * 2, [text[3:], [*text[3:-1], (text[-1] + 1) % 29]])
    assert (good.greedy, spoilt.greedy) == (True, False)
    assert good.log_p > spoilt.log_p


@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_makes_no_difference(kind: dict) -> None:
    decoder = small(**kind)
    contexts, tokens = prompts_of((1, 4, 7, 3)), prompts_of((5, 2, 4, 9), seed=1)
    alone = [score(decoder, [c], [t])[0] for c, t in zip(contexts, tokens, strict=True)]
    for one, other in zip(score(decoder, contexts, tokens, 4), alone, strict=True):
        assert one.log_p == pytest.approx(other.log_p, abs=1e-5)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="at most block_size = 12 tokens long, got 13"):
        score(small(), [[1]], [list(range(13))])
    with pytest.raises(ValueError, match="must not be empty"):
        score(small(), [[]], [[1]])
    assert score(small(), [], []) == []


@pytest.mark.parametrize("n", [0, 1, 5, 12, 13, 24, 31])
@pytest.mark.parametrize("stride", [1, 5, 12])
def test_windows_predict_every_token_once_behind_all_that_fits(n: int, stride: int) -> None:
    tokens = np.arange(100, 100 + n)
    found = list(windows(tokens, 7, 12, stride))
    assert [token for _, continuation in found for token in continuation] == tokens.tolist()
    whole = [7, *tokens.tolist()]
    for place, (context, continuation) in enumerate(found):
        assert len(context) + len(continuation) <= 13
        assert len(continuation) <= (12 if place == 0 else stride)
        begin = whole.index(continuation[0])
        assert context == whole[begin - len(context) : begin]
        assert place == 0 or len(context) + len(continuation) == 13


@torch.no_grad()
def nats_by_hand(model: torch.nn.Module, tokens: list[int], start: int, stride: int) -> float:
    """Each token behind the context that its window gives it, one forward pass a token."""
    whole, total, done = [start, *tokens], 0.0, 0
    while done < len(tokens):
        end = min(len(tokens), done + (12 if done == 0 else stride))
        for i in range(done, end):
            row: Tensor = torch.tensor([whole[max(0, end - 12) : i + 1]])
            total -= float(F.log_softmax(model(row).logits[0, -1].double(), -1)[tokens[i]])
        done = end
    return total


@pytest.mark.parametrize("stride", [1, 5, 12])
def test_perplexity_equals_the_reference_by_hand(stride: int) -> None:
    decoder = small()
    texts = [np.array(text, int) for text in prompts_of((31, 7, 12, 0, 1))]
    n_bytes = np.arange(29)
    found = measure(decoder, texts, 28, n_bytes, stride, batch_size=3)
    theirs = twin(decoder)
    expected = sum(nats_by_hand(theirs, text.tolist(), 28, stride) for text in texts)
    assert found.nats == pytest.approx(expected, rel=1e-6)
    assert (found.tokens, found.n_bytes) == (51, sum(int(n_bytes[text].sum()) for text in texts))


def test_figures_are_those_of_their_names() -> None:
    figures = text_figures(Measured(100 * math.log(8), 100, 150), Measured(0.0, 0, 150))
    assert figures["cross_entropy"] == pytest.approx(math.log(8))
    assert figures["perplexity"] == pytest.approx(8)
    assert figures["bits_per_byte"] == pytest.approx(1.0)
