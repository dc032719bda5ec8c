"""Text from a decoder: prompts in, their continuations out, piece by piece where somebody watches.

In: strings (or tokens), a sampler, how far to go and where to stop. Out: Continuations, in the order of the prompts.
One number: 1 to 3, the tokens that a character outside ASCII may take in GPT-2's encoding: only whole ones are shown.
Choice not taken: a text begins with end-of-text only where the prompt is empty. The decoder was trained on rows that begin
anywhere, and so the tokens are those that other libraries continue.
"""

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from gpt2_lightning.data.tokens import Tokenizer, Words, load_tokenizer
from gpt2_lightning.decoder import Decoder
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.generation.beam import Beam, beam_search
from gpt2_lightning.generation.engine import PADDING, Observe, continue_tokens
from gpt2_lightning.generation.packed import PackedDecoder, pack
from gpt2_lightning.generation.sampler import prompt_keys
from gpt2_lightning.settings.data import TOKENIZERS
from gpt2_lightning.settings.generate import GenerateConfig
from gpt2_lightning.settings.sampler import SamplerConfig

__all__ = ["Continuation", "continue_texts", "generate", "tokenizer_of"]

Watch = Callable[[str], None]


@dataclass(kw_only=True, slots=True)
class Continuation:
    """One continuation of a prompt: ``ended`` by ``end_of_text``, a ``stop`` string, its ``length`` or the ``context``."""

    text: str
    tokens: list[int]
    ended: str
    score: float | None = None
    prompt: str = ""


