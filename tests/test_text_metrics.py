"""Measures of generated text are what their papers define: values by hand, laws, and BLEU written out from its definition."""

import math
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_lightning.text_metrics import distinct, perplexity_gap, repetition, self_bleu, text_metrics, zipf

UNCONDITIONAL = {
    "generation/length", "generation/distinct_1", "generation/distinct_2", "generation/distinct_3", "generation/repetition",
    "generation/self_bleu", "generation/zipf",
}  # fmt: skip
TEXTS = st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=6)
HOLTZMAN = {  # table 1 of Holtzman et al. 2020: perplexity, and HUSE, which holds human judgement; human text has 12.38
    "sampling": (22.73, 0.67),
    "sampling, t=0.9": (10.25, 0.79),
    "top-k, k=40": (6.88, 0.19),
    "top-k, k=640": (13.82, 0.94),
    "top-k, k=40, t=0.7": (3.48, 0.08),
    "nucleus": (13.13, 0.97),
}


def sentence_bleu(candidate: list[int], references: list[list[int]]) -> float:
    """BLEU-4 of one candidate, term by term from section 2 of Papineni et al. 2002, with the smoothing that we name."""
    logs = []
    for n in (1, 2, 3, 4):
        grams = [tuple(candidate[i : i + n]) for i in range(len(candidate) - n + 1)]
        if not grams:
            continue
        clipped = 0
        for gram in set(grams):
            in_references = [[tuple(r[i : i + n]) for i in range(len(r) - n + 1)].count(gram) for r in references]
            clipped += min(grams.count(gram), max(in_references))
        if n == 1 and clipped == 0:
            return 0.0
        logs.append(math.log((clipped if clipped > 0 else 0.1) / len(grams)))
    c, r = len(candidate), sorted((abs(len(r) - len(candidate)), len(r)) for r in references)[0][1]
    return (1.0 if c > r else math.exp(1 - r / c)) * math.exp(sum(logs) / len(logs))


def slow_self_bleu(texts: list[list[int]]) -> float:
    texts = [text for text in texts if text]
    return fmean(sentence_bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts))


@pytest.mark.parametrize(
    ("texts", "n", "value"),
    [
        ([[7] * 10], 1, 1 / 10),
        ([[7] * 10], 3, 1 / 8),
        ([[1, 2, 3], [1, 2, 4]], 1, 4 / 6),
        ([[1, 2, 3], [1, 2, 4]], 2, 3 / 4),  # over the whole set, and no bigram reaches from one text into the next
        ([[1, 2], [1, 2, 4], []], 3, 1.0),
    ],
)
def test_distinct_is_distinct_ngrams_over_all(texts: list[list[int]], n: int, value: float) -> None:
    assert distinct(texts, n) == pytest.approx(value)


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        ([[1, 2, 3, 4, 5]], 0.0),
        ([[7] * 10], 6 / 7),
        ([[1, 2, 3, 4, 1, 2, 3, 4]], 1 / 5),
        ([[7] * 10, [1, 2, 3, 4]], 3 / 7),  # the mean over texts, however long each is
        ([[7] * 10, [7] * 3, []], 6 / 7),  # texts without a 4-gram do not count
        ([[1, 2, 3, 4], [1, 2, 3, 4]], 0.0),  # within one text, not between them
    ],
)
def test_repetition_is_the_share_of_4_grams_seen_before_in_their_text(texts: list[list[int]], value: float) -> None:
    assert repetition(texts) == pytest.approx(value)


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        # 1,2,3,4,5 against 1,2,3,4,6: precisions 4/5, 3/4, 2/3, 1/2, their product 1/5
        ([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6]], (1 / 5) ** (1 / 4)),
        # the candidate 1,1,1,1,1 may count 1 only twice: 2/5, 1/4, 0.1/3, 0.1/2; the other way 2/5, 1/4, 0.1/3, 0.1/2
        ([[1, 1, 1, 1, 1], [1, 1, 2, 3, 4]], (2 / 5 * 1 / 4 * 0.1 / 3 * 0.1 / 2) ** (1 / 4)),
        # all of the shorter is matched, at penalty exp(1 - 8/4); of the longer 4/8, 3/7, 2/6, 1/5 is
        ([[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8]], (math.exp(-1) + (1 / 2 * 3 / 7 * 1 / 3 * 1 / 5) ** (1 / 4)) / 2),
        # two tokens have two orders: all matched, at penalty exp(1 - 3/2); of three tokens 2/3, 1/2 and no trigram
        ([[1, 2], [1, 2, 3]], (math.exp(-1 / 2) + (2 / 3 * 1 / 2 * 0.1) ** (1 / 3)) / 2),
        # of two as near in length the shorter counts; the second most of 3, 2, 1 is 2
        ([[1, 1, 1], [1, 1], [1]], ((2 / 3 * 1 / 2 * 0.1) ** (1 / 3) + 1 + math.exp(-1)) / 3),
        ([[1, 2], [2, 3], [], [3, 4]], fmean([(1 / 2 * 0.1) ** (1 / 2), (1 * 0.1) ** (1 / 2), (1 / 2 * 0.1) ** (1 / 2)])),
    ],
)
def test_self_bleu_by_hand(texts: list[list[int]], value: float) -> None:
    assert self_bleu(texts) == pytest.approx(value)


