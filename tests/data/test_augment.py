"""Augmentation changes what it says, as often as it says, and depends on the document's place alone."""

import json
import pickle
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from gpt2_lightning.data import augment, misspelling, words
from gpt2_lightning.data.augment import AugmentConfig, Augmenter, expected_length
from gpt2_lightning.data.chance import keyed_hash
from gpt2_lightning.data.tokens import load_tokenizer
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.loss import IGNORED
from gpt2_lightning.settings.augment import OPERATIONS, LengthConfig, NoiseConfig, ReverseConfig, SwapConfig

GPT2, BYTES = load_tokenizer("gpt2"), load_tokenizer("bytes")
TOKEN_BYTES = {tokenizer.vocab_size: tokenizer.token_bytes() for tokenizer in (GPT2, BYTES)}
PARTS = {"length": LengthConfig, "reverse": ReverseConfig, "swap": SwapConfig, "noise": NoiseConfig}
SCENES = [
    json.loads(line)["text"]
    for line in (files("gpt2_lightning") / "assets" / "shakespeare.jsonl").read_text(encoding="utf-8").splitlines()[:20]
]
CONFS = sorted((Path(__file__).parents[2] / "conf" / "augment").glob("*.yaml"))
MARKS = "a Mr U.S e.g I can't 3.14 . ... !? \u2026 \" \u2019 ( \u300d \u3002 \uff01 \uff1f 中 文 é 한글 🙂 e\u0301 - Zz"
SHARDS = [*MARKS.split(" "), " ", " ", "  ", "\n", "\t", "\u3000", "\u00a0", "\x1c", "\u2028"]
shards = st.lists(st.sampled_from(SHARDS), max_size=30).map("".join)
ascii_shards = st.lists(st.sampled_from([s for s in SHARDS if s.isascii()]), max_size=30).map("".join)
texts = st.one_of(st.text(max_size=60), shards, ascii_shards)
few = settings(max_examples=150, deadline=None)


def config(order: tuple[str, ...] = OPERATIONS, **parts: dict[str, object]) -> AugmentConfig:
    """``config(noise={"p": 1.0})``: what is not named stays off."""
    return AugmentConfig(order=list(order), **{name: PARTS[name](**options) for name, options in parts.items()})


def everything(p: float, reverse: str = "sentences", noise: str = "characters", labels: str = "clean") -> AugmentConfig:
    part = {"p": p, "strength": 0.5}
    return config(length=part, swap=part, reverse=part | {"unit": reverse}, noise=part | {"unit": noise, "labels": labels})


def distinct(count: int) -> str:
    return " ".join(f"w{i:03}" for i in range(count))


# The hash


def test_the_hash_is_splitmix64() -> None:
    assert keyed_hash(0) == 0xE220A8397B1DCDAF  # its first output from seed 0
    assert keyed_hash(3, 1, 4, state=keyed_hash(9)) == keyed_hash(9, 3, 1, 4)


@pytest.mark.parametrize("place", range(4))
def test_the_hash_is_uniform_in_each_part(place: int) -> None:
    parts = [[0, 0, 0, 0] for _ in range(8192)]
    for i, part in enumerate(parts):
        part[place] = i
    values = [keyed_hash(*part) for part in parts]
    assert len(set(values)) == len(values)
    for shift in (0, 24, 56):
        counts = np.bincount([value >> shift & 255 for value in values], minlength=256)
        chi_square = ((counts - 32) ** 2 / 32).sum()
        assert 160 < chi_square < 370  # mean 255, standard deviation 23


def test_the_hash_depends_on_the_order_of_the_parts() -> None:
    assert len({keyed_hash(*parts) for parts in [(1, 2), (2, 1), (0, 1, 2), (1, 2, 0), (1,), (2,), (0,), (0, 0)]}) == 8


# What the augmenter promises


@pytest.mark.parametrize("tokenizer", [GPT2, BYTES], ids=["gpt2", "bytes"])
@pytest.mark.parametrize("off", [everything(0.0), config(**{n: {"p": 1.0, "strength": 0.0} for n in OPERATIONS})])
@few
@given(text=texts)
def test_p_or_strength_0_is_the_identity(tokenizer: augment.Tokenizer, off: AugmentConfig, text: str) -> None:
    tokens, labels, _, applied = Augmenter(off, tokenizer, 0)(text, 1, 2, 3)
    assert tokens.tolist() == tokenizer.encode(text).tolist()
    assert (labels, applied) == (None, ())


