"""A corpus: files or a hub data set in, documents out, in their stored order and in bounded memory.

In: a CorpusConfig. Out: pieces of text, ``(text, ends_document)``; a long document comes in several.
One number: a piece holds at most 65,536 characters, so one line of 40 MB costs no more memory than many short ones.
Choice not taken: reading local files through ``datasets``, which reads a 40 MB line whole, reports broken text without its
place, and is imported in a second; hub data sets and Parquet files do come through it, streamed.
"""

import bz2
import codecs
import glob
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from gpt2_lightning.errors import DataError, MachineError
from gpt2_lightning.settings.data import CorpusConfig

__all__ = ["CorpusConfig", "Piece", "corpus_files", "read_corpus"]

Piece = tuple[str, bool]
Part = str  # "train" or "validation"

PIECE_CHARACTERS = 65_536
READ_BYTES = 1 << 20
END_OF_TEXT = "<|endoftext|>"
SEPARATORS = {"line": "\n", "blank_line": "\n\n", "end_of_text": END_OF_TEXT}
COMPRESSED: dict[bytes, str] = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
BINARY = {
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file whose name does not end in .parquet",
    b"\x89PNG": "a PNG picture",
    b"%PDF": "a PDF document",
    b"\x7fELF": "a program",
    b"SQLite format 3": "an SQLite database",
    b"\x93NUMPY": "a NumPy array",
    b"\xff\xd8\xff": "a JPEG picture",
}


def read_corpus(config: CorpusConfig, part: Part, warn: Callable[[str], None] = lambda _: None) -> Iterator[Piece]:
    """The pieces of one part, ``train`` or ``validation``, in stored order; raises DataError where the text is broken.

    Without a validation file of its own, every ``holdout_every``-th document is validation, the rest train.
    """
    if config.validation is not None:
        yield from read_files(config, config.validation if part == "validation" else str(config.path), warn)
        return
    pieces = read_hub(config) if config.hub else read_files(config, str(config.path), warn)
    index = 0
    limit = config.holdout_limit * config.holdout_every if config.holdout_limit else None
    for text, ends in pieces:
        held_out = index % config.holdout_every == config.holdout_every - 1 and (limit is None or index < limit)
        if held_out == (part == "validation"):
            yield text, ends
        index += ends
        if part == "validation" and limit is not None and index >= limit:
            return


def corpus_files(pattern: str) -> list[Path]:
    """The files a path, a glob or ``bundled:NAME`` stands for, sorted; raises DataError naming the nearest existing path."""
    if pattern.startswith("bundled:"):
        return [Path(str(files("gpt2_lightning") / "assets" / pattern.removeprefix("bundled:")))]
    if any(mark in pattern for mark in "*?["):
        found = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
        if not found:
            raise missing(pattern, "matches no file")
        return found
    path = Path(pattern)
    if path.is_dir():
        raise DataError("corpus", key="data.path", value=pattern, rule="is a folder", remedy=f"Set data.path='{pattern}/*.txt'")
    if not path.is_file():
        raise missing(pattern, "does not exist")
    return [path]


def missing(pattern: str, rule: str) -> DataError:
    """The error for a path that is not there: where it was looked for, and what is near it."""
    parent = Path(pattern).parent
    while not parent.is_dir():
        parent = parent.parent
    names = [entry.name for entry in parent.iterdir()]
    near = get_close_matches(Path(pattern).name, names, n=1, cutoff=0.4)
    remedy = f"The nearest that exists is '{parent / near[0]}'" if near else f"The nearest folder that exists is '{parent}'"
    return DataError("corpus", key="data.path", value=pattern, rule=f"{rule}, looked for in '{Path.cwd()}'", remedy=remedy)


def read_files(config: CorpusConfig, pattern: str, warn: Callable[[str], None]) -> Iterator[Piece]:
    """The pieces of every file in turn: Parquet through ``datasets``, JSON lines, or plain text."""
    for path in corpus_files(pattern):
        name = path.name
        for ending in (".gz", ".bz2", ".xz", ".zst"):
            name = name.removesuffix(ending)
        if name.endswith(".parquet"):
            yield from read_dataset(config, "parquet", data_files=str(path))
        elif name.endswith((".jsonl", ".ndjson")):
            yield from read_json_lines(path, config)
        else:
            yield from split_text(read_text(path, config, warn), config.split)


def open_bytes(path: Path) -> io.BufferedIOBase:
    """The file's content, decompressed by what it is, not by what it is called; raises DataError for binary types."""
    try:
        file = path.open("rb")
        head = file.read(16)
        file.seek(0)
    except OSError as error:
        raise DataError("corpus", key="data.path", value=str(path), rule=f"cannot be read: {error.strerror}") from error
    for magic, kind in BINARY.items():
        if head.startswith(magic):
            raise DataError(
                "corpus", key="data.path", value=str(path), rule=f"is {kind}, not text", remedy="Extract its text first"
            )
    kind = next((kind for magic, kind in COMPRESSED.items() if head.startswith(magic)), "")
    openers: dict[str, Callable[[Any], Any]] = {
        "gzip": gzip.GzipFile,
        "bz2": bz2.BZ2File,
        "xz": lzma.LZMAFile,
    }
    if kind == "zstd":
        return open_zstd(file)
    if kind == "gzip":
        return gzip.GzipFile(fileobj=file)
    return openers[kind](file) if kind else file


def open_zstd(file: io.BufferedIOBase) -> io.BufferedIOBase:
    """Zstandard, which the standard library reads from Python 3.14 on."""
    try:
        import zstandard
    except ImportError as error:
        raise MachineError("zstd corpus", rule="needs the package zstandard", remedy="pip install zstandard") from error
    return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file))  # type: ignore[arg-type]