@given(TEXTS.filter(lambda texts: sum(map(bool, texts)) > 1))
def test_self_bleu_is_bleu_from_its_definition(texts: list[list[int]]) -> None:
    assert self_bleu(texts) == pytest.approx(slow_self_bleu(texts))


@given(st.lists(st.integers(), min_size=1, max_size=20), st.integers(2, 5))
def test_self_bleu_of_identical_texts_is_1(text: list[int], times: int) -> None:
    assert self_bleu([text] * times) == pytest.approx(1.0)


def test_self_bleu_of_texts_that_share_nothing_is_0_and_of_those_that_share_one_token_near_it() -> None:
    texts = [list(range(100 * i, 100 * i + 100)) for i in range(5)]
    assert self_bleu(texts) == 0
    assert 0 < self_bleu([[-1, *text] for text in texts]) < 0.01


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0, 2.0])
def test_zipf_is_the_exponent_of_a_power_law(slope: float) -> None:
    counts = [round(1e5 * rank**-slope) for rank in range(1, 6)]
    texts = [[token] * count for token, count in enumerate(counts)]
    assert zipf(texts) == pytest.approx(slope, abs=1e-4)


def test_zipf_by_hand_and_over_the_frequent_tokens_alone() -> None:
    assert zipf([[1, 1, 2], [1, 1]]) == pytest.approx(2)  # 4 and 1 at ranks 1 and 2
    rare = list(range(10, 9000))
    head = [token for token in range(10) for _ in range(1000)]
    assert zipf([head, rare]) == pytest.approx(zipf([head, rare[:4990]]))


def test_the_gap_is_the_log_of_the_ratio_of_perplexities_either_way() -> None:
    assert perplexity_gap(math.log(6.0), math.log(12.0)) == pytest.approx(math.log(2))
    assert perplexity_gap(math.log(24.0), math.log(12.0)) == pytest.approx(math.log(2))
    assert perplexity_gap(3.0, 3.0) == 0


def test_the_least_gap_is_what_people_prefer_and_the_least_perplexity_what_they_do_not() -> None:
    gaps = {name: perplexity_gap(math.log(ppl), math.log(12.38)) for name, (ppl, _) in HOLTZMAN.items()}
    huse = {name: judged for name, (_, judged) in HOLTZMAN.items()}
    assert min(gaps, key=gaps.__getitem__) == max(huse, key=huse.__getitem__)
    assert min(HOLTZMAN, key=lambda name: HOLTZMAN[name][0]) == min(huse, key=huse.__getitem__)


