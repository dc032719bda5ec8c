"""From prompts to text: stop strings, whole characters, ends, seeds, and the library's generate."""

import json
import subprocess
import sys
from itertools import permutations

import pytest
import torch

import gpt2_lightning
from gpt2_lightning.data.tokens import ByteTokenizer, Tokenizer, load_tokenizer
from gpt2_lightning.decoder import Decoder
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.generation.packed import pack
from gpt2_lightning.generation.text import Continuation, Reply, continue_texts
from gpt2_lightning.settings.generate import GenerateConfig
from gpt2_lightning.settings.sampler import SamplerConfig
from tests.generation.decoders import recomputed, small

BYTES = ByteTokenizer()
GREEDY = SamplerConfig(k=1)
PROMPTS = ["To be", "", "Zoë 🙂", "a prompt that is longer than the context", "To be"]


def writer(seed: int = 0, **options: object) -> Decoder:
    """A decoder of bytes that ends a text now and then."""
    return small(seed, vocab_size=257, block_size=16, **options)


def write(decoder: Decoder, prompts: list[str], sampler: SamplerConfig = GREEDY, **options: object) -> list[list[Continuation]]:
    return list(continue_texts(decoder, BYTES, prompts, GenerateConfig(**options), sampler))


def fed(tokenizer: Tokenizer, tokens: list[int], stop: list[str], ended: str = "length") -> tuple[Continuation, list[str]]:
    """What becomes of those tokens, and the pieces shown on the way."""
    pieces: list[str] = []
    reply = Reply(tokenizer, stop, pieces.append)
    any(reply.feed(token) for token in tokens)
    return reply.finish(ended), pieces


STOPS = [
    ("one STOP two", ["STOP"], "one "),
    ("one STO two", ["STOP"], "one STO two"),
    ("one STO", ["STOP"], "one STO"),  # a part of it at the end
    ("SSTSTOSTOP!", ["STOP"], "SSTSTO"),
    ("aabaabaaab", ["aaab"], "aabaab"),
    ("x\n\ny", ["\n\n"], "x"),
    ("x. y", ["zz", ". "], "x"),
    ("abcde", ["cd", "bcx", "d"], "ab"),
    ("abcde", ["de", "bc"], "a"),
    ("abcdef", ["d", "cd"], "ab"),
    ("naïve 🙂 end", ["🙂"], "naïve "),
    ("STOP", ["STOP"], ""),
    ("abc", [], "abc"),
    ("aaa", ["a"], ""),
]


@pytest.mark.parametrize("tokenizer", ["bytes", "gpt2"])
@pytest.mark.parametrize(("text", "stop", "left"), STOPS, ids=[text for text, _, _ in STOPS])
def test_a_text_ends_before_the_first_stop_string_of_which_nothing_is_shown(
    tokenizer: str, text: str, stop: list[str], left: str
) -> None:
    words = load_tokenizer(tokenizer)
    tokens = words.encode(text).tolist()
    found, pieces = fed(words, tokens, stop)
    assert found.text == left == "".join(pieces)
    assert found.ended == ("length" if left == text else "stop")
    assert all(pieces)
    assert found.tokens == tokens[: len(found.tokens)]
    assert (len(found.tokens) == len(tokens)) or found.ended == "stop"


def test_a_stop_string_may_lie_across_or_within_tokens() -> None:
    words = load_tokenizer("gpt2")
    text = "The end of the story.\n\nAnother one"
    tokens = words.encode(text).tolist()
    for stop in ("d of th", "tory.\n\nAn", "\n\n", "nother", "h"):
        found, pieces = fed(words, tokens, [stop])
        assert found.text == text[: text.index(stop)] == "".join(pieces)
        assert stop in words.decode(found.tokens)
        assert stop not in words.decode(found.tokens[:-1])


def test_what_cannot_be_part_of_a_stop_string_is_shown_at_once() -> None:
    pieces: list[str] = []
    reply = Reply(BYTES, ["STOP", "Sx"], pieces.append)
    shown = []
    for token in b"aSTo SS":
        reply.feed(token)
        shown.append("".join(pieces))
    assert shown == ["a", "a", "a", "aSTo", "aSTo ", "aSTo ", "aSTo S"]


@pytest.mark.parametrize("tokenizer", ["bytes", "gpt2"])
def test_only_whole_characters_are_shown(tokenizer: str) -> None:
    words = load_tokenizer(tokenizer)
    text = "é 漢字 🙂👩‍👩‍👧 ﷽ ok"
    tokens = words.encode(text).tolist()
    found, pieces = fed(words, tokens, [])
    assert found.text == text == "".join(pieces)
    assert len(pieces) < len(tokens)
    part = next(tokens[:n] for n in range(len(tokens)) if words.decode(tokens[:n]).endswith("\ufffd"))
    cut, pieces = fed(words, part, [])
    assert cut.text == words.decode(part) == "".join(pieces)
    broken, pieces = fed(ByteTokenizer(), [*b"\xf0\x9f", *b"a", 0xFF, 0xC3], [])
    assert broken.text == "\ufffda\ufffd\ufffd" == "".join(pieces) == BYTES.decode(broken.tokens)


