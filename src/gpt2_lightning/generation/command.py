"""The ``generate`` command: a run and prompts in, their continuations on the screen or in a file of JSON lines out.

One number: 1, the text that is shown while it is made; several are shown when they are done.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpt2_lightning.data.record import question_tokens
from gpt2_lightning.errors import CheckpointError, ConfigError, OutputError
from gpt2_lightning.generation.packed import pack
from gpt2_lightning.generation.text import Continuation, Watch, continue_starts, continue_texts, tokenizer_of
from gpt2_lightning.pretrained import Opened, open_decoder
from gpt2_lightning.settings.generate import GenerateConfig
from gpt2_lightning.settings.sampler import SamplerConfig
from gpt2_lightning.settings.task import TaskConfig
from gpt2_lightning.tasks.dialogue import Dialogue, Turn
from gpt2_lightning.tasks.task import question

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
    chat: str = "auto"
    accelerator: str = "auto"


class Writer:
    """A decoder, packed, with its tokenizer and sampler, that continues prompts as asked."""

    def __init__(self, asked: Asked, config: GenerateConfig) -> None:
        opened = open_decoder(asked.run, Path(asked.outputs), asked.accelerator)
        decoder = opened.decoder
        base, self.task = run_settings(opened)
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
    elif asked.chat == "true" or (asked.chat == "auto" and writer.task.name == "dialogue"):
        chat(writer, asked.prompt)
    elif asked.prompt is None and sys.stdin.isatty() and sys.stdout.isatty():
        talk(writer)
    else:
        show(writer, asked.prompt or "")


def run_settings(opened: Opened) -> tuple[dict[str, Any], TaskConfig]:
    """The settings of a run's sampler, none where it is no run of ours, and its task; raises CheckpointError."""
    sampler, task = opened.config.get("sampler", {}), opened.config.get("task", {})
    for name, settings, found in (("sampler", SamplerConfig, sampler), ("task", TaskConfig, task)):
        try:
            settings(**found)
        except (TypeError, ConfigError) as error:
            rule = f"has no {name} of ours: {error}"
            raise CheckpointError("checkpoint", key="file", value=str(opened.checkpoint), rule=rule) from error
    return sampler, TaskConfig(**task)


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
    for prompt in typed_lines("> "):
        show(writer, prompt)
        writer.config = replace(writer.config, seed=writer.config.seed + 1)
    print()


def chat(writer: Writer, said: str | None) -> None:
    """Reply to what is said, line by line until the input ends, or to one prompt, in view of the turns before.

    The person is the first of ``task.speakers``, the decoder the second; each reply has the next seed.
    """
    task = Dialogue(replace(writer.task, name="dialogue", file=None))
    you, me = (task.config.speakers or ["A", "B"])[:2]
    turns: list[Turn] = []
    for line in [said] if said is not None else filter(str.strip, typed_lines(f"{you}: ")):
        turns.append((you, " ".join(line.split())))
        room = max(1, writer.decoder.config.block_size - writer.config.max_new_tokens)
        start = question_tokens(question(task.prompt(turns, me)), writer.tokenizer, room, "start")
        asked = replace(writer.config, stop=[*writer.config.stop, "\n"], n=1)
        ((found,),) = continue_starts(writer.decoder, writer.tokenizer, [start], asked, writer.sampler)
        turns.append((me, found.text.strip()))
        print(f"{me}: {found.text.strip()}", flush=True)
        writer.config = replace(writer.config, seed=writer.config.seed + 1)


def typed_lines(shown: str) -> Iterator[str]:
    """What is typed or piped, line by line; raises ConfigError for what is not UTF-8."""
    at_terminal = sys.stdin.isatty()
    while True:
        try:
            line = input(shown if at_terminal else "")
            line.encode("utf-8")  # in some locales, what is none is let through
        except EOFError:
            return
        except UnicodeError as error:
            raise ConfigError("prompt", rule="is not valid UTF-8") from error
        yield line


def write_records(writer: Writer, records: list[dict[str, Any]], asked: Asked) -> None:
    """One JSON object a continuation, as they are made: what its prompt's line held, and what became of it.

    Raises OutputError.
    """
    how = {"run": asked.run, "seed": writer.config.seed, "sampler": asdict(writer.sampler)}
    groups = writer.write([record["prompt"] for record in records])
    try:
        with Path(asked.out).open("w", encoding="utf-8") if asked.out else nullcontext(sys.stdout) as file:
            for record, group in zip(records, groups, strict=True):
                for i, one in enumerate(group):
                    found = {"text": one.text, "ended": one.ended, "new_tokens": len(one.tokens), "sample": i}
                    score = {} if one.score is None else {"score": one.score}
                    file.write(json.dumps({**record, **found, **score, **how}, ensure_ascii=False) + "\n")
                    file.flush()
    except OSError as error:
        if not asked.out:
            raise
        raise OutputError("output", key="out", value=asked.out, rule=f"cannot be written: {error.strerror}") from error
