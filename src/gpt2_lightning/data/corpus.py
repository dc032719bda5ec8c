"""A corpus: files on disk in, pieces of documents out, in their stored order and in bounded memory.

In: a CorpusConfig. Out: pieces of text; a long document comes in several, cut between words.
One number: a megabyte is read at a time, so one line of 40 MB of text costs no more memory than many short ones; a line of
JSON has to be held whole.
Choice not taken: reading local files through ``datasets``, which reads a 40 MB line whole, reports broken text without its
place, and is imported in a second.
"""

import bz2
import codecs
import csv
import glob
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gpt2_lightning.data.rows import Rows
from gpt2_lightning.errors import DataError, MachineError
from gpt2_lightning.settings.data import CorpusConfig
from gpt2_lightning.tasks.catalogue import identity as task_identity
from gpt2_lightning.tasks.task import Task

__all__ = ["CorpusConfig", "Piece", "Reading", "corpus_files", "document_pieces", "held_out", "identity",
           "json_lines", "read_corpus", "read_files"]  # fmt: skip

READ_BYTES = 1 << 20
ZSTD_BYTES = 1 << 10  # compressed: one word over and over comes out ten thousand times as large
OPENERS: dict[str, Callable[[Any], Any]] = {
    "": lambda file: file,
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "bz2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
}
READ_BY = ("validation", "holdout_every", "holdout_limit", "field", "split", "invalid")
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


class Piece(NamedTuple):
    """Text for ``part``, ``train`` or ``validation``; ``whole`` where its document ends with it."""

    text: str
    whole: bool
    part: str = "train"


class Reading:
    """What a pass over a corpus tells as it goes: bytes read so far and in all, where that is known, and warnings."""

    def __init__(self) -> None:
        self.bytes_read = 0
        self.bytes_total: int | None = None
        self.warnings: list[str] = []


def read_corpus(config: CorpusConfig, segment_characters: int, reading: Reading, task: Task | None = None) -> Iterator[Piece]:
    """All pieces of a corpus on disk, in stored order; raises DataError where its text is broken.

    Where a task reads records, each is one piece.
    Without a validation file of its own, every ``holdout_every``-th document is validation, the rest train.
    """
    reading.bytes_total = sum(path.stat().st_size for path in source_files(config))
    index = 0
    for piece in read_files(config, str(config.path), segment_characters, reading, task):
        yield piece._replace(part="validation") if config.validation is None and held_out(config, index) else piece
        index += piece.whole
    if config.validation is not None:
        validation = read_files(config, config.validation, segment_characters, reading, task)
        yield from (piece._replace(part="validation") for piece in validation)


def identity(config: CorpusConfig, segment_characters: int, task: Task | None = None) -> dict[str, Any]:
    """All that the pieces of a corpus on disk depend on: its files, by name, size and time, and how they are read."""
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in source_files(config)]
    own = {"task": task_identity(task)} if task and task.config.of_records else {}
    return {"files": files, "segment_characters": segment_characters, **own} | {key: getattr(config, key) for key in READ_BY}


def held_out(config: CorpusConfig, index: int) -> bool:
    """Whether the document at this position is validation."""
    within = config.holdout_limit is None or index < config.holdout_limit * config.holdout_every
    return within and index % config.holdout_every == config.holdout_every - 1


def source_files(config: CorpusConfig) -> list[Path]:
    """The files of a corpus on disk; raises DataError where one is not there."""
    patterns = [pattern for pattern in (config.path, config.validation) if pattern is not None]
    return [path for pattern in patterns for path in corpus_files(pattern)]


def corpus_files(pattern: str) -> list[Path]:
    """The files a path, a glob or ``bundled:NAME`` stands for, sorted; raises DataError naming the nearest existing path."""
    try:
        return found_files(pattern)
    except OSError as error:  # a name too long, a folder that may not be read
        raise DataError("corpus", key="data.path", value=pattern, rule=f"cannot be opened: {error.strerror}") from error


def found_files(pattern: str) -> list[Path]:
    """The same, but for what the system refuses."""
    if pattern.startswith("bundled:"):
        pattern = str(files("gpt2_lightning") / "assets" / pattern.removeprefix("bundled:"))
    if Path(pattern).is_file():
        return [Path(pattern)]
    if not pattern:
        raise DataError("corpus", key="data.path", value=pattern, rule="is empty", remedy="Set data.path=FILE")
    if any(mark in pattern for mark in "*?["):
        found = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
        if not found:
            raise missing(pattern, "matches no file")
        return found
    if Path(pattern).is_dir():
        raise DataError("corpus", key="data.path", value=pattern, rule="is a folder", remedy=f"Set data.path='{pattern}/*.txt'")
    raise missing(pattern, "does not exist")