class Reply:
    """The text of one row as its tokens come: whole characters, up to the first stop string."""

    def __init__(self, tokenizer: Words, stop: list[str], watch: Watch | None = None) -> None:
        self.tokenizer, self.stop, self.watch = tokenizer, stop, watch
        self.characters = codecs.getincrementaldecoder("utf-8")("replace")
        self.tokens: list[int] = []
        self.text, self.shown, self.ended = "", 0, ""

    def feed(self, token: int) -> bool:
        """Take one token; True when the text has ended."""
        self.tokens.append(token)
        if token == self.tokenizer.end_of_text:
            self.ended = "end_of_text"
            return True
        known = len(self.text)
        self.text += self.characters.decode(self.tokenizer.decode_bytes([token]))
        places = [self.text.find(stop, max(0, known - len(stop) + 1)) for stop in self.stop]
        if found := [place for place in places if place >= 0]:
            self.text, self.ended = self.text[: min(found)], "stop"
        self.show(len(self.text) - self.withheld())
        return bool(found)

    def withheld(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        lengths = [n for stop in self.stop for n in range(1, len(stop)) if self.text.endswith(stop[:n])]
        return max(lengths, default=0) if not self.ended else 0

    def show(self, end: int) -> None:
        """Hand on what has not been shown, up to ``end``."""
        if self.watch and end > self.shown:
            self.watch(self.text[self.shown : end])
            self.shown = end

    def finish(self, ended: str, score: float | None = None) -> Continuation:
        """The whole of it; ``ended`` is the reason where no other was met."""
        if self.ended != "stop":
            self.text += self.characters.decode(b"", final=True)
        self.show(len(self.text))
        return Continuation(text=self.text, tokens=self.tokens, ended=self.ended or ended, score=score)


def continue_texts(
    decoder: Decoder, tokenizer: Tokenizer, prompts: list[str], config: GenerateConfig, sampler: SamplerConfig,
    watch: Watch | None = None,
) -> Iterator[list[Continuation]]:  # fmt: skip
    """The ``config.n`` continuations of each prompt, in order; an empty prompt begins with end-of-text.

    ``watch`` gets the pieces of a single text as they come. Raises ConfigError for what the decoder cannot do, at once.
    """
    starts = [tokenizer.encode(prompt).tolist() or [tokenizer.end_of_text] for prompt in prompts]
    groups = continue_starts(decoder, tokenizer, starts, config, sampler, watch)
    return ([replace(one, prompt=prompt) for one in group] for prompt, group in zip(prompts, groups, strict=True))


def continue_starts(
    decoder: Decoder, tokenizer: Words, starts: list[list[int]], config: GenerateConfig, sampler: SamplerConfig,
    watch: Watch | None = None, observe: Observe | None = None,
) -> Iterator[list[Continuation]]:  # fmt: skip
    """The same for prompts as tokens, ``config.batch_size`` texts side by side; ``observe`` is that of the engine."""
    check(decoder, starts, config, sampler)
    packed = decoder if isinstance(decoder, PackedDecoder) else pack(decoder, config.numbers)
    if sampler.beams > 1:
        return search(packed, tokenizer, starts, config, sampler)
    rows = [start for start in starts for _ in range(config.n)]
    made = sample(packed, tokenizer, rows, config, sampler, watch if len(rows) == 1 else None, observe)
    return iter(lambda: list(islice(made, config.n)), [])


def check(decoder: Decoder, starts: list[list[int]], config: GenerateConfig, sampler: SamplerConfig) -> None:
    """Raise ConfigError for what does not go with this decoder, these prompts, or with each other."""
    block_size, longest = decoder.config.block_size, max(map(len, starts), default=0)
    if sampler.k and sampler.k > decoder.config.vocab_size:
        raise sampler.refuse("k", f"must be at most the vocabulary, {decoder.config.vocab_size}")
    if config.slide_by > block_size:
        raise config.refuse("slide_by", f"must be at most the context, {block_size}")
    if 1 < sampler.beams < config.n:
        raise config.refuse("n", f"must be at most sampler.beams = {sampler.beams} in beam search")
    if config.step == "fixed" and sampler.beams > 1:
        raise config.refuse("step", "is not for beam search, whose rows change places", "Set step=auto")
    if config.context == "stop" and longest > block_size:
        rule = f"a prompt of {longest} tokens is longer than the context, {block_size}"
        raise config.refuse("context", rule, "Set context=slide")


def sample(
    decoder: Decoder, tokenizer: Words, starts: list[list[int]], config: GenerateConfig, sampler: SamplerConfig,
    watch: Watch | None, observe: Observe | None,
) -> Iterator[Continuation]:  # fmt: skip
    """One continuation of each row, drawn."""
    keys = prompt_keys(config.seed, starts)
    for i in range(0, len(starts), config.batch_size):
        some = starts[i : i + config.batch_size]
        replies, limits = [Reply(tokenizer, config.stop, watch) for _ in some], limits_of(some, decoder, config)

        def ended(row: int, token: int, replies: list[Reply] = replies) -> bool:
            return replies[row].feed(token)

        now = keys[i : i + len(some)]
        continue_tokens(decoder, some, limits, sampler, now, ended, config.slide_by, observe, config.step)
        yield from (reply.finish(why(limit, config)) for reply, limit in zip(replies, limits, strict=True))


def search(
    decoder: Decoder, tokenizer: Words, starts: list[list[int]], config: GenerateConfig, sampler: SamplerConfig
) -> Iterator[list[Continuation]]:
    """The best continuations of each row by beam search; a stop string cuts what was found."""
    size = max(1, config.batch_size // sampler.beams)
    for i in range(0, len(starts), size):
        limits = limits_of(starts[i : i + size], decoder, config)
        beams = beam_search(decoder, starts[i : i + size], limits, sampler, tokenizer.end_of_text, config.n, config.slide_by)
        for best, limit in zip(beams, limits, strict=True):
            found = []
            for beam in best or [Beam([], 0.0)]:
                reply = Reply(tokenizer, config.stop)
                any(reply.feed(token) for token in beam.tokens)
                found.append(reply.finish(why(limit, config), beam.score))
            yield found


def limits_of(starts: list[list[int]], decoder: Decoder, config: GenerateConfig) -> list[int]:
    """How many tokens may follow each start."""
    if config.context == "slide":
        return [config.max_new_tokens] * len(starts)
    return [min(decoder.config.block_size - len(start), config.max_new_tokens) for start in starts]


def why(limit: int, config: GenerateConfig) -> str:
    """The reason why a row ended where neither end-of-text nor a stop string did."""
    return "length" if limit == config.max_new_tokens else "context"


def tokenizer_of(decoder: Decoder) -> Tokenizer:
    """The tokenizer whose vocabulary the decoder has; raises ConfigError where none has."""
    names = [name for name, words in TOKENIZERS.items() if words == decoder.config.vocab_size]
    if not names:
        known = " or ".join(f"{words} ({name})" for name, words in TOKENIZERS.items())
        raise decoder.config.refuse("vocab_size", f"must be {known} to read and write text", "Give the prompts as tokens")
    return load_tokenizer(names[0])


class NoText(Words):
    """What stands in for a tokenizer where tokens are asked for and given: they have no text, and may have an end."""

    def __init__(self, end_of_text: int = PADDING) -> None:
        self.end_of_text = end_of_text

    def decode_bytes(self, tokens: list[int]) -> bytes:
        """Nothing."""
        return b""


def generate(
    decoder: Decoder, prompts: str | list[str] | Int[Tensor, "B T"], *, sampler: SamplerConfig | None = None, **options: Any
) -> Any:
    """Each prompt and its continuation: text for a string, a list for a list, tokens ``[B * n, T_new]`` for tokens.

    ``options`` are the fields of GenerateConfig: max_new_tokens, n, seed, stop, context, slide_by, numbers, batch_size,
    step. With n above 1 the n texts of a prompt follow each other, in a list. Rows that end early are filled up with
    end-of-text. Raises ConfigError, and MachineError where the device cannot do what is asked.
    """
    config, sampler = GenerateConfig(**options), sampler or SamplerConfig()
    if isinstance(prompts, Tensor):
        return generate_tokens(decoder, prompts, config, sampler)
    texts = [prompts] if isinstance(prompts, str) else prompts
    made = continue_texts(decoder, tokenizer_of(decoder), texts, config, sampler)
    found = [one.prompt + one.text for group in made for one in group]
    return found[0] if isinstance(prompts, str) and config.n == 1 else found


def generate_tokens(
    decoder: Decoder, prompts: Int[Tensor, "B T"], config: GenerateConfig, sampler: SamplerConfig
) -> Int[Tensor, "B_n T_new"]:
    """The prompts' tokens and their continuations, on the prompts' device."""
    starts, words = prompts.tolist(), decoder.config.vocab_size
    if config.stop:
        raise config.refuse("stop", "is for prompts that are text")
    if not all(0 <= token < words for start in starts for token in start) or not prompts.shape[1]:
        rule = f"must be tokens, at least one, of the vocabulary of {words}"
        raise ConfigError("prompts", key="prompts", value=list(prompts.shape), rule=rule)
    nothing = NoText(words - 1) if words in TOKENIZERS.values() else NoText()
    groups = continue_starts(decoder, nothing, starts, config, sampler)
    rows = [start + one.tokens for start, group in zip(starts, groups, strict=True) for one in group]
    longest = max(map(len, rows), default=prompts.shape[1])
    filled = [row + [nothing.end_of_text] * (longest - len(row)) for row in rows]
    return torch.tensor(filled, dtype=prompts.dtype, device=prompts.device).view(len(rows), longest)