def test_the_gap_finds_where_the_unreliable_tail_begins_and_the_perplexity_takes_k_1() -> None:
    human = [rank**-1.0 / sum(r**-1.0 for r in range(1, 41)) for rank in range(1, 41)] + [0.0] * 160
    model = [0.85 * p + 0.15 / 200 for p in human]  # it likes 160 tokens that nobody writes
    heldout = -sum(p * math.log(q) for p, q in zip(human, model, strict=True))
    generated = {k: -sum(q * math.log(q) for q in model[:k]) / sum(model[:k]) for k in range(1, 201)}
    measured = {k: text_metrics([], nats, heldout) for k, nats in generated.items()}
    assert min(measured, key=lambda k: measured[k]["generation/perplexity"]) == 1
    assert 35 <= min(measured, key=lambda k: measured[k]["generation/perplexity_gap"]) <= 45


@given(TEXTS, st.randoms())
def test_the_order_of_the_texts_does_not_matter(texts: list[list[int]], random: Random) -> None:
    shuffled = random.sample(texts, len(texts))
    assert text_metrics(shuffled) == text_metrics(texts)


@given(TEXTS)
def test_the_names_of_the_tokens_do_not_matter(texts: list[list[int]]) -> None:
    assert text_metrics([[50_000 - 7 * token for token in text] for text in texts]) == text_metrics(texts)


@given(TEXTS, st.floats(), st.floats())
def test_every_measure_is_finite_and_in_its_range(texts: list[list[int]], nats: float, heldout: float) -> None:
    measured = text_metrics(texts, nats, heldout)
    assert all(math.isfinite(value) for value in measured.values())
    for name in UNCONDITIONAL - {"generation/length", "generation/zipf"}:
        assert 0 <= measured.get(name, 0) <= 1 + 1e-12
    assert measured.get("generation/zipf", 0) >= 0 and measured.get("generation/perplexity_gap", 0) >= 0


def test_one_repeated_token_is_the_worst_of_all_texts() -> None:
    measured = text_metrics([[5] * 128] * 64)
    assert measured.pop("generation/length") == 128
    assert measured == pytest.approx({
        "generation/distinct_1": 1 / 8192, "generation/distinct_2": 1 / 8128, "generation/distinct_3": 1 / 8064,
        "generation/repetition": 124 / 125, "generation/self_bleu": 1.0,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "missing"),
    [
        ([], UNCONDITIONAL),
        ([[]], UNCONDITIONAL - {"generation/length"}),
        ([[1]], UNCONDITIONAL - {"generation/length", "generation/distinct_1"}),
        ([[1], [1, 2]], {"generation/distinct_3", "generation/repetition"}),
        ([[1, 2, 3, 4], []], {"generation/self_bleu"}),
        ([[1, 1, 1, 1], [1]], {"generation/zipf"}),
        ([[1, 2, 3, 4], [1]], set()),
    ],
)
def test_what_is_not_defined_is_absent(texts: list[list[int]], missing: set[str]) -> None:
    assert UNCONDITIONAL - set(text_metrics(texts)) == missing


def test_lengths_are_averaged_over_all_texts_empty_ones_too() -> None:
    assert text_metrics([[], [1], [1, 2]])["generation/length"] == 1.0


@pytest.mark.parametrize(
    ("nats", "heldout", "there"),
    [
        (1.0, 1.5, {"generation/perplexity": math.e, "generation/perplexity_gap": 0.5}),
        (1.0, math.nan, {"generation/perplexity": math.e}),
        (math.nan, 1.0, {}),
        (math.inf, math.inf, {}),
        (800.0, 1.0, {"generation/perplexity_gap": 799.0}),  # e**800 is no float
    ],
)
def test_perplexities_are_there_where_cross_entropies_are(nats: float, heldout: float, there: dict[str, float]) -> None:
    measured = text_metrics([[1, 2]], nats, heldout)
    assert {name: value for name, value in measured.items() if "perplexity" in name} == pytest.approx(there)