def missing(pattern: str, rule: str) -> DataError:
    """The error for a path that is not there: where it was looked for, and what is near it."""
    parent = Path(pattern).parent
    while not parent.is_dir():
        parent = parent.parent
    names = [entry.name for entry in parent.iterdir()]
    near = get_close_matches(Path(pattern).name, names, n=1, cutoff=0.4)
    remedy = f"The nearest that exists is '{parent / near[0]}'" if near else f"The nearest folder that exists is '{parent}'"
    return DataError("corpus", key="data.path", value=pattern, rule=f"{rule}, looked for in '{Path.cwd()}'", remedy=remedy)


def read_files(config: CorpusConfig, pattern: str, size: int, reading: Reading, task: Task | None = None) -> Iterator[Piece]:
    """The pieces of every file in turn: Parquet, JSON lines, CSV, or plain text."""
    rows = Rows(config, task)
    for path in corpus_files(pattern):
        name = path.name
        for ending in (".gz", ".bz2", ".xz", ".zst"):
            name = name.removesuffix(ending)
        if name.endswith(".parquet"):
            yield from read_parquet(path, rows, size, reading)
        elif name.endswith((".jsonl", ".ndjson")):
            yield from read_json_lines(path, rows, size, reading)
        elif name.endswith((".csv", ".tsv")):
            yield from read_csv(path, rows, size, reading, "\t" if name.endswith(".tsv") else ",")
        elif rows.of_records:
            rule = "holds no records: they are read from .jsonl, .csv, .tsv and .parquet"
            raise DataError("corpus", key="data.path", value=str(path), rule=rule, remedy="Convert it, or set task=lm")
        else:
            yield from split_text(read_text(path, config, reading), config.split, size)


def row_pieces(rows: Rows, row: dict[str, Any], place: str, size: int) -> Iterator[Piece]:
    """The pieces of a row's document; a record is one."""
    text = rows.text(row, place)
    return iter([Piece(text, True)]) if rows.of_records else document_pieces(text, size)


def open_file(path: Path) -> tuple[BinaryIO, str]:
    """The file, and how it is compressed by what it is, not by what it is called; raises DataError for binary types."""
    try:
        file = path.open("rb")
        head = file.read(16)
        file.seek(0)
    except OSError as error:
        raise DataError("corpus", key="data.path", value=str(path), rule=f"cannot be read: {error.strerror}") from error
    for magic, kind in BINARY.items():
        if head.startswith(magic):
            remedy = "Extract its text first"
            raise DataError("corpus", key="data.path", value=str(path), rule=f"is {kind}, not text", remedy=remedy)
    return file, next((kind for magic, kind in COMPRESSED.items() if head.startswith(magic)), "")


def read_bytes(path: Path, reading: Reading) -> Iterator[bytes]:
    """The file's bytes, decompressed, a megabyte at a time; raises DataError when it is cut short or damaged."""
    file, kind = open_file(path)
    before = reading.bytes_read
    with file:
        try:
            for chunk in zstd_chunks(file) if kind == "zstd" else chunks(OPENERS[kind](file)):
                reading.bytes_read = before + file.tell()
                yield chunk
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise DataError("corpus", key="data.path", value=str(path), rule=f"is cut short or damaged: {error}") from error


def chunks(file: Any) -> Iterator[bytes]:
    """What a file holds, a megabyte at a time."""
    while chunk := file.read(READ_BYTES):
        yield chunk


def zstd_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Zstandard's frames, one behind the other. Its own reader stops behind the first, and takes half a frame for the end."""
    try:
        import zstandard
    except ImportError as error:
        raise MachineError("zstd corpus", rule="needs the package zstandard", remedy="pip install zstandard") from error
    frame = None
    while data := file.read(ZSTD_BYTES):
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(data)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
            data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("the last frame has no end")


def read_text(path: Path, config: CorpusConfig, reading: Reading) -> Iterator[str]:
    """The file's text a megabyte at a time: byte-order mark stripped, line ends made ``\\n``, NULs counted and warned of."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace" if config.invalid == "replace" else "strict")
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    done = nuls = 0
    for chunk in read_bytes(path, reading):
        nuls += chunk.count(0)
        yield newlines.decode(decode(decoder, chunk, done, path))
        done += len(chunk)
    yield newlines.decode(decode(decoder, b"", done, path, final=True), final=True)
    if nuls:
        reading.warnings.append(f"'{path}' holds {nuls} NUL bytes, kept as they are: is it text?")


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


def split_text(chunks: Iterator[str], split: str, size: int) -> Iterator[Piece]:
    """Cut the text of one file into pieces of its documents; documents of nothing but blanks are left out."""
    separator = SEPARATORS.get(split)
    buffer, begun = "", False
    for chunk in chunks:
        buffer += chunk
        *documents, buffer = buffer.split(separator) if separator else [buffer]
        for document in documents:
            yield from document_pieces(document, size, begun)
            begun = False
        pieces, buffer = cut_pieces(buffer, size)
        begun = begun or bool(pieces)
        yield from (Piece(piece, False) for piece in pieces)
    yield from document_pieces(buffer, size, begun)


def document_pieces(text: str, size: int, begun: bool = False) -> Iterator[Piece]:
    """The pieces of a document's last stretch; ``begun`` when earlier pieces of it have been given."""
    if not begun and not text.strip():
        return
    pieces, rest = cut_pieces(text, size)
    yield from (Piece(piece, False) for piece in pieces)
    if begun or pieces or rest.strip():
        yield Piece(rest, True)


