"""The engine against loops without a cache: the same tokens and logits alone, in a batch, and when the context slides."""

import weakref

import pytest
import torch
from torch import Tensor

import gpt2_lightning.generation.engine as engine
from gpt2_lightning.decoder import Cache, Decoder, visible
from gpt2_lightning.generation.engine import PADDING, Session, continue_tokens
from gpt2_lightning.generation.sampler import candidates, draw, prompt_keys, uniforms
from gpt2_lightning.settings.sampler import SamplerConfig
from tests.generation.decoders import KINDS, prompts_of, recomputed, small, twin

GREEDY = SamplerConfig(k=1)
LENGTHS = (3, 9, 1, 12, 13, 19, 11)
LIMITS = (30, 20, 26, 7, 1, 24, 0)


def cut(tokens: list[int], end: int) -> int:
    """The length of a text that ends with its first ``end``."""
    return tokens.index(end) + 1 if end in tokens else len(tokens)


@pytest.mark.parametrize("slide_by", [1, 4, 12])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_batch_from_the_cache_equals_each_text_read_anew_for_every_token(kind: dict, slide_by: int) -> None:
    decoder, prompts = small(**kind), prompts_of(LENGTHS)
    alone = [recomputed(decoder, p, limit, slide_by) for p, limit in zip(prompts, LIMITS, strict=True)]
    end = max(range(29), key=lambda word: len({cut(tokens, word) for tokens, _ in alone} - {*LIMITS}))
    alone = [(tokens[: cut(tokens, end)], logits[: cut(tokens, end)]) for tokens, logits in alone]
    seen: list[Tensor] = []
    keys = prompt_keys(0, prompts)
    texts = continue_tokens(
        decoder, prompts, list(LIMITS), GREEDY, keys, lambda _, t: t == end, slide_by, lambda x, _: seen.append(x)
    )
    assert texts == [tokens for tokens, _ in alone]
    assert {len(text) for text in texts} - {*LIMITS}
    for step, logits in enumerate(seen):
        expected = torch.stack([steps[step] for _, steps in alone if step < len(steps)])
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    one = [continue_tokens(decoder, [p], [30], GREEDY, [0], lambda _, t: t == end, slide_by)[0] for p in prompts[:2]]
    assert one == [recomputed(decoder, p, 30, slide_by, end)[0] for p in prompts[:2]]


def test_greedy_equals_transformers() -> None:
    decoder = small(block_size=40, vocab_size=50)
    theirs, prompts = twin(decoder), prompts_of((5, 1, 9), 50)
    for prompt, ours in zip(prompts, continue_tokens(decoder, prompts, [30] * 3, GREEDY, [0] * 3), strict=True):
        tokens = torch.tensor([prompt])
        found = theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=30,
            pad_token_id=49,
            eos_token_id=None,
        )
        assert found[0, len(prompt) :].tolist() == ours


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("pieces", [(12,), (5, 7), (1, 4, 1, 6), (1,) * 12], ids=str)
@pytest.mark.parametrize("padding", [0, 4])
def test_logits_from_the_cache_equal_a_whole_forward(kind: dict, pieces: tuple[int, ...], padding: int) -> None:
    decoder = small(**kind)
    rows = [*prompts_of((12, 12), seed=3), [PADDING] * padding + prompts_of((12 - padding,))[0]]
    rows[1][4], rows[1][11] = 28, 28  # documents that end with a piece, and with the text
    starts = torch.tensor([0, 0, padding])
    tokens, cache = torch.tensor(rows), Cache(decoder.config, starts, 12, torch.float32)
    found = torch.cat([decoder(piece.clamp(min=0), cache) for piece in tokens.split(list(pieces), dim=1)], 1)
    assert cache.length == 12
    for row, start in enumerate(starts.tolist()):
        torch.testing.assert_close(found[row, start:], decoder(tokens[row : row + 1, start:])[0], atol=1e-5, rtol=0)
    assert found.isfinite().all()


def test_every_token_sees_itself_even_padding() -> None:
    """Where it sees nothing, some attention kernels make nan of it."""
    mask = visible(torch.arange(3, 6), torch.tensor([[5, 5, 5], [0, 0, 0]]), 6, 2)
    assert mask is not None
    assert mask[0, 0].int().tolist() == [[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]]
    assert mask[1, 0].int().tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_selected_rows_go_on_as_themselves(kind: dict) -> None:
    decoder, prompts = small(**kind), prompts_of((3, 6, 2, 5))
    session = Session(decoder, prompts, 20)
    session.append(torch.tensor([4, 28, 7, 1]))
    rows = [2, 0, 2, 1]
    session.select(torch.tensor(rows))
    texts = [prompts[row] + [[4, 28, 7, 1][row]] for row in rows]
    for step in range(14):  # into the sliding
        expected = [decoder(torch.tensor([text[-12:]]))[0, -1] for text in texts]
        torch.testing.assert_close(session.logits, torch.stack(expected), atol=1e-5, rtol=0)
        assert [[t for t in row if t >= 0] for row in session.history.tolist()] == texts
        tokens = [(5 * step + row) % 29 for row in range(4)]
        session.append(torch.tensor(tokens))
        texts = [[*text, token] for text, token in zip(texts, tokens, strict=True)]


