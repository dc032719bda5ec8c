"""The ``generate`` command: a run and prompts in, their continuations on the screen or in a file of JSON lines out.

One number: 1, the text that is shown while it is made; several are shown when they are done.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from gpt2_lightning.errors import CheckpointError, ConfigError, OutputError
from gpt2_lightning.generation.packed import pack
from gpt2_lightning.generation.text import Continuation, Watch, continue_texts, tokenizer_of
from gpt2_lightning.pretrained import Opened, open_decoder
from gpt2_lightning.settings.generate import GenerateConfig
from gpt2_lightning.settings.sampler import SamplerConfig

__all__ = ["Asked", "generate_command"]


@dataclass(kw_only=True, slots=True)
class Asked:
    """What a person typed: ``records`` are those of the prompts' file, ``preset`` the sampler's settings of a named option,
    ``changes`` single ones of them.
    """

    run: str
    prompt: str | None
    records: list[dict[str, Any]] | None
    out: str
    outputs: str
    preset: dict[str, Any] | None
    changes: dict[str, Any]


class Writer:
    """A decoder, packed, with its tokenizer and sampler, that continues prompts as asked."""

    def __init__(self, asked: Asked, config: GenerateConfig) -> None:
        opened = open_decoder(asked.run, Path(asked.outputs))
        decoder, base = opened.decoder, run_sampler(opened)
        self.sampler = SamplerConfig(**{**(base if asked.preset is None else asked.preset), **asked.changes})
        self.tokenizer = tokenizer_of(decoder)
        self.config, self.decoder = config, pack(decoder, config.numbers)
        for warning in self.sampler.warnings:
            print(f"warning: {warning}", file=sys.stderr)

    def write(self, prompts: list[str], watch: Watch | None = None) -> Iterator[list[Continuation]]:
        """The continuations of each prompt; raises ConfigError, before the first is made."""
        return continue_texts(self.decoder, self.tokenizer, prompts, self.config, self.sampler, watch)


def generate_command(asked: Asked, config: GenerateConfig) -> None:
    """Continue the prompt, the file of prompts, or what is typed at a terminal; raises PlatformError."""
    writer = Writer(asked, config)
    if asked.records is not None:
        write_records(writer, asked.records, asked)
    elif asked.prompt is None and sys.stdin.isatty() and sys.stdout.isatty():
        talk(writer)
    else:
        show(writer, asked.prompt or "")


def run_sampler(opened: Opened) -> dict[str, Any]:
    """The settings of a run's sampler, none where it is no run of ours; raises CheckpointError."""
    sampler = opened.config.get("sampler", {})
    try:
        SamplerConfig(**sampler)
    except (TypeError, ConfigError) as error:
        rule = f"has no sampler of ours: {error}"
        raise CheckpointError("checkpoint", key="file", value=str(opened.checkpoint), rule=rule) from error
    return sampler


def show(writer: Writer, prompt: str) -> None:
    """Print the prompt and its continuations: a single one as it comes, of several each under a line of its own."""
    alone = writer.config.n == 1 and writer.sampler.beams == 1
    groups = writer.write([prompt], watch=show_piece if alone else None)
    if alone:
        show_piece(prompt)
    (found,) = groups
    for i, one in enumerate(found):
        if len(found) > 1:
            score = "" if one.score is None else f", score {one.score:.4f}"
            print(f"--- {i + 1} of {len(found)}{score}")
        print("" if alone else prompt + one.text)


def show_piece(text: str) -> None:
    """Print a piece of text at once."""
    print(text, end="", flush=True)


def talk(writer: Writer) -> None:
    """Continue what is typed, line by line, until the input ends; each answer has the next seed. Raises ConfigError."""
    print("Type a beginning, and Enter; end with Ctrl-D.", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
            prompt.encode("utf-8")  # in some locales, what is none is let through
        except EOFError:
            print()
            return
        except UnicodeError as error:
            raise ConfigError("prompt", rule="is not valid UTF-8") from error
        show(writer, prompt)
        writer.config = replace(writer.config, seed=writer.config.seed + 1)


def write_records(writer: Writer, records: list[dict[str, Any]], asked: Asked) -> None:
    """One JSON object a continuation, as they are made: what the prompt's line held, and what became of it."""
    how = {"run": asked.run, "seed": writer.config.seed, "sampler": asdict(writer.sampler)}
    groups = writer.write([record["prompt"] for record in records])
    with opened(asked.out) as file:
        for record, group in zip(records, groups, strict=True):
            for i, one in enumerate(group):
                found = {"text": one.text, "ended": one.ended, "new_tokens": len(one.tokens), "sample": i}
                score = {} if one.score is None else {"score": one.score}
                file.write(json.dumps({**record, **found, **score, **how}, ensure_ascii=False) + "\n")
                file.flush()


@contextmanager
def opened(out: str) -> Iterator[TextIO]:
    """The file to write, or the standard output; raises OutputError."""
    if not out:
        yield sys.stdout
        return
    try:
        with open(out, "w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise OutputError("output", key="out", value=out, rule=f"cannot be written: {error.strerror}") from error
