"""The ``export`` command: a run in, a folder that transformers loads out: settings, safetensors, and GPT-2's tokenizer.

The folder is written under a hidden name beside its place and then renamed: it is whole or not there.
One number: 50,000 merges, which the vocabulary that ships does not list, but which it determines.
Choice not taken: transformers itself, which would be needed to write what is three JSON files and a list of pairs.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from gpt2_lightning.checkpoint import read_manifest
from gpt2_lightning.data.tokens import END_OF_TEXT, gpt2_ranks
from gpt2_lightning.decoder import DecoderConfig
from gpt2_lightning.errors import OutputError
from gpt2_lightning.folder import sync_folder
from gpt2_lightning.pretrained import Opened, open_decoder
from gpt2_lightning.settings.data import TOKENIZERS
from gpt2_lightning.settings.export import ExportConfig

__all__ = ["export"]

MARK = "gpt2_lightning.json"  # by which an export is known
BYTES = "This one's are the bytes of UTF-8, and end-of-text last"
NAMES = {
    MARK, "config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json", "vocab.json", "merges.txt",
}  # fmt: skip


def export(config: ExportConfig) -> None:
    """Write the folder, and say what is in it; raises PlatformError."""
    to = Path(config.to).absolute()
    require_free(to, config)
    opened = open_decoder(config.run, Path(config.outputs))
    partial = to.parent / f".{to.name}.{os.getpid()}"
    made = [folder for folder in to.parents if not folder.exists()]
    try:
        partial.mkdir(parents=True)
        write_export(partial, opened, config.run)
        require_free(to, config)
        kept = put(partial, to)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError("export", key="to", value=config.to, rule=f"cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            for folder in made:  # those that were made for nothing, innermost first
                folder.rmdir()
    print(f"{config.to}: {', '.join(sorted(path.name for path in to.iterdir()))}")
    if kept is not None:
        print(f"what was there is now in '{os.path.relpath(kept)}'")
    if not (to / "vocab.json").exists():
        words = opened.decoder.config.vocab_size
        print(f"no tokenizer: transformers knows none of {words} words. {BYTES if words == TOKENIZERS['bytes'] else ''}")


def require_free(to: Path, config: ExportConfig) -> None:
    """Raise OutputError where the place holds what an export may not replace."""
    rule, remedy = "", "Give another folder"
    if to.exists() and not to.is_dir():
        rule = "is a file"
    elif Path.cwd().is_relative_to(to) or Path.home().is_relative_to(to):
        rule = "is the folder you are in, your own, or above it"
    elif to.is_dir() and any(to.iterdir()) and not is_export(to) and config.overwrite != "true":
        rule, remedy = "is not empty, and no export", "Give another folder, or set overwrite=true to set this one aside"
    if rule:
        raise OutputError("export", key="to", value=config.to, rule=rule, remedy=remedy)


def is_export(folder: Path) -> bool:
    """Whether the folder is an export and nothing else has been put into it."""
    names = {path.name for path in folder.iterdir()}
    return MARK in names and names <= NAMES


def put(partial: Path, to: Path) -> Path | None:
    """Give the finished folder its name. What was there goes if it was an export, else its new name is returned."""
    sync_folder(partial)
    kept = None
    if to.is_dir() and any(to.iterdir()):
        kept = to.with_name(f"{to.name}.{time.strftime('%Y%m%d-%H%M%S')}.{os.getpid()}")
        to.rename(kept)
    try:
        partial.rename(to)
    except OSError:
        if kept is not None:
            kept.rename(to)
        raise
    with suppress(OSError):
        sync_folder(to.parent)
    if kept is not None and is_export(kept):
        shutil.rmtree(kept)
        kept = None
    return kept


def write_export(folder: Path, opened: Opened, run: str) -> None:
    """All files of an export; raises ConfigError where GPT-2 lacks a setting, OutputError."""
    decoder = opened.decoder
    decoder.save_pretrained(folder)
    last = decoder.config.vocab_size - 1  # end-of-text
    write_json(folder / "generation_config.json", {"bos_token_id": last, "eos_token_id": last, "pad_token_id": last})
    if decoder.config.vocab_size == TOKENIZERS["gpt2"]:
        write_tokenizer(folder, decoder.config)
    origin = {"run": run} | ({"step": read_manifest(opened.checkpoint)["step"]} if opened.checkpoint else {})
    write_json(folder / MARK, origin)


def write_tokenizer(folder: Path, config: DecoderConfig) -> None:
    """GPT-2's byte-pair encoding as transformers keeps it."""
    ranks, letter = gpt2_ranks(), letters()
    spelled = {word: "".join(letter[byte] for byte in word) for word in ranks}
    vocabulary = {spelled[word]: rank for word, rank in sorted(ranks.items(), key=lambda pair: pair[1])}
    write_json(folder / "vocab.json", vocabulary | {END_OF_TEXT: len(ranks)}, indent=None)
    pairs = [merged_from(word, ranks) for word in sorted(ranks, key=ranks.__getitem__) if len(word) > 1]
    lines = ["#version: 0.2", *(f"{spelled[a]} {spelled[b]}" for a, b in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": config.block_size, "add_prefix_space": False}
    settings |= {f"{kind}_token": END_OF_TEXT for kind in ("bos", "eos", "unk")}
    write_json(folder / "tokenizer_config.json", settings | {"clean_up_tokenization_spaces": False})


def letters() -> dict[int, str]:
    """The letter that GPT-2's files have for each byte: itself where it can be printed, else one from U+0100 on."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def merged_from(word: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two words that a word was merged from: what the merges before its own leave of it."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 2:
        first = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts[0], parts[1]


def write_json(path: Path, content: Mapping[str, object], indent: int | None = 2) -> None:
    """A JSON file."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")