def cut_pieces(text: str, size: int) -> tuple[list[str], str]:
    """Full pieces and the rest, cut where a word begins after a single space, so that the tokens stay those of the whole."""
    pieces, start = [], 0
    while len(text) - start > 2 * size:  # so that no separator that has only half arrived is cut
        cut = word_start(text, start, size)
        pieces.append(text[start:cut])
        start = cut
    return pieces, text[start:]


def word_start(text: str, start: int, size: int) -> int:
    """The last place within a piece where a space stands between two letters; the piece's end when there is none."""
    end = start + size
    while (end := text.rfind(" ", start + 1, end)) > start:
        if text[end - 1].isalnum() and text[end + 1].isalpha():
            return end
    return start + size


def read_json_lines(path: Path, rows: Rows, size: int, reading: Reading) -> Iterator[Piece]:
    """One document a line; raises DataError with file and line."""
    for number, line in enumerate(json_lines(path, reading), start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield from row_pieces(rows, json_row(line, rows.config, place), place, size)


def read_csv(path: Path, rows: Rows, size: int, reading: Reading, delimiter: str) -> Iterator[Piece]:
    """One document a row, its fields named by the first; raises DataError with the file and the row's first line."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(text_lines(read_text(path, rows.config, reading)), delimiter=delimiter, strict=True)
    names, line = None, 1
    try:
        for values in reader:
            place, line = f"{path}:{line}", reader.line_num + 1
            if names is None:
                names = values
            elif len(values) == len(names):
                yield from row_pieces(rows, dict(zip(names, values, strict=True)), place, size)
            elif values:
                rule = f"has {len(values)} fields, and the first line names {len(names)}"
                raise DataError("corpus", key="data.path", value=place, rule=rule)
    except csv.Error as error:
        raise DataError("corpus", key="data.path", value=f"{path}:{line}", rule=f"is not CSV: {error}") from error


def text_lines(chunks: Iterator[str]) -> Iterator[str]:
    """The lines of a text that comes in chunks, each with its end."""
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest


def read_parquet(path: Path, rows: Rows, size: int, reading: Reading) -> Iterator[Piece]:
    """One document a row, a thousand rows at a time; raises DataError with file and row."""
    import pyarrow
    import pyarrow.parquet

    before, row = reading.bytes_read, 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            row_bytes = path.stat().st_size / max(1, file.metadata.num_rows)
            for batch in file.iter_batches(1024, columns=rows.columns(file.schema_arrow.names, str(path))):
                for values in batch.to_pylist():
                    row += 1
                    reading.bytes_read = int(before + row * row_bytes)
                    yield from row_pieces(rows, values, f"{path}, row {row}", size)
    except UnicodeDecodeError as error:
        rule = f"is not UTF-8 behind row {row}: {error}"
        raise DataError("corpus", key="data.path", value=str(path), rule=rule) from error
    except (OSError, pyarrow.ArrowException) as error:
        rule = f"is cut short or damaged: {error}"
        raise DataError("corpus", key="data.path", value=str(path), rule=rule) from error


def json_lines(path: Path, reading: Reading) -> Iterator[bytes]:
    """The file's lines as bytes, without a byte-order mark."""
    buffer = bytearray()
    first = True
    for chunk in read_bytes(path, reading):
        buffer += chunk.removeprefix(codecs.BOM_UTF8) if first else chunk
        first = False
        if b"\n" in chunk:
            *lines, rest = bytes(buffer).split(b"\n")
            yield from lines
            buffer = bytearray(rest)
    yield bytes(buffer)


def json_row(line: bytes, config: CorpusConfig, place: str) -> dict[str, Any]:
    """The object of one JSON line."""
    try:
        row = json.loads(line.decode("utf-8", "replace" if config.invalid == "replace" else "strict"))
    except (ValueError, RecursionError) as error:
        raise DataError("corpus", key="data.path", value=place, rule=f"is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError("corpus", key="data.path", value=place, rule="is no JSON object")
    return row