def test_end_of_text_ends_and_is_no_text() -> None:
    found, pieces = fed(BYTES, [*b"ab", 0xC3, 256, *b"c"], ["b\ufffdc"])
    assert (found.text, found.ended, found.tokens) == ("ab\ufffd", "end_of_text", [*b"ab", 0xC3, 256])
    assert "".join(pieces) == found.text


@pytest.mark.parametrize("seed", range(3))
def test_a_watched_text_is_the_text(seed: int) -> None:
    decoder, sampler = pack(writer(seed)), SamplerConfig(k=None, temperature=0.7)
    ((plain,),) = write(decoder, ["To be"], sampler, seed=seed, max_new_tokens=40)
    stop = plain.text[5:7]
    ((whole,),) = write(decoder, ["To be"], sampler, seed=seed, max_new_tokens=40, stop=[stop, "never"])
    pieces: list[str] = []
    config = GenerateConfig(seed=seed, max_new_tokens=40, stop=[stop, "never"])
    ((watched,),) = continue_texts(decoder, BYTES, ["To be"], config, sampler, pieces.append)
    assert watched == whole
    assert (watched.text, watched.ended) == (plain.text[: plain.text.index(stop)], "stop")
    assert "".join(pieces) == watched.text
    list(continue_texts(decoder, BYTES, ["a", "b", "c"], GenerateConfig(batch_size=2, max_new_tokens=2), GREEDY, pieces.append))
    assert "".join(pieces) == watched.text  # several are not watched


def ending() -> tuple[Decoder, str]:
    """A decoder and a prompt that it ends before 60 tokens."""
    for seed in range(20):
        decoder = writer(seed)
        for prompt in ("a", "b", "To be", "Q"):
            if 256 in recomputed(decoder, list(prompt.encode()), 59)[0][1:]:
                return decoder, prompt
    raise AssertionError


def test_texts_end_by_end_of_text_length_context_or_stop() -> None:
    decoder, prompt = ending()
    expected = recomputed(decoder, list(prompt.encode()), 60, end=256)[0]
    ((found,),) = write(decoder, [prompt], max_new_tokens=60)
    assert (found.ended, found.tokens, found.text) == ("end_of_text", expected, BYTES.decode(expected))
    ((found,),) = write(decoder, [prompt], max_new_tokens=len(expected) - 1)
    assert (found.ended, found.tokens) == ("length", expected[:-1])
    ((found,),) = write(decoder, [prompt], max_new_tokens=0)
    assert (found.ended, found.tokens, found.text) == ("length", [], "")


@pytest.mark.parametrize("sampler", [GREEDY, SamplerConfig(beams=2)], ids=["greedy", "beams"])
def test_where_the_context_stops_a_text_it_holds_block_size_tokens(sampler: SamplerConfig) -> None:
    decoder = writer()
    with torch.no_grad():
        decoder.wte.weight[256] = 0
        decoder.ln_f.bias += 3 * decoder.wte.weight[:256].mean(0)  # no text ends by itself
    prompts = ["x" * n for n in (1, 9, 15, 16)]
    found = [one for (one,) in write(decoder, prompts, sampler, context="stop", max_new_tokens=50)]
    assert [len(p) + len(one.tokens) for p, one in zip(prompts, found, strict=True)] == [16] * 4
    assert {one.ended for one in found} == {"context"}
    ((short,),) = write(decoder, ["x" * 9], sampler, context="stop", max_new_tokens=6)
    assert (short.ended, len(short.tokens)) == ("length", 6)
    ((slid,),) = write(decoder, ["x" * 40], sampler, max_new_tokens=30)
    assert (slid.ended, len(slid.tokens)) == ("length", 30)
    with pytest.raises(
        ConfigError, match=r"context = stop\): a prompt of 17 tokens is longer than the context, 16. Set context=slide"
    ):
        write(decoder, ["x", "x" * 17], sampler, context="stop")


def test_an_empty_prompt_begins_with_end_of_text() -> None:
    decoder = writer()
    ((found,),) = write(decoder, [""], max_new_tokens=20)
    assert found.tokens == recomputed(decoder, [256], 20, end=256)[0]