@pytest.mark.parametrize("tokenizer", [GPT2, BYTES], ids=["gpt2", "bytes"])
@pytest.mark.parametrize("reverse", ["sentences", "words", "tokens"])
@pytest.mark.parametrize("noise", ["characters", "tokens"])
@settings(max_examples=60, deadline=None)
@given(text=texts, labels=st.sampled_from(["clean", "noisy"]), place=st.integers(0, 99))
def test_no_text_breaks_it(tokenizer: augment.Tokenizer, reverse: str, noise: str, text: str, labels: str, place: int) -> None:
    got = Augmenter(everything(1.0, reverse, noise, labels), tokenizer, 0)(text, 0, 0, place)
    assert got.applied == OPERATIONS
    assert got.tokens.dtype == np.int32
    assert ((got.tokens >= 0) & (got.tokens < tokenizer.vocab_size) & (got.tokens != tokenizer.end_of_text)).all()
    assert (len(got.tokens) > 0) == (text != "")
    if labels == "noisy":
        assert got.labels is None
    else:
        assert got.labels is not None
        assert (got.labels.dtype, got.labels.shape) == (np.int32, got.tokens.shape)
        assert (((got.labels >= 0) | (got.labels == IGNORED)) & (got.labels < tokenizer.vocab_size)).all()


def test_a_document_depends_on_its_place_alone() -> None:
    def read(order: list[int], seed: int = 0, epoch: int = 0, corpus: int = 0) -> dict[int, tuple[object, ...]]:
        augmenter = Augmenter(everything(0.7), GPT2, seed)
        got = {i: augmenter(SCENES[0], epoch, corpus, i) for i in order}
        return {i: (*got[i].tokens.tolist(), got[i].applied) for i in sorted(got)}

    first = read(list(range(8)))
    assert read([5, 3, 3, 7, 0, 6, 1, 2, 4]) == first
    assert len(set(first.values())) == 8
    for other in (read(list(first), seed=1), read(list(first), epoch=1), read(list(first), corpus=1)):
        assert not set(other.values()) & set(first.values())


def test_the_numpy_generator_that_all_share_is_not_touched() -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    Augmenter(everything(1.0), GPT2, 0)(SCENES[0], 0, 0, 0)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]


def test_operations_are_drawn_independently_and_as_often_as_p_says() -> None:
    every, alone = Augmenter(everything(0.3), BYTES, 7), Augmenter(config(swap={"p": 0.3}), BYTES, 7)
    drawn = [every("a b", 0, 0, i).applied for i in range(6000)]
    for name in OPERATIONS:
        assert np.mean([name in one for one in drawn]) == pytest.approx(0.3, rel=0.1)
    assert np.mean([len(one) == 4 for one in drawn]) == pytest.approx(0.3**4, rel=0.4)
    assert [("swap",) if "swap" in one else () for one in drawn] == [alone("a b", 0, 0, i).applied for i in range(6000)]


def test_text_operations_follow_the_order_and_misspelling_is_always_last() -> None:
    def tokens(*order: str) -> list[int]:
        return Augmenter(config(order, **everything_on), GPT2, 0)(SCENES[0], 0, 0, 0).tokens.tolist()

    everything_on = {name: {"p": 1.0} for name in OPERATIONS}
    assert tokens("noise", "length", "swap", "reverse") == tokens("length", "swap", "reverse", "noise")
    assert tokens("length", "swap", "reverse", "noise") != tokens("swap", "length", "reverse", "noise")


def test_an_augmenter_can_be_sent_to_a_worker() -> None:
    augmenter = Augmenter(everything(1.0), BYTES, 3)
    sent = pickle.loads(pickle.dumps(augmenter))
    assert sent(SCENES[0], 0, 0, 0).tokens.tolist() == augmenter(SCENES[0], 0, 0, 0).tokens.tolist()


# Length


@given(text=texts, strength=st.sampled_from([0.3, 0.9, 1.0]), seed=st.integers(0, 99))
@few
def test_a_crop_is_a_stretch_of_whole_words(text: str, strength: float, seed: int) -> None:
    got = augment.crop(text, strength, default_rng(seed))
    whole, part = words.split_words(text)[1::2], words.split_words(got)[1::2]
    assert got in text
    assert got or not text
    assert any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))
    assert part or not whole