def test_to_select_all_rows_in_order_copies_nothing() -> None:
    session = Session(small(), prompts_of((3, 6)), 5)
    held, tokens = session.cache.held, session.tokens
    session.select(torch.arange(2))
    assert session.cache.held is held
    assert session.tokens is tokens


def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the tokens that decoders read from here on."""
    shapes: list[tuple[int, ...]] = []
    hidden = Decoder.hidden
    monkeypatch.setattr(
        Decoder, "hidden", lambda self, tokens, cache=None: (shapes.append(tuple(tokens.shape)), hidden(self, tokens, cache))[1]
    )
    return shapes


@pytest.mark.parametrize(("slide_by", "expected"), [(1, [12] * 6), (3, [10, 1, 1, 10, 1, 1]), (12, [1] * 6)])
def test_each_token_is_read_once_until_the_context_is_full(
    monkeypatch: pytest.MonkeyPatch, slide_by: int, expected: list[int]
) -> None:
    shapes = reads(monkeypatch)
    continue_tokens(small(), prompts_of((5,)), [14], GREEDY, [0], slide_by=slide_by)
    assert [length for _, length in shapes] == [5, *[1] * 7, *expected][:14]


def test_rows_that_have_ended_are_read_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = reads(monkeypatch)
    continue_tokens(small(), prompts_of((2, 2, 2)), [3, 1, 5], GREEDY, [0] * 3)
    assert [rows for rows, _ in shapes] == [3, 2, 2, 1, 1]


def test_there_is_one_cache_at_a_time_and_no_larger_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref] = []
    columns: list[int] = []

    class Watched(Cache):
        def __init__(self, *words: object) -> None:
            assert not any(ref() for ref in made)
            super().__init__(*words)
            made.append(weakref.ref(self))
            columns.append(self.held.shape[4])

    monkeypatch.setattr(engine, "Cache", Watched)
    continue_tokens(small(), prompts_of((8,)), [8], GREEDY, [0])
    assert columns == [12] * 4
    columns.clear()
    continue_tokens(small(), prompts_of((3,)), [4], GREEDY, [0])
    assert columns == [7]


@pytest.mark.parametrize("sampler", [SamplerConfig(), SamplerConfig(k=None, p=0.9, repetition_penalty=1.3, no_repeat_ngram=2)])
def test_sampled_texts_do_not_depend_on_the_batch_or_its_order(sampler: SamplerConfig) -> None:
    decoder, prompts = small(document_mask=True), prompts_of((3, 9, 1, 12, 17))
    keys = prompt_keys(5, prompts)
    limits = [25, 3, 18, 25, 9]

    def ended(row: int, token: int) -> bool:
        return token == 28

    alone = [
        continue_tokens(decoder, [p], [limit], sampler, [key], ended, 3)[0]
        for p, limit, key in zip(prompts, limits, keys, strict=True)
    ]
    assert continue_tokens(decoder, prompts, limits, sampler, keys, ended, 3) == alone
    backwards = continue_tokens(decoder, prompts[::-1], limits[::-1], sampler, keys[::-1], ended, 3)
    assert backwards == alone[::-1]
    assert alone != continue_tokens(decoder, prompts, limits, sampler, prompt_keys(6, prompts), ended, 3)


def test_every_token_has_a_chance_of_its_own() -> None:
    decoder, sampler, (prompt,) = small(), SamplerConfig(k=None, temperature=1.3), prompts_of((3,))
    text = list(prompt)
    for step in range(15):
        found = candidates(decoder(torch.tensor([text[-12:]]))[:, -1], sampler)
        text.append(int(draw(found, sampler, uniforms([9], step))))
    assert continue_tokens(decoder, [prompt], [15], sampler, [9]) == [text[3:]]


def test_ended_is_asked_once_for_each_token_with_the_prompts_own_number() -> None:
    asked: list[tuple[int, int]] = []

    def ended(row: int, token: int) -> bool:
        asked.append((row, token))
        return row == 3 and len([1 for r, _ in asked if r == 3]) == 2

    texts = continue_tokens(small(), prompts_of((2, 4, 3, 5)), [2, 0, 4, 9], GREEDY, [0] * 4, ended)
    assert [len(text) for text in texts] == [2, 0, 4, 2]
    assert [[token for row, token in asked if row == i] for i in range(4)] == texts


def test_no_room_and_no_prompts_give_nothing() -> None:
    assert continue_tokens(small(), prompts_of((2, 4)), [0, 0], GREEDY, [0, 0]) == [[], []]
    assert continue_tokens(small(), [], [], GREEDY, []) == []
