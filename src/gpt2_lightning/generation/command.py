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

from gpt2_lightning.checkpoint import find_run, load_decoder
from gpt2_lightning.data.tokens import load_tokenizer
from gpt2_lightning.decoder import Decoder
from gpt2_lightning.errors import DataError, OutputError
from gpt2_lightning.generation.packed import pack
from gpt2_lightning.generation.text import Continuation, Watch, continue_texts, tokenizer_of
from gpt2_lightning.settings.generate import GenerateConfig
from gpt2_lightning.settings.sampler import SamplerConfig

__all__ = ["Asked", "generate_command"]


@dataclass(kw_only=True, slots=True)
class Asked:
    """What a person typed: ``preset`` are the sampler's settings of a named option, ``changes`` single ones of them."""

    run: str
    prompt: str | None
    prompts: str
    out: str
    outputs: str
    preset: dict[str, Any] | None
    changes: dict[str, Any]


class Writer:
    """A decoder, packed, with its tokenizer and sampler, that continues prompts as asked."""

    def __init__(self, asked: Asked, config: GenerateConfig) -> None:
        decoder, trained = open_decoder(asked.run, Path(asked.outputs))
        self.tokenizer = load_tokenizer(trained["data"]["tokenizer"]) if trained else tokenizer_of(decoder)
        base = trained.get("sampler", {}) if asked.preset is None else asked.preset
        self.sampler = SamplerConfig(**{**base, **asked.changes})
        self.config, self.decoder = config, pack(decoder, config.numbers)
        for warning in self.sampler.warnings:
            print(f"warning: {warning}", file=sys.stderr)

    def write(self, prompts: list[str], watch: Watch | None = None) -> Iterator[list[Continuation]]:
        """The continuations of each prompt."""
        return continue_texts(self.decoder, self.tokenizer, prompts, self.config, self.sampler, watch)


def generate_command(asked: Asked, config: GenerateConfig) -> None:
    """Continue the prompt, the file of prompts, or what is typed at a terminal; raises PlatformError."""
    records = read_prompts(Path(asked.prompts)) if asked.prompts else []
    writer = Writer(asked, config)
    if asked.prompts:
        write_records(writer, records, asked)
    elif asked.prompt is None and sys.stdin.isatty() and sys.stdout.isatty():
        talk(writer)
    else:
        show(writer, asked.prompt or "")


def open_decoder(run: str, outputs: Path) -> tuple[Decoder, dict[str, Any]]:
    """The decoder of a run, of a checkpoint, or of a folder in transformers' format; and the run's settings, if it is one."""
    if (Path(run) / "config.json").is_file():
        return Decoder.from_pretrained(run), {}
    return load_decoder(find_run(run, outputs))


def show(writer: Writer, prompt: str) -> None:
    """Print the prompt and its continuations: a single one as it comes, of several each under a line of its own."""
    alone = writer.config.n == 1 and writer.sampler.beams == 1
    if alone:
        print(prompt, end="", flush=True)
    (found,) = writer.write([prompt], watch=show_piece if alone else None)
    for i, one in enumerate(found):
        if len(found) > 1:
            score = "" if one.score is None else f", {one.score:.4f} nats a token"
            print(f"--- {i + 1} of {len(found)}{score}")
        print("" if alone else prompt + one.text)


def show_piece(text: str) -> None:
    """Print a piece of text at once."""
    print(text, end="", flush=True)


def talk(writer: Writer) -> None:
    """Continue what is typed, line by line, until the input ends; each answer has the next seed."""
    print("Type a beginning, and Enter; end with Ctrl-D.", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        show(writer, prompt)
        writer.config = replace(writer.config, seed=writer.config.seed + 1)


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, each with a ``prompt``; raises DataError with the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        rule = "is not valid UTF-8" if isinstance(error, UnicodeDecodeError) else f"cannot be read: {error.strerror}"
        raise DataError("prompts", key="prompts", value=str(path), rule=rule) from error
    return [read_record(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def read_record(line: str, place: str) -> dict[str, Any]:
    """One line's object; raises DataError."""
    remedy = 'Write each line as {"prompt": "..."}'
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError("prompts", key="line", value=place, rule=f"is not JSON: {error}", remedy=remedy) from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise DataError("prompts", key="line", value=place, rule="has no prompt that is text", remedy=remedy)
    return record


def write_records(writer: Writer, records: list[dict[str, Any]], asked: Asked) -> None:
    """One JSON object a continuation, as they are made: what the prompt's line held, and what became of it."""
    how = {"run": asked.run, "seed": writer.config.seed, "sampler": asdict(writer.sampler)}
    with opened(asked.out) as file:
        groups = writer.write([record["prompt"] for record in records])
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