@pytest.mark.parametrize(("p", "strength"), [(1.0, 0.5), (1.0, 1.0), (0.5, 0.4)])
def test_crops_leave_what_is_expected(p: float, strength: float) -> None:
    cropped = config(length={"p": p, "strength": strength})
    augmenter, text = Augmenter(cropped, BYTES, 0), distinct(500)
    shares = [len(augmenter(text, 0, 0, i).tokens) / len(text) for i in range(1500)]
    assert np.mean(shares) == pytest.approx(expected_length(cropped), rel=0.02)
    assert 1 - strength - 0.01 < min(shares) < 1 - strength + 0.02
    assert max(shares) > 0.98


def test_a_crop_may_be_anywhere() -> None:
    starts = [int(augment.crop(distinct(300), 1.0, default_rng(i)).split()[0][1:]) for i in range(1000)]
    ends = [int(augment.crop(distinct(300), 1.0, default_rng(i)).split()[-1][1:]) for i in range(1000)]
    assert np.mean(starts) == pytest.approx(75, rel=0.1)  # half of what is left out, which is half on average
    assert np.mean(ends) == pytest.approx(225, rel=0.1)


# Reversal


@pytest.mark.parametrize("split", [words.split_sentences, words.split_words])
@settings(max_examples=1500, deadline=None)
@given(text=texts, seed=st.integers(0, 9))
def test_reversed_twice_is_the_text(split: Callable[[str], list[str]], text: str, seed: int) -> None:
    rng = default_rng(seed)
    once = augment.reverse_pieces(text, split, 1.0, rng)
    assert augment.reverse_pieces(once, split, 1.0, rng) == text
    assert sorted(once) == sorted(text)


@settings(max_examples=1500, deadline=None)
@given(text=ascii_shards)
def test_reversed_ascii_is_split_where_it_was(text: str) -> None:
    for split in (words.split_sentences, words.split_words):
        first, *pieces, rest = split(text) if len(split(text)) > 1 else [*split(text), ""]
        turned = first + "".join(pieces[::-1]) + rest
        assert split(turned)[1:-1] == pieces[::-1] or len(split(text)) == 1


@given(tokens=st.lists(st.integers(0, 300), max_size=30), seed=st.integers(0, 99))
@few
def test_reversed_tokens_twice_are_the_tokens(tokens: list[int], seed: int) -> None:
    once = augment.reverse_tokens(np.array(tokens, np.int32), 1.0, default_rng(seed))
    assert once.tolist() == tokens[::-1]
    assert augment.reverse_tokens(once, 1.0, default_rng(seed)).tolist() == tokens