@pytest.mark.parametrize("numbers", ["float32", "int8"])
@pytest.mark.parametrize("sampler", [SamplerConfig(), SamplerConfig(k=None, p=0.9, temperature=1.2)], ids=["k", "p"])
def test_a_text_depends_on_its_seed_and_prompt_alone(sampler: SamplerConfig, numbers: str) -> None:
    decoder = pack(writer(document_mask=True), numbers)

    def texts(prompts: list[str], **options: object) -> list[str]:
        return [one.text for (one,) in write(decoder, prompts, sampler, max_new_tokens=20, slide_by=3, **options)]

    first = texts(PROMPTS, seed=1)
    assert first == texts(PROMPTS, seed=1, batch_size=1) == texts(PROMPTS, seed=1, batch_size=3)
    assert len(set(first)) == 5  # equal prompts too
    for places in list(permutations(range(5)))[7::40]:
        found = dict.fromkeys(PROMPTS)
        for place, text in zip(places, texts([PROMPTS[i] for i in places], seed=1), strict=True):
            found[PROMPTS[place]] = {*(found[PROMPTS[place]] or ()), text}
        assert found == {p: {t for q, t in zip(PROMPTS, first, strict=True) if q == p} for p in PROMPTS}
    assert texts(["To be"], seed=1) == first[:1]
    assert not {*texts(PROMPTS, seed=2)} & {*first}


@pytest.mark.parametrize("slide_by", [1, 9])
def test_a_full_context_drops_as_many_tokens_as_asked(slide_by: int) -> None:
    decoder = writer()
    ((one,),) = write(decoder, ["To be"], max_new_tokens=40, slide_by=slide_by)
    assert one.tokens == recomputed(decoder, list(b"To be"), 40, slide_by, end=256)[0]


def test_n_texts_of_a_prompt_differ_and_stay_in_order() -> None:
    decoder, sampler = pack(writer()), SamplerConfig(k=None)
    groups = write(decoder, ["a", "b"], sampler, n=5, batch_size=3, max_new_tokens=12)
    assert [[one.prompt for one in group] for group in groups] == [["a"] * 5, ["b"] * 5]
    assert len({one.text for group in groups for one in group}) == 10
    assert groups == write(decoder, ["a", "b"], sampler, n=5, batch_size=8, max_new_tokens=12)
    assert write(decoder, ["b"], sampler, n=2, max_new_tokens=12) == [groups[1][:2]]


def test_beams_come_best_first_with_their_scores_and_are_cut_at_stop_strings() -> None:
    decoder, sampler = pack(writer()), SamplerConfig(beams=3)
    groups = write(decoder, ["a", "To be or"], sampler, n=3, max_new_tokens=8)
    alone = write(decoder, ["a", "To be or"], sampler, n=3, max_new_tokens=8, batch_size=1)
    for group, same in zip(groups, alone, strict=True):
        assert [one.tokens for one in group] == [one.tokens for one in same]
        scores = [one.score for one in group]
        assert len(group) == 3
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(one.tokens) for one in group}) == 3
    stop = BYTES.decode(groups[0][0].tokens)[1]
    cut = write(decoder, ["a"], sampler, n=1, max_new_tokens=8, stop=[stop])[0][0]
    assert (cut.ended, cut.text) == ("stop", groups[0][0].text[: groups[0][0].text.index(stop)])
    assert cut.score == pytest.approx(groups[0][0].score)
    assert write(decoder, ["a"], sampler, max_new_tokens=0)[0][0].tokens == []


