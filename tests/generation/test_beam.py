"""Beam search against transformers, greedy, and all there is to find."""

from itertools import product

import pytest
import torch

from gpt2_lightning.decoder import Decoder
from gpt2_lightning.generation import beam
from gpt2_lightning.generation.beam import Beam, Search, beam_search
from gpt2_lightning.generation.engine import Session
from gpt2_lightning.settings.sampler import SamplerConfig
from tests.generation.decoders import KINDS, prompts_of, recomputed, small, twin

BOTH = SamplerConfig(beams=4, k=None, no_repeat_ngram=2, repetition_penalty=1.4, length_penalty=0.6)
PEERS = [
    (SamplerConfig(beams=4, k=None), 50),
    (SamplerConfig(beams=4, k=None, length_penalty=0.0), 12),
    (SamplerConfig(beams=4, k=None, length_penalty=0.6), 12),
    (SamplerConfig(beams=4, k=None, length_penalty=2.0), 12),
    (SamplerConfig(beams=4, k=None, length_penalty=-1.0), 12),
    (SamplerConfig(beams=2, k=None, no_repeat_ngram=2), 12),
    (BOTH, 12),
]


def close(found: list[Beam], expected: list[Beam], atol: float = 1e-4) -> None:
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=atol, rel=1e-6)


@pytest.mark.parametrize(("config", "n_prompts"), PEERS, ids=str)
def test_sequences_and_scores_equal_transformers(config: SamplerConfig, n_prompts: int) -> None:
    decoder = small(vocab_size=30, block_size=24, init_std=0.2)
    theirs, early = twin(decoder), 0
    prompts = [torch.randint(29, (1 + i % 6,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(n_prompts)]
    ours = beam_search(decoder, prompts, [16] * n_prompts, config, 29, n=config.beams)
    for first in range(6):  # prompts of one length, so that nothing of theirs hangs on padding
        tokens = torch.tensor(prompts[first::6])
        found = theirs.generate(
            tokens, attention_mask=torch.ones_like(tokens), num_beams=config.beams, num_return_sequences=config.beams,
            max_new_tokens=16, do_sample=False, early_stopping="never", length_penalty=config.length_penalty,
            no_repeat_ngram_size=config.no_repeat_ngram, repetition_penalty=config.repetition_penalty,
            return_dict_in_generate=True, output_scores=True, pad_token_id=29,
        )  # fmt: skip
        texts = [row[: row.index(29) + 1] if 29 in row else row for row in found.sequences[:, tokens.shape[1] :].tolist()]
        beams = [Beam(text, score) for text, score in zip(texts, found.sequences_scores.tolist(), strict=True)]
        early += sum(len(text) < 16 for text in texts)
        for i, mine in enumerate(ours[first::6]):
            close(mine, beams[i * config.beams : (i + 1) * config.beams])
    assert early > n_prompts / 4 or config.length_penalty == 2  # which likes no short one


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("slide_by", [1, 3])
def test_one_beam_is_greedy(kind: dict, slide_by: int) -> None:
    decoder, prompts = small(**kind), prompts_of((4, 12, 15, 1))
    limits = [20, 9, 16, 0]
    end = recomputed(decoder, prompts[0], 4, slide_by)[0][-1]
    found = beam_search(decoder, prompts, limits, SamplerConfig(), end, slide_by=slide_by)
    greedy = [recomputed(decoder, p, limit, slide_by, end)[0] for p, limit in zip(prompts, limits, strict=True)]
    assert [[one.tokens for one in beams] for beams in found] == [*([text] for text in greedy[:3]), []]


def log_p(decoder: Decoder, prompt: list[int], text: list[int], k: int) -> float:
    """The text's log-probability; -inf where a word is not among the k likeliest of its place."""
    own = decoder(torch.tensor([prompt + text[:-1]]))[0, len(prompt) - 1 :].log_softmax(-1)
    steps = own.gather(1, torch.tensor(text)[:, None])[:, 0]
    return float(steps.where((own > steps[:, None]).sum(1) < k, -torch.inf).sum())


def exhaustive(decoder: Decoder, prompt: list[int], limit: int, penalty: float, k: int) -> list[Beam]:
    """All texts that end with word 4 or at the limit, best first."""
    texts = [
        [*words, *last]
        for length in range(limit + 1)
        for words in product(range(4), repeat=length)
        for last in ([[4]] if length < limit else [[]])
    ]
    found = [Beam(text, log_p(decoder, prompt, text, k) / len(text) ** penalty) for text in texts]
    return sorted((one for one in found if one.score > -torch.inf), key=lambda one: -one.score)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0, -1.0])