@pytest.mark.parametrize(
    ("split", "text", "expected"),
    [
        (words.split_sentences, "Come, Mr. A. Dent.  Now! \nOr never?", "Or never? \nNow!  Come, Mr. A. Dent."),
        (words.split_sentences, " One. Two. and so on", " Two. One. and so on"),
        (words.split_sentences, "no end in sight", "no end in sight"),
        (words.split_sentences, "天。 地\uff01人", "地\uff01 天。人"),
        (words.split_words, " to be,\nor not ", " not or\nbe, to "),
        (words.split_words, "中文 and 3天", "天3 and 文中"),
        (words.split_words, "one", "one"),
    ],
)
def test_reversal_is_of_order_alone(split: Callable[[str], list[str]], text: str, expected: str) -> None:
    assert augment.reverse_pieces(text, split, 1.0, default_rng(0)) == expected


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9])
def test_a_part_reversal_turns_one_span_anywhere(strength: float) -> None:
    moved = np.zeros(200)
    for seed in range(300):
        turned = augment.reverse_pieces(distinct(200), words.split_words, strength, default_rng(seed))
        got = np.array([int(word[1:]) for word in turned.split()])
        at = np.flatnonzero(got != np.arange(200))
        assert got[at[0] : at[-1] + 1].tolist() == list(range(at[-1], at[0] - 1, -1))
        assert at[-1] - at[0] + 1 == strength * 200
        moved[at[0] : at[-1] + 1] += 1
    assert moved.mean() / 300 == pytest.approx(strength)
    assert moved.min() > 0 or strength < 0.9
    assert moved[:100].sum() == pytest.approx(moved[100:].sum(), rel=0.3)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?"]),
        ("Dr. Who met Mrs. Hill, Prof. Moriarty and St. John.", ["Dr. Who met Mrs. Hill, Prof. Moriarty and St. John."]),
        (
            "See Fig. 3, No. 5, vs. e.g. pens, i.e. ink, etc. Then go.",
            ["See Fig. 3, No. 5, vs. e.g. pens, i.e. ink, etc. Then go."],
        ),
        ("J. R. R. Tolkien wrote. He (M. Twain) too.", ["J. R. R. Tolkien wrote.", "He (M. Twain) too."]),
        ("In the U.S. at 5 p.m. it rained. A Ph.D. came.", ["In the U.S. at 5 p.m. it rained.", "A Ph.D. came."]),
        ("I can't. She didn't! 'Mr. X' is a.", ["I can't.", "She didn't!", "'Mr. X' is a."]),
        ('He said "Go." Then: "Come!" (Really.) [So.]', ['He said "Go."', 'Then: "Come!"', "(Really.)", "[So.]"]),
        ("«Non.» \u201cYes.\u201d \u2018No?\u2019 So", ["«Non.»", "\u201cYes.\u201d", "\u2018No?\u2019"]),
        ("Pi is 3.14 and e is 2.71. Good.", ["Pi is 3.14 and e is 2.71.", "Good."]),
        ("Well... maybe. Wait\u2026 what?! Hm", ["Well...", "maybe.", "Wait\u2026", "what?!"]),
        ("a.b www.x.org/y.html v1.2.3 end. x", ["a.b www.x.org/y.html v1.2.3 end."]),
        ("你好。今天天气很好\uff01你呢\uff1fMr. A. 对。完", ["你好。", "今天天气很好\uff01", "你呢\uff1f", "Mr. A. 对。"]),
        ("「行こう。」と言った。 はい\uff01\uff01 え", ["「行こう。」", "と言った。", "はい\uff01\uff01"]),
        ("One.\n\nTwo.\tThree.\u00a0Four.\u2003", ["One.", "Two.", "Three.", "Four."]),
        ("", []),
        (" \n ", []),
        ("...", ["..."]),
        (" . ! ", [".", "!"]),
    ],
)
def test_where_sentences_end(text: str, sentences: list[str]) -> None:
    pieces = words.split_sentences(text)
    assert pieces[1::2] == sentences
    assert "".join(pieces) == text
    assert all(not space.strip() for space in pieces[:-1:2])


@given(text=texts)
@few
def test_pieces_are_the_text_and_words_hold_no_space(text: str) -> None:
    for split in (words.split_sentences, words.split_words):
        pieces = split(text)
        assert "".join(pieces) == text
        assert len(pieces) % 2 == 1
        assert all(pieces[1::2])
    assert not any(re.search(r"[^\S\x1c-\x1f]", word) for word in words.split_words(text)[1::2])
    assert not "".join(words.split_words(text)[::2]).strip()


def test_long_runs_of_full_stops_take_no_time() -> None:
    assert words.split_sentences("." * 200_000 + "x") == ["." * 200_000 + "x"]
    assert len(words.split_sentences("x." * 50_000 + '"' * 50_000)) == 3


# Swaps


