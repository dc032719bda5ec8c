"""Augmentation: a document's text and its place in, its changed tokens out, and what is to be predicted in their place.

In: ``(text, epoch, corpus, document)``. Out: a Passage, without end-of-text: ``labels[i]`` is to be predicted where
``tokens[i]`` stands.
Each operation is a pure function ``(thing, strength, rng) -> thing`` and the identity at strength 0. Crop, reversal and swap
change the text in the configured order; misspelling comes after them wherever it is in that order, because it is independent
from character to character: moving words afterwards would change nothing in distribution. Reversed and random tokens come
after tokenising, random ones last.
One number: 5 microseconds, what a document costs for which no operation is drawn.
Choice not taken: one generator for the whole stream. Its state would have to be saved, and the order of the documents would
matter; here each draw is a function of (seed, epoch, corpus, document, operation) alone.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.random import PCG64, Generator
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike

from gpt2_lightning.data.chance import keyed_hash
from gpt2_lightning.data.lanes import Passage
from gpt2_lightning.data.misspelling import misspell, misspell_inputs
from gpt2_lightning.data.tokens import Tokenizer
from gpt2_lightning.data.words import (
    CJK,
    WHITE_SPACE,
    code_kinds,
    code_points,
    next_word,
    split_sentences,
    split_words,
    word_bounds,
)
from gpt2_lightning.settings.augment import AugmentConfig

__all__ = ["AugmentConfig", "Augmenter", "Drawn", "expected_length"]

Drawn = dict[str, Generator]  # the operations that a document gets, in the configured order, each with its own generator


class Seed(ISeedSequence):
    """A generator's seed from a hash, without numpy's own mixing, which takes longer than most operations' draws."""

    def __init__(self, key: int) -> None:
        self.key = key

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint64) -> np.ndarray:
        """The first state of a generator."""
        return np.array([keyed_hash(word, state=self.key) for word in range(n_words)], np.uint64).astype(dtype)


class Augmenter:
    """Draws which operations a document gets and carries them out."""

    def __init__(self, config: AugmentConfig, tokenizer: Tokenizer, seed: int) -> None:
        self.config, self.tokenizer, self.seed = config, tokenizer, seed
        active = [name for name in config.order if getattr(config, name).active]
        self.odds = [(name, int.from_bytes(name.encode()), getattr(config, name).p * 2**64) for name in active]
        self.text_operations: dict[str, Callable[..., str]] = {
            "length": partial(crop, strength=config.length.strength),
            "swap": partial(swap_words, strength=config.swap.strength, window=config.swap.window),
        }
        if config.reverse.unit != "tokens":
            split = split_words if config.reverse.unit == "words" else split_sentences
            self.text_operations["reverse"] = partial(reverse_pieces, split=split, strength=config.reverse.strength)
        # 16 bits: the table is read all over, and stays in the cache nearest to the processor
        self.token_bytes = tokenizer.token_bytes().astype(np.uint16) if config.noise.active else None

    def __call__(self, text: str, epoch: int, corpus: int, document: int) -> Passage:
        """The document's tokens as they are in this epoch."""
        return self.change(text, self.draw(epoch, corpus, document))

    def change(self, text: str, drawn: Drawn) -> Passage:
        """The tokens of a text after the operations that were drawn for it; what is reversed takes its labels along."""
        for name, rng in drawn.items():
            if name in self.text_operations:
                text = self.text_operations[name](text, rng=rng)
        reverse, noise, labels = self.config.reverse, self.config.noise, None
        if "noise" in drawn and noise.unit == "characters" and noise.labels == "clean":
            assert self.token_bytes is not None
            tokens, labels = misspell_inputs(text, noise.strength, self.tokenizer, self.token_bytes, drawn["noise"])
        elif "noise" in drawn and noise.unit == "characters":
            tokens = self.tokenizer.encode(misspell(text, noise.strength, drawn["noise"]))
        else:
            tokens = self.tokenizer.encode(text)
        if "reverse" in drawn and reverse.unit == "tokens":
            both = np.stack([tokens, tokens if labels is None else labels])
            tokens, turned = reverse_tokens(both, reverse.strength, drawn["reverse"])
            labels = None if labels is None else turned
        if "noise" in drawn and noise.unit == "tokens":
            labels = tokens if noise.labels == "clean" else None
            sizes = self.tokenizer.vocab_size, self.tokenizer.end_of_text
            tokens = replace_tokens(tokens, noise.strength, *sizes, drawn["noise"])
        return Passage(tokens, labels, applied=tuple(drawn))

    def draw(self, epoch: int, corpus: int, document: int) -> Drawn:
        """The operations the document gets, each with its own generator."""
        if not self.odds:
            return {}
        key = keyed_hash(self.seed, epoch, corpus, document)
        draws = ((name, keyed_hash(code, state=key), odds) for name, code, odds in self.odds)
        # numpy documents such seeds; its types leave them out
        return {name: Generator(PCG64(Seed(draw))) for name, draw, odds in draws if draw < odds}  # type: ignore[arg-type]