@pytest.mark.parametrize(("limit", "k"), [(1, 5), (3, 5), (4, 2)])
def test_a_beam_wide_enough_finds_the_best_there_is(penalty: float, limit: int, k: int) -> None:
    decoder, prompts = small(vocab_size=5, seed=limit), [[1, 2, 0], [3]]
    config = SamplerConfig(beams=5 * k**limit, k=k, length_penalty=penalty)
    with torch.no_grad():
        for prompt, found in zip(prompts, beam_search(decoder, prompts, [limit] * 2, config, 4, n=9), strict=True):
            expected = exhaustive(decoder, prompt, limit, penalty, k)
            close(found, expected[:9], 1e-5)
            assert len(found) == min(9, len(expected))


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0, -1.0])
def test_to_stop_early_changes_nothing_but_the_work(monkeypatch: pytest.MonkeyPatch, penalty: float) -> None:
    steps = [0, 0]

    def run(place: int) -> list[list[Beam]]:
        def counted(self: Session, tokens: torch.Tensor) -> None:
            steps[place] += len(tokens)
            append(self, tokens)

        monkeypatch.setattr(Session, "append", counted)
        config, prompts = SamplerConfig(beams=3, length_penalty=penalty), prompts_of((3, 7, 13), 6)
        runs = [beam_search(small(i, vocab_size=6), prompts, [12, 18, 6], config, 5, n) for i in range(4) for n in (1, 3)]
        return [beams for found in runs for beams in found]

    append = Session.append
    early = run(0)
    monkeypatch.setattr(Search, "is_over", lambda self, length, best: length == self.limit or best == -torch.inf)
    for mine, exact in zip(early, run(1), strict=True):
        close(mine, exact, 1e-5)  # to the last bit they are not equal: other rows are in the batch
    assert steps[0] < 0.95 * steps[1] or penalty == 2


@pytest.mark.parametrize("slide_by", [1, 3])
def test_a_batch_of_prompts_equals_one_by_one(slide_by: int) -> None:
    decoder, prompts = small(document_mask=True, vocab_size=9), prompts_of((3, 12, 7, 15, 1, 2), 9)
    limits, config = [14, 8, 1, 14, 0, 11], SamplerConfig(beams=4, k=5)
    together = beam_search(decoder, prompts, limits, config, 8, 2, slide_by)
    for prompt, limit, found in zip(prompts, limits, together, strict=True):
        close(found, beam_search(decoder, [prompt], [limit], config, 8, 2, slide_by)[0], 1e-5)
    assert [len(beams) for beams in together] == [2, 2, 2, 2, 0, 2]
    assert {len(one.tokens) for beams in together for one in beams} - set(limits)


def test_where_words_run_out_there_are_fewer_than_asked_for() -> None:
    (found,) = beam_search(small(vocab_size=5), [[1]], [1], SamplerConfig(beams=8), 4, 8)
    assert sorted(one.tokens for one in found) == [[0], [1], [2], [3], [4]]
    (only,) = beam_search(small(vocab_size=5), [[1]], [3], SamplerConfig(beams=2, k=1), 99, 2)
    assert [one.tokens for one in only] == [recomputed(small(vocab_size=5), [1], 3)[0]]


def test_equal_scores_go_to_the_lower_token_and_to_what_was_found_first() -> None:
    decoder = small(vocab_size=6)
    with torch.no_grad():
        decoder.wte.weight.zero_()  # every word as likely
    (found,) = beam_search(decoder, [[1]], [2], SamplerConfig(beams=3), 5, 3)
    assert [one.tokens for one in found] == [[0, 0], [0, 1], [0, 2]]
    search = Search(SamplerConfig(beams=2), 5, 1)
    for tokens in ([1], [2], [3]):
        search.finish(tokens, -1.0)
    assert search.finished == [Beam([1], -1.0), Beam([2], -1.0)]


def test_few_extensions_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    extensions = beam.extensions

    def counted(*words: object) -> beam.Candidates:
        found = extensions(*words)
        widths.append(found.logits.shape[1])
        return found

    monkeypatch.setattr(beam, "extensions", counted)
    beam_search(small(), [[1]], [4], SamplerConfig(beams=3), 28)
    assert set(widths) == {6}
