"""Misspelling: a text in, the same text with wrong characters out; or its tokens, and labels that are those of the clean text.

Spaces are never changed and no word vanishes, so the words of the misspelt text are those of the clean text, one for one.
One number: a fifth of English words have a wrong character at a strength of 0.05; only these are encoded a second time, as
they were.
Choice not taken: one call of the tokenizer for each word, which costs more than the encoding itself.
"""

import numpy as np
from numpy.random import Generator

from gpt2_lightning.data.tokens import Tokenizer
from gpt2_lightning.data.words import SPACE, code_kinds, code_points, code_text
from gpt2_lightning.loss import IGNORED

__all__ = ["misspell", "misspell_inputs"]

SUBSTITUTE, DOUBLE, DELETE, TRANSPOSE = range(4)  # the first is what none of the others is
PAD = np.full(2, ord(" "), np.uint8)


def misspell(text: str, strength: float, rng: Generator) -> str:
    """Change each character with probability ``strength``: another letter, twice, none, or its neighbour's place."""
    noisy, copies, _ = misspell_codes(code_points(text), strength, rng)
    return code_text(noisy.repeat(copies))


def misspell_inputs(
    text: str, strength: float, tokenizer: Tokenizer, token_bytes: np.ndarray, rng: Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the misspelt text and labels of the clean one, no label of a misspelt word: int32 ``[time]`` twice.

    A word that has as many tokens as before has the clean ones as labels; otherwise its first place has the first of them
    and its other places have nothing. Needs a tokenizer, such as GPT-2's, whose tokens never reach over the end of a word.
    """
    codes = code_points(text)
    noisy, copies, changed = misspell_codes(codes, strength, rng)
    misspelt = noisy.repeat(copies)
    tokens = tokenizer.encode(code_text(misspelt))
    if not len(changed):
        return tokens, tokens
    first, last = changed_words(codes, changed)
    inside = codes[ranges(first, last - first)]
    clean = tokenizer.encode(code_text(inside))
    clean_ends = tokens_before(token_bytes, clean, inside, (last - first).cumsum())
    ends = copies.cumsum()
    bounds = np.array([ends[first] - copies[first], ends[last - 1]])
    wrong = tokens_before(token_bytes, tokens, misspelt, bounds)
    return tokens, lay_labels(tokens, wrong, clean, clean_ends)


def changed_words(codes: np.ndarray, changed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first place of each word that holds a change, that of the spaces before it, and the place past its last."""
    space, bound = code_kinds(codes) == SPACE, np.ones(len(codes) + 1, bool)
    bound[1:-1] = space[1:] > space[:-1]
    bounds = np.flatnonzero(bound)
    touched = np.zeros(len(bounds), bool)
    touched[bounds.searchsorted(changed, side="right")] = True
    word = np.flatnonzero(touched)
    return bounds[word - 1], bounds[word]


def lay_labels(tokens: np.ndarray, wrong: np.ndarray, clean: np.ndarray, clean_ends: np.ndarray) -> np.ndarray:
    """The tokens as labels, but the clean words' below the misspelt ones, which stand at ``wrong [2, words]``."""
    first, last = wrong
    counts, clean_counts = last - first, clean_ends.copy()
    clean_counts[1:] -= clean_ends[:-1]
    word = np.arange(len(first)).repeat(counts)
    place = np.arange(len(word)) - (counts.cumsum() - counts)[word]  # in its word
    kept = (counts == clean_counts)[word] | (place == 0)
    labels = tokens.copy()
    labels[first[word] + place] = np.where(kept, clean.take((clean_ends - clean_counts)[word] + place, mode="clip"), IGNORED)
    return labels


def ranges(first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``first, first + 1, ...`` of each range, end to end."""
    ends = lengths.cumsum()
    return (first - ends + lengths).repeat(lengths) + np.arange(ends[-1])


def tokens_before(token_bytes: np.ndarray, tokens: np.ndarray, codes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How many tokens end at or before each place among the text's characters, from each word of the vocabulary's bytes."""
    if codes.dtype != np.uint8:
        widths = 1 + (codes > 0x7F).view(np.uint8) + (codes > 0x7FF) + (codes > 0xFFFF)  # in UTF-8
        places = np.append(0, widths.cumsum(dtype=np.int64))[places]
    return token_bytes.take(tokens, mode="clip").cumsum(dtype=np.int64).searchsorted(places, side="right")


def misspell_codes(codes: np.ndarray, strength: float, rng: Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The misspelt code points; how many copies of each stand in the text: none, one or two; and where it was changed.

    The kinds of change have equal odds; but what needs a neighbour that stays becomes another letter where there is none.
    """
    codes = np.concatenate([codes, PAD])  # where those look that have no neighbour: an index below 0 leads there too
    space = code_kinds(codes) == SPACE
    hit = (rng.random(len(codes), np.float32) < strength) > space
    at = np.flatnonzero(hit)
    letter, kind = np.modf(4 * rng.random(len(at)))
    last = space[at + 1]  # of its word
    beside = at + 1 - 2 * last
    here, there = codes[at], codes[beside]
    alone = (space | hit)[beside]
    stuck = alone | (there == here) | last & hit[at - 2]  # the last: two would change with one
    double, delete, moved = kind == DOUBLE, (kind == DELETE) > alone, (kind == TRANSPOSE) > stuck
    noisy, copies = codes.copy(), np.ones(len(codes), np.int64)
    copies[at] = 1 + double - delete
    noisy[at] = np.where(double | delete | moved, np.where(moved, there, here), other_letters(here, letter))
    noisy[beside[moved]] = here[moved]
    return noisy[:-2], copies[:-2], at


def other_letters(codes: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """A lower-case letter for each code point, uniform among those that it is not; ``draws`` are uniform in [0, 1)."""
    place = np.minimum(codes - ord("a"), 26)  # unsigned: 26 on either side of the letters
    letter = (draws * (25 + (place == 26))).astype(np.uint8)
    return ord("a") + letter + (letter >= place)