def expected_length(config: AugmentConfig) -> float:
    """The share of a document's tokens that the crop leaves, on average over documents."""
    return 1 - config.length.p * config.length.strength / 2


def crop(text: str, strength: float, rng: Generator) -> str:
    """A stretch of whole words at a uniform place; its share of the characters is uniform in [1 - strength, 1]."""
    kept = round(len(text) * (1 - strength * rng.random()))
    start = int(rng.integers(len(text) - kept + 1))
    if kept == len(text):
        return text
    first = next_word(text, start)
    if first == len(text):
        return split_words(text)[-2:][0]  # the last word; what holds none stays
    past = next_word(text, max(start + kept, first + 1))  # both move on to where a word begins: the share keeps its mean
    return text[first:past].rstrip(WHITE_SPACE)


def reverse_pieces(text: str, split: Callable[[str], list[str]], strength: float, rng: Generator) -> str:
    """Turn around a span of ``strength`` times the text's pieces, the spaces between them too.

    Where the turned text would be split otherwise, it is left, so that the whole turned twice is the text. ASCII is always
    split the same: its pieces have spaces between them.
    """
    pieces = split(text)
    first, last = reversed_span(len(pieces) // 2, strength, rng)
    if last - first < 2:
        return text
    span = slice(2 * first + 1, 2 * last)
    pieces[span] = pieces[span][::-1]
    turned = "".join(pieces)
    return turned if text.isascii() or split(turned) == pieces else text


def reverse_tokens(tokens: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Turn around a span of ``strength`` times the tokens ``[..., time]``."""
    first, last = reversed_span(tokens.shape[-1], strength, rng)
    turned = tokens.copy()
    turned[..., first:last] = tokens[..., first:last][..., ::-1]
    return turned


def reversed_span(units: int, strength: float, rng: Generator) -> tuple[int, int]:
    """First and past-the-last unit of a span of ``strength * units`` at a uniform place."""
    count = round(strength * units)
    first = int(rng.integers(units - count + 1))
    return first, first + count


def swap_words(text: str, strength: float, rng: Generator, window: int = 1) -> str:
    """Let about ``strength`` times the words change places in pairs; the spaces stay where they are.

    A CJK character changes places only with another, or words that it keeps apart would run together.
    """
    bounds = word_bounds(text)
    pairs = swap_pairs(len(bounds), strength, window, rng)
    if not text.isascii():
        pairs = pairs[:, (code_kinds(code_points(text))[bounds[pairs, 0]] == CJK).sum(0) != 1]
    source = np.arange(len(bounds))
    source[pairs] = pairs[::-1]
    moved = np.sort(pairs, axis=None)
    pieces = np.zeros((2 * len(moved) + 1, 2), np.int64)  # stretches that stay and words that come, in turn
    pieces[2::2, 0], pieces[:-1:2, 1], pieces[-1, 1] = bounds[moved, 1], bounds[moved, 0], len(text)
    pieces[1::2] = bounds[source[moved]]
    return "".join(map(text.__getitem__, map(slice, *pieces.T.tolist())))


def swap_pairs(units: int, strength: float, window: int, rng: Generator) -> np.ndarray:
    """Disjoint pairs at one distance, drawn from 1 to ``window``: int64 ``[2, pairs]``.

    Dominoes laid at random on a line of all units, in which every distance-th unit stands next to the one before it.
    """
    if units < 2:
        return np.empty((2, 0), np.int64)
    distance = int(rng.integers(1, min(window, units // 2) + 1))
    line = np.concatenate([np.arange(first, units, distance) for first in range(distance)])
    usable = (units - distance) / (units - 1)  # the other dominoes lie across the line's seams and are no pairs
    count = min(int(strength * units / 2 / usable + rng.random()), units // 2)
    at = np.sort(rng.permutation(units - count)[:count]) + np.arange(count)
    one, other = line[at], line[at + 1]
    return np.array([one, other])[:, other - one == distance]


def replace_tokens(tokens: np.ndarray, strength: float, vocab_size: int, end_of_text: int, rng: Generator) -> np.ndarray:
    """Replace each token with probability ``strength`` by any other word of the vocabulary but end-of-text."""
    hit = np.flatnonzero(rng.random(len(tokens)) < strength)
    other = rng.integers(vocab_size - 2, size=len(hit), dtype=tokens.dtype)
    other += other >= np.minimum(tokens[hit], end_of_text)  # step over the two that are not to be drawn, the lower first
    other += other >= np.maximum(tokens[hit], end_of_text)
    noisy = tokens.copy()
    noisy[hit] = other
    return noisy
