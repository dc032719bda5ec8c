"""Augmentation: a document's text and its place in, its changed tokens out, and what is to be predicted in their place.

In: ``(text, epoch, corpus, document)``. Out: ``Document(tokens, labels, applied)``, without end-of-text.
Each operation is a pure function ``(thing, strength, rng) -> thing`` and the identity at strength 0. Crop, reversal and swap
change the text in the configured order; misspelling comes after them wherever it is in that order, because it is independent
from character to character: moving words afterwards would change nothing in distribution. Reversed and random tokens come
after tokenising, random ones last.
One number: 4 microseconds, what a document costs that no operation is drawn for.
Choice not taken: one generator for the whole stream. Its state would have to be saved, and the order of the documents would
matter; here each draw is a function of (seed, epoch, corpus, document, operation) alone.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from gpt2_lightning.data.tokens import Tokenizer
from gpt2_lightning.settings.augment import AugmentConfig

__all__ = ["AugmentConfig", "Augmenter", "Document", "expected_length", "keyed_hash"]

MASK = 2**64 - 1
NOTHING = -1  # label where nothing is to be predicted
CJK = r"\u3001-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff65\U00020000-\U0003ffff"  # each a word of its own
WORD = re.compile(rf"([^\s{CJK}]+|[{CJK}])")
WORD_START = re.compile(rf"(?<![^\s{CJK}])(?=\S)|(?=[{CJK}])")
SPACES = re.compile(r"\s*")
CLOSERS = r"[\"')\]}\u00bb\u2019\u201d\u300b\u300d\u300f\u3011\uff09]*+"
SENTENCE_END = re.compile(rf"(?<![.!?\u2026])([.!?\u2026]++){CLOSERS}(?=\s|\Z)")
CJK_SENTENCE_END = re.compile(rf"[\u3002\uff01\uff1f]+{CLOSERS}")
TITLES = "Mr Mrs Ms Mx Messrs Dr Prof Rev Hon St Mt Ft Jr Sr Gen Col Capt Lt Sgt Gov Sen Rep Pres Inc Ltd Co Corp"
SHORT = "etc vs cf ca viz al approx No Nos Vol vol Fig Figs fig Eq eq Sec sec Ch pp Jan Feb Mar Apr Aug Sept Oct Nov Dec"
ABBREVIATION = re.compile(
    rf"(?<!\w)(?<!\w['\u2019])(?:{'|'.join(f'{TITLES} {SHORT}'.split())}|(?:[^\W\d_]{{1,2}}\.)+[^\W\d_]|[A-Z\u00c0-\u00de])\Z"
)
UNICODE_SPACES = [*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
IS_SPACE = np.zeros(0x3002, bool)  # by code point; the last entry stands for all above
IS_SPACE[UNICODE_SPACES] = True
SUBSTITUTE, DELETE, DOUBLE, TRANSPOSE = range(4)


class Document(NamedTuple):
    """A changed document. ``labels[i]`` is to be predicted where ``tokens[i]`` stands, NOTHING where it is -1."""

    tokens: np.ndarray  # int32 [time]
    labels: np.ndarray | None  # int32 [time]; None: the tokens themselves
    applied: tuple[str, ...]  # operations that were drawn, in the configured order


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
            turn = reverse_words if config.reverse.unit == "words" else reverse_sentences
            self.text_operations["reverse"] = partial(turn, strength=config.reverse.strength)
        self.token_bytes = tokenizer.token_bytes() if config.noise.active else None

    def __call__(self, text: str, epoch: int, corpus: int, document: int) -> Document:
        """The document's tokens as they are in this epoch."""
        drawn = self.draw(epoch, corpus, document)
        for name, rng in drawn.items():
            if name in self.text_operations:
                text = self.text_operations[name](text, rng=rng)
        tokens, labels = self.encode(text, drawn.get("noise"))
        if drawn:
            tokens, labels = self.change_tokens(tokens, labels, drawn)
        return Document(tokens, labels, tuple(drawn))

    def draw(self, epoch: int, corpus: int, document: int) -> dict[str, Generator]:
        """The operations the document gets, each with its own generator."""
        key = keyed_hash(self.seed, epoch, corpus, document)
        draws = ((name, keyed_hash(code, state=key), odds) for name, code, odds in self.odds)
        return {name: np.random.default_rng(draw) for name, draw, odds in draws if draw < odds}

    def encode(self, text: str, rng: Generator | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Tokens and labels of the text, misspelt where a generator is given and characters are what is noisy."""
        noise = self.config.noise
        if rng is None or noise.unit != "characters":
            return self.tokenizer.encode(text), None
        if noise.labels == "noisy":
            return self.tokenizer.encode(misspell(text, noise.strength, rng)), None
        assert self.token_bytes is not None
        return misspell_inputs(text, noise.strength, self.tokenizer, self.token_bytes, rng)

    def change_tokens(
        self, tokens: np.ndarray, labels: np.ndarray | None, drawn: dict[str, Generator]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Reverse tokens, their labels with them; then replace some."""
        reverse, noise = self.config.reverse, self.config.noise
        if "reverse" in drawn and reverse.unit == "tokens":
            both = np.stack([tokens, tokens if labels is None else labels])
            tokens, turned = reverse_tokens(both, reverse.strength, drawn["reverse"])
            labels = None if labels is None else turned
        if "noise" in drawn and noise.unit == "tokens":
            labels = tokens if noise.labels == "clean" else None
            sizes = self.tokenizer.vocab_size, self.tokenizer.end_of_text
            tokens = replace_tokens(tokens, noise.strength, *sizes, drawn["noise"])
        return tokens, labels


def expected_length(config: AugmentConfig) -> float:
    """The share of a document's tokens that the crop leaves, on average over documents."""
    return 1 - config.length.p * config.length.strength / 2


def keyed_hash(*parts: int, state: int = 0) -> int:
    """64 uniform bits that depend on every part and on their order; ``state`` is the hash of the parts that came before.

    Each part goes through the mixing of SplitMix64 (Steele, Lea and Flood 2014). Parts count by their lowest 64 bits.
    """
    for part in parts:
        state = ((state ^ part) + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


def crop(text: str, strength: float, rng: Generator) -> str:
    """A stretch of whole words at a uniform place; its share of the characters is uniform in [1 - strength, 1]."""
    kept = round(len(text) * (1 - strength * rng.random()))
    if kept == len(text):
        return text
    start = int(rng.integers(len(text) - kept + 1))
    first = word_start(text, start)
    last = word_start(text, max(start + kept, first + 1))  # both ends move on to a word: the share keeps its mean
    return text[first:last].rstrip() or text


def word_start(text: str, at: int) -> int:
    """Where the first word begins at or after a place; the end of the text when there is none."""
    found = WORD_START.search(text, at)
    return found.start() if found else len(text)


def split_words(text: str) -> list[str]:
    """``[space, word, space, ..., word, space]``; a word is what stands between spaces, and every CJK character."""
    return WORD.split(text)


def split_sentences(text: str) -> list[str]:
    """``[space, sentence, space, ..., sentence, rest]``; the rest is what follows the last end of a sentence."""
    pieces, at = [], 0
    for end in sentence_ends(text):
        start = SPACES.match(text, at).end()  # type: ignore[union-attr]
        pieces += [text[at:start], text[start:end]]
        at = end
    return [*pieces, text[at:]]


def sentence_ends(text: str) -> Iterator[int]:
    """Just past each sentence's last character, judged by the sentence's ending alone, so that order does not matter.

    Where there are CJK full stops only these count; elsewhere full stops before a space do, but not those of abbreviations.
    """
    if not text.isascii() and CJK_SENTENCE_END.search(text):
        yield from (found.end() for found in CJK_SENTENCE_END.finditer(text))
        return
    for found in SENTENCE_END.finditer(text):
        if found[1] != "." or not ABBREVIATION.search(text, max(0, found.start() - 8), found.start()):
            yield found.end()


def reverse_words(text: str, strength: float, rng: Generator) -> str:
    """Turn around a span of ``strength`` times the words, the spaces between them too."""
    return reverse_pieces(text, split_words, strength, rng)


def reverse_sentences(text: str, strength: float, rng: Generator) -> str:
    """Turn around a span of ``strength`` times the sentences, the spaces between them too."""
    return reverse_pieces(text, split_sentences, strength, rng)


def reverse_pieces(text: str, split: Callable[[str], list[str]], strength: float, rng: Generator) -> str:
    """Turn around a span of the text's pieces, unless the turned text would be split otherwise: twice is the identity."""
    pieces = split(text)
    first, last = reversed_span(len(pieces) // 2, strength, rng)
    if last - first < 2:
        return text
    span = slice(2 * first + 1, 2 * last)
    pieces[span] = pieces[span][::-1]
    turned = "".join(pieces)
    return turned if split(turned) == pieces else text


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
    pieces = split_words(text)
    for i, j in swap_pairs(len(pieces) // 2, strength, window, rng):
        one, other = pieces[2 * i + 1], pieces[2 * j + 1]
        if (one[0] >= "\u3001") == (other[0] >= "\u3001"):
            pieces[2 * i + 1], pieces[2 * j + 1] = other, one
    return "".join(pieces)


def swap_pairs(units: int, strength: float, window: int, rng: Generator) -> list[tuple[int, int]]:
    """Disjoint pairs of one distance, drawn from 1 to ``window``: dominoes laid at random on every distance-th unit."""
    if units < 2:
        return []
    distance = int(rng.integers(1, min(window, units // 2) + 1))
    lanes = np.concatenate([np.arange(lane, units, distance) for lane in range(distance)])
    usable = (units - distance) / (units - 1)  # a domino from one lane to the next is no pair
    count = min(int(strength * units / 2 / usable + rng.random()), units // 2)
    at = np.sort(rng.choice(units - count, count, replace=False)) + np.arange(count)
    one, other = lanes[at], lanes[at + 1]
    pairs = other - one == distance
    return list(zip(one[pairs].tolist(), other[pairs].tolist(), strict=True))