@pytest.mark.parametrize(
    ("options", "sampler", "message"),
    [
        ({"slide_by": 17}, {}, r"slide_by = 17\): must be at most the context, 16"),
        ({"n": 4}, {"beams": 3}, r"n = 4\): must be at most sampler.beams = 3"),
        ({}, {"k": 258}, r"sampler.k = 258\): must be at most the vocabulary, 257"),
        ({"stop": ["x", ""]}, {}, "stop = .*must be a list of strings that are not empty"),
        ({"context": "wrap"}, {}, "must be one of slide, stop"),
        ({"numbers": "fp8"}, {}, "must be one of float32, bfloat16, int8"),
        ({"n": 0}, {}, "must be at least 1"),
        ({"batch_size": 0}, {}, "must be at least 1"),
        ({"max_new_tokens": -1}, {}, "must be at least 0"),
        ({}, {"length_penalty": 1e4}, "must be at least -10 and at most 10"),
        ({}, {"beams": 2, "p": 0.9}, "has no effect in beam search"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(options: dict, sampler: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):  # without asking for the first text
        continue_texts(writer(), BYTES, ["a"], GenerateConfig(**options), SamplerConfig(**sampler))


def test_generate_takes_strings_and_gives_prompt_and_continuation() -> None:
    decoder = writer()
    text = gpt2_lightning.generate(decoder, "To be", sampler=GREEDY, max_new_tokens=12)
    expected = recomputed(decoder, [*b"To be"], 12, end=256)[0]
    assert text == "To be" + BYTES.decode(expected)
    several = gpt2_lightning.generate(decoder, ["To be", "a"], max_new_tokens=5, n=2, seed=3)
    assert [one[0] for one in several] == ["T", "T", "a", "a"]
    assert several == gpt2_lightning.generate(decoder, ["To be", "a"], max_new_tokens=5, n=2, seed=3)
    assert gpt2_lightning.generate(decoder, "To be", max_new_tokens=5, n=2, seed=3) == several[:2]
    assert gpt2_lightning.generate(decoder, ["To be"], max_new_tokens=0) == ["To be"]
    assert gpt2_lightning.generate(decoder, []) == []


def test_generate_takes_tokens_and_fills_up_with_end_of_text() -> None:
    decoder, prompt = ending()
    prompts = torch.tensor([[*prompt.encode()], [*("z" * len(prompt)).encode()]], dtype=torch.int32)
    found = gpt2_lightning.generate(decoder, prompts, sampler=GREEDY, max_new_tokens=60)
    rows = [row.tolist() + recomputed(decoder, row.tolist(), 60, end=256)[0] for row in prompts]
    longest = max(map(len, rows))
    assert len(rows[0]) < prompts.shape[1] + 60
    assert found.tolist() == [row + [256] * (longest - len(row)) for row in rows]
    assert found.dtype == torch.int32
    several = gpt2_lightning.generate(decoder, prompts, n=3, max_new_tokens=4, numbers="bfloat16")
    assert several.shape[0] == 6
    assert torch.equal(several[:, : prompts.shape[1]], prompts.repeat_interleave(3, 0))
    beams = gpt2_lightning.generate(decoder, prompts, n=2, sampler=SamplerConfig(beams=2), max_new_tokens=4)
    assert beams.shape[0] == 4
    assert gpt2_lightning.generate(decoder, prompts[:0], max_new_tokens=4).shape[0] == 0
    assert torch.equal(gpt2_lightning.generate(decoder, prompts, max_new_tokens=0), prompts)


def test_generate_takes_tokens_of_any_vocabulary() -> None:
    decoder = small()
    found = gpt2_lightning.generate(decoder, torch.tensor([[1, 2, 3]]), sampler=GREEDY, max_new_tokens=30)
    assert found[0].tolist() == [1, 2, 3, *recomputed(decoder, [1, 2, 3], 30)[0]]
    with pytest.raises(ConfigError, match=r"must be 257 \(bytes\) or 50257 \(gpt2\).*Give the prompts as tokens|must be 50257"):
        gpt2_lightning.generate(decoder, "text")
    for wrong in (torch.tensor([[1, 29]]), torch.tensor([[-1, 2]]), torch.zeros(2, 0, dtype=torch.long)):
        with pytest.raises(ConfigError, match="must be tokens, at least one, of the vocabulary of 29"):
            gpt2_lightning.generate(decoder, wrong)
    with pytest.raises(ConfigError, match="is for prompts that are text"):
        gpt2_lightning.generate(decoder, torch.tensor([[1]]), stop=["x"])


def test_one_stop_string_is_not_taken_for_its_characters() -> None:
    config = GenerateConfig()
    config.stop = "END"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="stop = END.*must be a list of strings that are not empty"):
        config.check_rules()


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="max_length"):
        gpt2_lightning.generate(writer(), "a", max_length=5)


@pytest.mark.parametrize("sampler", [SamplerConfig(), SamplerConfig(beams=2)], ids=["drawn", "beams"])
def test_a_decoder_in_training_generates_as_in_evaluation_and_stays_in_training(sampler: SamplerConfig) -> None:
    decoder = writer(dropout=0.5)
    expected = gpt2_lightning.generate(decoder.eval(), "To be", sampler=sampler, max_new_tokens=20)
    assert gpt2_lightning.generate(decoder.train(), "To be", sampler=sampler, max_new_tokens=20) == expected
    assert all(module.training for module in decoder.modules())
    assert all(p.requires_grad for p in decoder.parameters())
    with torch.no_grad():
        state = torch.get_rng_state()
        gpt2_lightning.generate(decoder, "To be", max_new_tokens=3)
        assert torch.equal(torch.get_rng_state(), state)


def test_generate_can_be_imported_again_and_after_the_parts() -> None:
    code = """
from gpt2_lightning import generate as first
import gpt2_lightning.generation.text, gpt2_lightning.generation.command, gpt2_lightning.settings.generate
from gpt2_lightning import generate as second
import gpt2_lightning, json
assert first is second is gpt2_lightning.generate is gpt2_lightning.generation.text.generate
print(json.dumps([callable(getattr(gpt2_lightning, name)) for name in gpt2_lightning.__all__ if name[0] != "_"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True] * 5