@given(text=texts, strength=st.floats(0, 1), window=st.integers(1, 9), seed=st.integers(0, 99))
@few
def test_swaps_keep_the_words_and_the_spaces(text: str, strength: float, window: int, seed: int) -> None:
    before = words.split_words(text)
    after = words.split_words(augment.swap_words(text, strength, default_rng(seed), window))
    assert sorted(after[1::2]) == sorted(before[1::2])
    assert after[::2] == before[::2]


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("strength", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("count", [60, 301])
def test_swaps_are_as_many_and_as_far_as_they_say(window: int, strength: float, count: int) -> None:
    share, distances = [], set()
    for seed in range(400):
        got = augment.swap_words(distinct(count), strength, default_rng(seed), window)
        moves = np.array([int(word[1:]) for word in got.split()]) - np.arange(count)
        assert (moves[np.arange(count) + moves] == -moves).all()  # pairs
        share.append((moves != 0).mean())
        distances |= set(abs(moves[moves != 0]).tolist())
    assert np.mean(share) == pytest.approx(strength, rel=0.1)
    assert distances == set(range(1, window + 1))


def test_short_documents_swap_as_much_as_long_ones() -> None:
    shares = [2 * augment.swap_pairs(12, 0.3, 5, default_rng(seed)).shape[1] / 12 for seed in range(3000)]
    assert np.mean(shares) == pytest.approx(0.3, rel=0.1)


def test_every_word_is_swapped_equally_often() -> None:
    moved = np.zeros(50)
    for seed in range(2000):
        moved[augment.swap_pairs(50, 0.2, 3, default_rng(seed)).ravel()] += 1
    assert moved[3:-3].min() > 0.8 * 400
    assert moved.max() < 1.3 * 400


# Noise of tokens


@pytest.mark.parametrize("strength", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("end_of_text", [0, 4, 8])
def test_replaced_tokens_are_as_many_as_they_say_and_uniform(strength: float, end_of_text: int) -> None:
    tokens = np.resize([t for t in range(9) if t != end_of_text], 80_000).astype(np.int32)
    got = augment.replace_tokens(tokens, strength, 9, end_of_text, default_rng(0))
    new = got[got != tokens]
    assert len(new) / len(tokens) == pytest.approx(strength, rel=0.05)  # none was replaced by itself
    assert np.bincount(new, minlength=9) == pytest.approx(len(new) / 8 * (np.arange(9) != end_of_text), rel=0.1)
    assert got.dtype == tokens.dtype


def test_labels_of_replaced_tokens_are_the_clean_tokens() -> None:
    for labels in ("clean", "noisy"):
        noisy = config(noise={"p": 1.0, "strength": 0.3, "unit": "tokens", "labels": labels})
        got = Augmenter(noisy, GPT2, 0)(SCENES[0], 0, 0, 0)
        clean = GPT2.encode(SCENES[0])
        assert (got.tokens != clean).mean() == pytest.approx(0.3, rel=0.1)
        assert got.labels is None if labels == "noisy" else np.array_equal(got.labels, clean)  # type: ignore[arg-type]


# Noise of characters


@pytest.mark.parametrize("strength", [0.01, 0.05, 0.3])
def test_misspellings_are_as_many_as_they_say_and_of_equal_kinds(strength: float) -> None:
    codes = words.code_points(" ".join(["ABCDEFGH"] * 20_000))
    noisy, copies, changed = misspelling.misspell_codes(codes, strength, default_rng(0))
    assert len(changed) / (codes != 32).sum() == pytest.approx(strength, rel=0.05)
    odd, lower = noisy[changed] != codes[changed], noisy[changed] >= ord("a")
    kinds = [(copies[changed] == 0).mean(), (copies[changed] == 2).mean(), lower.mean(), (odd & ~lower).mean()]
    assert sum(kinds) == pytest.approx(1)  # every change is seen
    if strength < 0.1:
        assert kinds == pytest.approx([0.25] * 4, rel=0.15)


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_every_misspelling_is_seen_and_neighbours_change_places_in_pairs(strength: float) -> None:
    codes = words.code_points(" ".join(["ABC", "AAB", "AA", "A", "ABCD"] * 500))
    noisy, copies, changed = misspelling.misspell_codes(codes, strength, default_rng(0))
    assert ((noisy != codes) | (copies != 1))[changed].all()
    moved = (noisy != codes) & (noisy < ord("a"))
    assert sorted(noisy[moved]) == sorted(codes[moved])
    assert moved.any() == (strength < 1)  # where all are hit, none has a neighbour that stays


def test_another_letter_is_any_other() -> None:
    draws = np.linspace(0, 1, 26_000, endpoint=False)
    for code, choices in ((ord("a"), 25), (ord("k"), 25), (ord("z"), 25), (ord("K"), 26), (0x4E2D, 26)):
        got = misspelling.other_letters(np.full(26_000, code, np.uint32), draws)
        counts = np.bincount(got - 97, minlength=26)
        assert (got != code).all()
        assert counts[counts > 0] == pytest.approx(26_000 / choices, rel=0.01)
        assert (counts > 0).sum() == choices


UNICODE_SPACE = r"[^\S\x1c-\x1f]"  # the tokenizer's idea of a space: four of Python's are none
UNICODE_WORD = rf"{UNICODE_SPACE}*(?:\S|[\x1c-\x1f])+|{UNICODE_SPACE}+\Z"  # with the spaces before it


@given(text=texts, strength=st.sampled_from([0.1, 0.5, 1.0]), seed=st.integers(0, 99))
@few
def test_misspelling_keeps_every_word_and_space(text: str, strength: float, seed: int) -> None:
    got = misspelling.misspell(text, strength, default_rng(seed))
    assert re.findall(f"{UNICODE_SPACE}+", got) == re.findall(f"{UNICODE_SPACE}+", text)
    assert len(re.findall(UNICODE_WORD, got)) == len(re.findall(UNICODE_WORD, text))
    assert set(got) - set(text) <= set("abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize("tokenizer", [GPT2, BYTES], ids=["gpt2", "bytes"])
@given(text=texts, strength=st.sampled_from([0.0, 0.05, 0.3, 1.0]), seed=st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_labels_of_misspelt_words_are_those_of_words_encoded_one_by_one(
    tokenizer: augment.Tokenizer, text: str, strength: float, seed: int
) -> None:
    tokens, labels = misspelling.misspell_inputs(
        text, strength, tokenizer, TOKEN_BYTES[tokenizer.vocab_size], default_rng(seed)
    )
    noisy = tokenizer.decode(tokens.tolist())
    assert noisy == misspelling.misspell(text, strength, default_rng(seed))
    assert tokens.tolist() == tokenizer.encode(noisy).tolist()
    expected: list[int] = []
    for clean_word, noisy_word in zip(re.findall(UNICODE_WORD, text), re.findall(UNICODE_WORD, noisy), strict=True):
        clean, wrong = tokenizer.encode(clean_word).tolist(), tokenizer.encode(noisy_word).tolist()
        expected += clean if len(clean) == len(wrong) else [clean[0], *[IGNORED] * (len(wrong) - 1)]
    assert labels.tolist() == expected


def test_no_label_is_noise() -> None:
    digits = "1234 567 89 0 " * 200  # noise is letters, so that it can be told
    got = Augmenter(config(noise={"p": 1.0, "strength": 0.2}), GPT2, 0)(digits, 0, 0, 0)
    assert got.labels is not None
    assert re.search("[a-z]", GPT2.decode(got.tokens.tolist()))
    assert set(got.labels.tolist()) <= {*GPT2.encode(digits).tolist(), IGNORED}


def test_labels_of_reversed_tokens_are_reversed_with_them() -> None:
    noise = {"p": 1.0, "strength": 0.1}
    straight = Augmenter(config(noise=noise), GPT2, 0)(SCENES[0], 0, 0, 0)
    turned = Augmenter(config(noise=noise, reverse={"p": 1.0, "unit": "tokens"}), GPT2, 0)(SCENES[0], 0, 0, 0)
    assert straight.labels is not None
    assert turned.labels is not None
    assert turned.tokens.tolist() == straight.tokens[::-1].tolist()
    assert turned.labels.tolist() == straight.labels[::-1].tolist()


# Settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: AugmentConfig(order=["length"]),
            r"augment.order = .*exactly once. Set augment.order=\[length,reverse,swap,noise\]",
        ),
        (lambda: AugmentConfig(order=[*OPERATIONS, "swap"]), "must hold each of length, reverse, swap, noise exactly once"),
        (lambda: AugmentConfig(order=["length", "reverse", "swap", "nose"]), "augment.order"),
        (lambda: LengthConfig(p=1.5), r"augment.length.p = 1.5\): must be at least 0 and at most 1"),
        (lambda: NoiseConfig(strength=-0.1), "augment.noise.strength = -0.1"),
        (lambda: SwapConfig(strength=float("nan")), "augment.swap.strength = nan"),
        (lambda: SwapConfig(window=0), "augment.swap.window = 0.*at least 1"),
        (lambda: ReverseConfig(unit="letters"), "augment.reverse.unit = letters.*sentences, words, tokens"),
        (lambda: NoiseConfig(unit="words"), "augment.noise.unit = words.*characters, tokens"),
        (lambda: NoiseConfig(labels="none"), "augment.noise.labels = none.*clean, noisy"),
    ],
)
def test_a_wrong_setting_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_active_is_what_may_change_a_document() -> None:
    assert not AugmentConfig().active
    for name in OPERATIONS:
        assert config(**{name: {"p": 0.1}}).active
        assert not config(**{name: {"p": 0.1, "strength": 0.0}}).active


@pytest.mark.parametrize("file", CONFS, ids=lambda file: file.stem)
def test_a_config_file_turns_on_what_it_is_called(file: Path) -> None:
    lines = file.read_text(encoding="utf-8")
    read = config(**(yaml.safe_load(lines) or {}))
    on = [name for name in OPERATIONS if getattr(read, name).active]
    assert on == {"all": list(OPERATIONS), "none": []}.get(file.stem, [file.stem])
    assert lines.startswith("# ")


def test_there_is_a_config_file_for_each_operation() -> None:
    assert {file.stem for file in CONFS} == {*OPERATIONS, "all", "none"}
