"""Misspelling: a text in, the same text with wrong characters out; or its tokens, and labels that are those of the clean text.

Spaces are never changed and no word vanishes, so the words of the misspelt text are those of the clean text, one for one.
One number: a fifth of English words have a wrong character at a strength of 0.05; only these are encoded a second time.
Choice not taken: one call of the tokenizer for each word, which costs more than the encoding itself.
"""

import numpy as np
from numpy.random import Generator

from gpt2_lightning.data.tokens import Tokenizer
from gpt2_lightning.data.words import SPACE, code_kinds, code_points, code_text

__all__ = ["misspell", "misspell_inputs"]

NOTHING = -1  # label where nothing is to be predicted
SUBSTITUTE, DOUBLE, DELETE, TRANSPOSE = range(4)
PAD = np.full(2, ord(" "), np.uint32)


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
    ends, touched = runs(word_ends(codes), changed)
    copies *= np.repeat(touched, np.diff(ends, prepend=0))
    misspelt = noisy.repeat(copies)
    clean, wrong = tokenizer.encode(text), tokenizer.encode(code_text(misspelt))
    counts = tokens_per_run(token_bytes[clean], codes, ends)
    wrong_counts = tokens_per_run(token_bytes[wrong], misspelt, np.append(0, copies.cumsum())[ends])
    return splice(clean, counts, wrong, wrong_counts, touched)


def runs(ends: np.ndarray, changed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of runs and whether each is a changed word: unchanged words side by side are one run."""
    touched = np.zeros(len(ends), bool)
    touched[np.searchsorted(ends, changed, side="right")] = True
    closing = touched | np.append(touched[1:], True)
    return ends[closing], touched[closing]


def splice(
    clean: np.ndarray, counts: np.ndarray, wrong: np.ndarray, wrong_counts: np.ndarray, touched: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Put the touched runs' wrong tokens in the clean ones' place, and lay the labels under them, run by run."""
    lengths = np.where(touched, wrong_counts, counts)
    run, clean_run = np.repeat(np.arange(len(counts)), lengths), np.repeat(np.arange(len(counts)), counts)
    tokens, labels = np.empty(len(run), clean.dtype), np.full(len(run), NOTHING, clean.dtype)
    tokens[touched[run]] = wrong
    tokens[~touched[run]] = clean[~touched[clean_run]]
    same = lengths == counts
    labels[same[run]] = clean[same[clean_run]]
    labels[(lengths.cumsum() - lengths)[~same]] = clean[(counts.cumsum() - counts)[~same]]
    return tokens, labels


def tokens_per_run(token_bytes: np.ndarray, codes: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """How many tokens each run has, from the tokens' bytes, the text's characters, and the runs' ends among them."""
    places = ends if codes.max(initial=0) < 0x80 else np.append(0, byte_widths(codes).cumsum(dtype=np.int64))[ends]
    return np.diff(np.searchsorted(token_bytes.cumsum(), places, side="right"), prepend=0)


def misspell_codes(codes: np.ndarray, strength: float, rng: Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The misspelt code points; how many copies of each stand in the text: none, one or two; and where it was changed.

    The kinds of change have equal odds; but what needs a neighbour that stays becomes another letter where there is none.
    """
    codes = np.concatenate([PAD, codes, PAD])  # every character has neighbours
    space = code_kinds(codes) == SPACE
    hit = (rng.random(len(codes), np.float32) < strength) & ~space
    at = np.flatnonzero(hit)
    kind, letter = rng.random((2, len(at)))
    kind = np.floor(4 * kind)
    beside = np.where(space[at + 1], at - 1, at + 1)
    alone = space[beside] | hit[beside]
    stuck = alone | (codes[beside] == codes[at]) | (beside < at) & hit[at - 2]  # the last: two would change with one
    kind[(kind == DELETE) & alone | (kind == TRANSPOSE) & stuck] = SUBSTITUTE
    noisy, copies = codes.copy(), np.ones(len(codes), np.int64)
    other, moved = kind == SUBSTITUTE, kind == TRANSPOSE
    noisy[at[other]] = other_letters(codes[at[other]], letter[other])
    noisy[at[moved]], noisy[beside[moved]] = codes[beside[moved]], codes[at[moved]]
    copies[at[kind == DELETE]], copies[at[kind == DOUBLE]] = 0, 2
    return noisy[2:-2], copies[2:-2], at - 2


def other_letters(codes: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """A lower-case letter for each code point, uniform among those that it is not; ``draws`` are uniform in [0, 1)."""
    place = codes.astype(np.int64) - ord("a")
    lower = (place >= 0) & (place < 26)
    letter = (draws * (26 - lower)).astype(np.int64)
    return ord("a") + letter + (lower & (letter >= place))


def word_ends(codes: np.ndarray) -> np.ndarray:
    """Just past each word's last character, and past the spaces after the last: words begin with the spaces before them."""
    space = code_kinds(codes) == SPACE
    ends = np.flatnonzero(space[1:] & ~space[:-1]) + 1
    return np.append(ends, len(codes))


def byte_widths(codes: np.ndarray) -> np.ndarray:
    """Bytes of each code point in UTF-8, uint8."""
    return 1 + (codes > 0x7F).view(np.uint8) + (codes > 0x7FF) + (codes > 0xFFFF)
