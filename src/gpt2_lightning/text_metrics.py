"""Measures of generated text: token lists in, continuations without their prompts; the named numbers out.

One number: 0.1, what BLEU counts for an order of n-grams without a match, where Zhu et al. and Holtzman et al. put it too.
Choice not taken: MAUVE (Pillutla et al. 2021). Its package, mauve-text, is under the GPL, needs faiss and scikit-learn, takes
its features from GPT-2 large off the hub, and asks for thousands of texts, where a trial of a sweep has dozens.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import chain
from statistics import fmean, linear_regression

from gpt2_lightning.metrics import perplexity

__all__ = ["distinct", "perplexity_gap", "repetition", "self_bleu", "text_metrics", "zipf"]

Text = Sequence[Hashable]  # of tokens, or of words
BLEU_ORDERS = (1, 2, 3, 4)
UNMATCHED = 0.1  # n-grams counted where none of an order matches (method 1 of Chen and Cherry 2014)
ZIPF_RANKS = 5000  # the most frequent tokens, as Holtzman et al. count them; behind are those seen once or twice


def text_metrics(
    texts: Sequence[Text], cross_entropy: float = math.nan, heldout_cross_entropy: float = math.nan
) -> dict[str, float]:
    """Every measure of ``texts`` by its name; what is not defined for them, or not finite, is absent.

    The cross-entropies are the model's own, nats a token, untruncated and at temperature 1, of ``texts`` and of human texts in
    the same place, best the true continuations of the same prompts; nan where not measured.
    """
    measures = {
        "generation/length": fmean(map(len, texts)) if texts else math.nan,
        "generation/distinct_1": distinct(texts, 1),
        "generation/distinct_2": distinct(texts, 2),
        "generation/distinct_3": distinct(texts, 3),
        "generation/repetition": repetition(texts),
        "generation/self_bleu": self_bleu(texts),
        "generation/zipf": zipf(texts),
        "generation/perplexity": perplexity(cross_entropy),
        "generation/perplexity_gap": perplexity_gap(cross_entropy, heldout_cross_entropy),
    }
    return {name: value for name, value in measures.items() if math.isfinite(value)}


def ngrams(text: Text, n: int) -> list[tuple[Hashable, ...]]:
    """All runs of ``n`` tokens in order; none where the text is shorter."""
    return list(zip(*(text[i:] for i in range(n)), strict=False))


def distinct(texts: Sequence[Text], n: int) -> float:
    """Distinct n-grams over all n-grams of the whole set, in (0, 1] (Li et al. 2016); nan without any n-gram.

    It falls as the set grows: compare only sets with as many tokens.
    """
    found = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(found)) / len(found) if found else math.nan


def repetition(texts: Sequence[Text], n: int = 4) -> float:
    """Share of n-grams that their text held before, in [0, 1): seq-rep-n (Welleck et al. 2020), the mean over texts.

    Texts of fewer than ``n`` tokens do not count; nan where no other is left.
    """
    shares = [1 - len(set(grams)) / len(grams) for text in texts if (grams := ngrams(text, n))]
    return fmean(shares) if shares else math.nan


def self_bleu(texts: Sequence[Text]) -> float:
    """Mean BLEU-4 of each text against all others, in [0, 1] (Zhu et al. 2018; Papineni et al. 2002).

    An order without a match counts ``UNMATCHED`` of them, a text that shares no token scores 0, and a text of fewer than four
    tokens is scored by the orders it has. Empty texts do not count; nan where fewer than two are left.
    """
    texts = [text for text in texts if len(text)]
    if len(texts) < 2:
        return math.nan
    lengths = Counter(map(len, texts))
    orders = zip(*(clipped_matches(texts, n) for n in BLEU_ORDERS), strict=True)
    return fmean(bleu(matches, brevity_penalty(len(text), lengths)) for text, matches in zip(texts, orders, strict=True))


def clipped_matches(texts: Sequence[Text], n: int) -> list[tuple[int, int]]:
    """Per text the n-grams that count as matched, each at most as often as any one other text has it, and all its n-grams.

    The most in the others is the most of all, or the second most where the text itself has the most.
    """
    counts = [Counter(ngrams(text, n)) for text in texts]
    most, second = Counter[tuple[Hashable, ...]](), Counter[tuple[Hashable, ...]]()
    for count in counts:
        for gram, times in count.items():
            second[gram] = max(second[gram], min(times, most[gram]))
            most[gram] = max(most[gram], times)
    matched = (sum(times if times < most[gram] else second[gram] for gram, times in count.items()) for count in counts)
    return [(matches, count.total()) for matches, count in zip(matched, counts, strict=True)]


def bleu(orders: Sequence[tuple[int, int]], penalty: float) -> float:
    """The penalised geometric mean of the precisions, from ``(matches, n-grams)`` of each order."""
    if orders[0][0] == 0:
        return 0.0
    return penalty * math.exp(fmean(math.log((matches or UNMATCHED) / total) for matches, total in orders if total))


def brevity_penalty(length: int, lengths: Counter[int]) -> float:
    """1, or less where the other text nearest in length is longer; of two as near, the shorter counts."""
    nearest = min((abs(other - length), other) for other, times in lengths.items() if other != length or times > 1)[1]
    return min(1.0, math.exp(1 - nearest / length))


def zipf(texts: Sequence[Text]) -> float:
    """Minus the slope of log frequency over log rank of the tokens, by least squares (Holtzman et al. 2020, section 5.1).

    Human text has 0.93 there. It depends on how many tokens there are; nan with fewer than two different ones.
    """
    counts = sorted(Counter(chain.from_iterable(texts)).values(), reverse=True)[:ZIPF_RANKS]
    if len(counts) < 2:
        return math.nan
    return -linear_regression([math.log(rank) for rank in range(1, len(counts) + 1)], [math.log(c) for c in counts]).slope


def perplexity_gap(cross_entropy: float, heldout_cross_entropy: float) -> float:
    """|ln(perplexity / held-out perplexity)|, the distance of two cross-entropies in nats; 0: as likely as human text.

    Not signed: generated text should be as likely as human text, neither more, which is dull and loops, nor less, which is
    incoherent (Holtzman et al. 2020, section 4.2); and to minimise a signed gap is to minimise the perplexity.
    """
    return abs(cross_entropy - heldout_cross_entropy)