def read_bytes(path: Path) -> Iterator[bytes]:
    """The file's bytes, a megabyte at a time; raises DataError when it is cut short or damaged."""
    with open_bytes(path) as file:
        while True:
            try:
                chunk = file.read(READ_BYTES)
            except (OSError, EOFError, lzma.LZMAError) as error:
                raise DataError("corpus", key="data.path", value=str(path), rule=f"is cut short or damaged: {error}") from error
            if not chunk:
                return
            yield chunk


def read_text(path: Path, config: CorpusConfig, warn: Callable[[str], None]) -> Iterator[str]:
    """The file's text a megabyte at a time: byte-order mark stripped, line ends made ``\\n``, NULs counted and warned of."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace" if config.invalid == "replace" else "strict")
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    done = nuls = 0
    for chunk in read_bytes(path):
        nuls += chunk.count(0)
        yield newlines.decode(decode(decoder, chunk, done, path))
        done += len(chunk)
    yield newlines.decode(decode(decoder, b"", done, path, final=True), final=True)
    if nuls:
        warn(f"'{path}' holds {nuls} NUL bytes, kept as they are: is it text?")


def decode(decoder: codecs.IncrementalDecoder, chunk: bytes, done: int, path: Path, final: bool = False) -> str:
    """One chunk's text; raises DataError with the byte offset of what is not UTF-8."""
    try:
        return decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        offset = done + len(chunk) - len(error.object) + error.start
        remedy = "Convert it, or set invalid=replace for this corpus"
        raise DataError(
            "corpus", key="data.path", value=str(path), rule=f"is not UTF-8 at byte {offset}", remedy=remedy
        ) from error


def split_text(chunks: Iterator[str], split: str) -> Iterator[Piece]:
    """Cut the text of one file into pieces of its documents; documents of nothing but blanks are left out."""
    separator = SEPARATORS.get(split)
    buffer, begun = "", False
    for chunk in chunks:
        buffer += chunk
        *documents, buffer = buffer.split(separator) if separator else [buffer]
        for document in documents:
            yield from document_pieces(document, begun)
            begun = False
        pieces, buffer = cut_pieces(buffer)
        begun = begun or bool(pieces)
        yield from ((piece, False) for piece in pieces)
    yield from document_pieces(buffer, begun)


def document_pieces(text: str, begun: bool = False) -> Iterator[Piece]:
    """The pieces of a document's last stretch; ``begun`` when earlier pieces of it have been given."""
    pieces, rest = cut_pieces(text)
    yield from ((piece, False) for piece in pieces)
    if begun or pieces or rest.strip():
        yield rest, True


def cut_pieces(text: str) -> tuple[list[str], str]:
    """Full pieces and the rest, cut where a word begins after a single space, so that the tokens stay those of the whole."""
    pieces = []
    while len(text) > 2 * PIECE_CHARACTERS:  # so that no separator that has only half arrived is cut
        cut = word_start(text)
        pieces.append(text[:cut])
        text = text[cut:]
    return pieces, text


def word_start(text: str) -> int:
    """The last place within a piece where a space stands between two letters; the piece's end when there is none."""
    end = PIECE_CHARACTERS
    while (end := text.rfind(" ", 1, end)) > 0:
        if text[end - 1].isalnum() and text[end + 1].isalpha():
            return end
    return PIECE_CHARACTERS


def read_json_lines(path: Path, config: CorpusConfig) -> Iterator[Piece]:
    """One document a line, from the configured field; raises DataError with file and line."""
    for number, line in enumerate(json_lines(path), start=1):
        if line.strip():
            yield from document_pieces(json_text(line, config.field, f"{path}:{number}"))


def json_lines(path: Path) -> Iterator[bytes]:
    """The file's lines as bytes, without a byte-order mark."""
    buffer = bytearray()
    first = True
    for chunk in read_bytes(path):
        buffer += chunk.removeprefix(codecs.BOM_UTF8) if first else chunk
        first = False
        if b"\n" in chunk:
            *lines, rest = bytes(buffer).split(b"\n")
            yield from lines
            buffer = bytearray(rest)
    yield bytes(buffer)


def json_text(line: bytes, field: str, place: str) -> str:
    """The text of one JSON line."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError("corpus", key="data.path", value=place, rule=f"is not JSON: {error}") from error
    return row_text(row, field, place)


def row_text(row: Any, field: str, place: str) -> str:
    """A row's text field; raises DataError naming the fields there are."""
    text = row.get(field) if isinstance(row, dict) else None
    if isinstance(text, str):
        return text.replace("\r\n", "\n")
    has = f"has the fields {', '.join(map(str, row))}" if isinstance(row, dict) else "is no object"
    rule = f"holds no text in the field '{field}'; it {has}"
    raise DataError("corpus", key="data.path", value=place, rule=rule, remedy="Set field=NAME for this corpus")


def read_hub(config: CorpusConfig) -> Iterator[Piece]:
    """A hub data set's training split, streamed at its pinned revision."""
    return read_dataset(config, str(config.hub), config.hub_config, revision=config.revision)


def read_dataset(config: CorpusConfig, *source: str | None, **options: Any) -> Iterator[Piece]:
    """Rows of a ``datasets`` stream; raises DataError when the library cannot open it."""
    import datasets

    try:
        rows = datasets.load_dataset(*source, split="train", streaming=True, **options)
        for number, row in enumerate(rows):
            yield from document_pieces(row_text(row, config.field, f"{source[0]}, row {number}"))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, DataError):
            raise
        rule = f"cannot be read through datasets: {error}"
        raise DataError("corpus", key="data.corpora", value=str(options.get("data_files", source[0])), rule=rule) from error
