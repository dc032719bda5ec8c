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
from itertools import chain
from pathlib import Path
from typing import Any, AnyStr, BinaryIO, NamedTuple

from gpt2_lightning.data.rows import Rows, broken
from gpt2_lightning.data.tokens import END_OF_TEXT
from gpt2_lightning.errors import DataError
from gpt2_lightning.settings.data import CorpusConfig
from gpt2_lightning.tasks.catalogue import identity as task_identity
from gpt2_lightning.tasks.task import Task

__all__ = ["CorpusConfig", "Piece", "Reading", "corpus_files", "document_pieces", "identity",
           "json_lines", "read_corpus", "read_files"]  # fmt: skip

READ_BYTES = 1 << 20
OPENERS: dict[bytes, Callable[[Any], Any]] = {  # by what a compressed file begins with
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": lambda file: open_zstd(file),
}
READ_BY = ("validation", "holdout_every", "holdout_limit", "field", "split", "invalid")
SEPARATORS = {"line": "\n", "blank_line": "\n\n", "end_of_text": END_OF_TEXT}
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

Placed = tuple[str, dict[str, Any]]  # where a row stands, and the row


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
    every, index = config.holdout_every, 0
    most = None if config.holdout_limit is None else config.holdout_limit * every
    for piece in read_files(config, str(config.path), segment_characters, reading, task):
        held_out = config.validation is None and index % every == every - 1 and (most is None or index < most)
        yield piece._replace(part="validation") if held_out else piece
        index += piece.whole
    if config.validation is not None:
        validation = read_files(config, config.validation, segment_characters, reading, task)
        yield from (piece._replace(part="validation") for piece in validation)


def identity(config: CorpusConfig, segment_characters: int, task: Task | None = None) -> dict[str, Any]:
    """All that the pieces of a corpus on disk depend on: its files, by name, size and time, and how they are read."""
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in source_files(config)]
    own = {"task": task_identity(task)} if task and task.config.of_records else {}
    return {"files": files, "segment_characters": segment_characters, **own} | {key: getattr(config, key) for key in READ_BY}


def source_files(config: CorpusConfig) -> list[Path]:
    """The files of a corpus on disk; raises DataError where one is not there."""
    patterns = [pattern for pattern in (config.path, config.validation) if pattern is not None]
    return [path for pattern in patterns for path in corpus_files(pattern)]


def corpus_files(pattern: str) -> list[Path]:
    """The files a path, a glob or ``bundled:NAME`` stands for, sorted; raises DataError naming the nearest existing path."""
    if pattern.startswith("bundled:"):
        pattern = str(files("gpt2_lightning") / "assets" / pattern.removeprefix("bundled:"))
    if not pattern:
        raise broken(pattern, "is empty", "Set data.path=FILE")
    try:
        if Path(pattern).is_file():
            return [Path(pattern)]
        if any(mark in pattern for mark in "*?["):
            if found := sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file()):
                return found
            raise missing(pattern, "matches no file")
        if Path(pattern).is_dir():
            raise broken(pattern, "is a folder", f"Set data.path='{pattern}/*.txt'")
        raise missing(pattern, "does not exist")
    except OSError as error:  # a name too long, a folder that may not be read
        raise broken(pattern, f"cannot be opened: {error.strerror}") from error


def missing(pattern: str, rule: str) -> DataError:
    """The error for a path that is not there: where it was looked for, and what is near it."""
    parent = Path(pattern).parent
    while not parent.is_dir():
        parent = parent.parent
    names = [entry.name for entry in parent.iterdir()]
    near = get_close_matches(Path(pattern).name, names, n=1, cutoff=0.4)
    remedy = f"The nearest that exists is '{parent / near[0]}'" if near else f"The nearest folder that exists is '{parent}'"
    return broken(pattern, f"{rule}, looked for in '{Path.cwd()}'", remedy)


def read_files(config: CorpusConfig, pattern: str, size: int, reading: Reading, task: Task | None = None) -> Iterator[Piece]:
    """The pieces of every file in turn: Parquet, JSON lines, CSV, or plain text; a record is one piece."""
    rows = Rows(config, task)
    for path in corpus_files(pattern):
        if found := read_rows(path, rows, reading):
            for place, row in found:
                text = rows.text(row, place)
                yield from [Piece(text, True)] if rows.of_records else document_pieces(text, size)
        elif rows.of_records:
            rule = "holds no records: they are read from .jsonl, .csv, .tsv and .parquet"
            raise broken(str(path), rule, "Convert it, or set task=lm")
        else:
            yield from split_text(read_text(path, config, reading), config.split, size)


def read_rows(path: Path, rows: Rows, reading: Reading) -> Iterator[Placed] | None:
    """Every row of a file with its place: its path and line, or row; None where its name is that of plain text."""
    name = path.stem if path.suffix in (".gz", ".bz2", ".xz", ".zst") else path.name
    if name.endswith(".parquet"):
        return read_parquet(path, rows, reading)
    if name.endswith((".jsonl", ".ndjson")):
        return ((place, json_row(line, rows.config, place)) for place, line in json_lines(path, reading))
    if name.endswith((".csv", ".tsv")):
        return read_csv(path, rows.config, reading, "\t" if name.endswith(".tsv") else ",")
    return None


def open_file(path: Path) -> tuple[BinaryIO, Any]:
    """The file, and what it holds, decompressed as it is, not as it is called; raises DataError for binary types."""
    try:
        file = path.open("rb")
        head = file.read(16)
        file.seek(0)
    except OSError as error:
        raise broken(str(path), f"cannot be read: {error.strerror}") from error
    for magic, kind in BINARY.items():
        if head.startswith(magic):
            raise broken(str(path), f"is {kind}, not text", "Extract its text first")
    return file, next((opener(file) for magic, opener in OPENERS.items() if head.startswith(magic)), file)


def open_zstd(file: BinaryIO) -> Any:
    """Zstandard's frames, one behind the other, by Arrow: zstandard's own reader takes half a frame for the end."""
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")


def read_bytes(path: Path, reading: Reading) -> Iterator[bytes]:
    """The file's bytes, decompressed, a megabyte at a time; raises DataError when it is cut short or damaged."""
    file, content = open_file(path)
    before = reading.bytes_read
    with file:
        try:
            while chunk := content.read(READ_BYTES):
                reading.bytes_read = before + file.tell()
                yield chunk
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise broken(str(path), f"is cut short or damaged: {error}") from error


def read_text(path: Path, config: CorpusConfig, reading: Reading) -> Iterator[str]:
    """The file's text a megabyte at a time: byte-order mark stripped, line ends made ``\\n``, NULs counted and warned of.

    Raises DataError with the byte offset of what is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace" if config.invalid == "replace" else "strict")
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    done = nuls = 0
    for chunk in chain(read_bytes(path, reading), [b""]):
        try:
            text = decoder.decode(chunk, not chunk)
        except UnicodeDecodeError as error:
            offset = done + len(chunk) - len(error.object) + error.start
            remedy = "Convert it, or set invalid=replace for this corpus"
            raise broken(str(path), f"is not UTF-8 at byte {offset}", remedy) from error
        yield newlines.decode(text, not chunk)
        done, nuls = done + len(chunk), nuls + chunk.count(0)
    if nuls:
        reading.warnings.append(f"'{path}' holds {nuls} NUL bytes, kept as they are: is it text?")


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


def read_csv(path: Path, config: CorpusConfig, reading: Reading, delimiter: str) -> Iterator[Placed]:
    """The rows, their fields named by the first; raises DataError with the file and the row's first line."""
    csv.field_size_limit(2**31 - 1)
    ended = (f"{line}\n" for line in lines(read_text(path, config, reading), "\n"))
    reader = csv.reader(ended, delimiter=delimiter, strict=True)
    names, line = None, 1
    try:
        for values in reader:
            place, line = f"{path}:{line}", reader.line_num + 1
            if names is None:
                names = values
            elif len(values) == len(names):
                yield place, dict(zip(names, values, strict=True))
            elif values:
                raise broken(place, f"has {len(values)} fields, and the first line names {len(names)}")
    except csv.Error as error:
        raise broken(f"{path}:{line}", f"is not CSV: {error}") from error


def lines(chunks: Iterator[AnyStr], end: AnyStr) -> Iterator[AnyStr]:
    """The lines of what comes in chunks, without their ends; what is behind the last end is one too."""
    held: list[AnyStr] = []
    for chunk in chunks:
        found = chunk.split(end)
        held.append(found[0])
        if len(found) > 1:
            yield end[:0].join(held)
            yield from found[1:-1]
            held = found[-1:]
    yield end[:0].join(held)


def read_parquet(path: Path, rows: Rows, reading: Reading) -> Iterator[Placed]:
    """The rows, a thousand at a time; raises DataError with file and row."""
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
                    yield f"{path}, row {row}", values
    except UnicodeDecodeError as error:
        raise broken(str(path), f"is not UTF-8 behind row {row}: {error}") from error
    except (OSError, pyarrow.ArrowException) as error:
        raise broken(str(path), f"is cut short or damaged: {error}") from error


def json_lines(path: Path, reading: Reading) -> Iterator[tuple[str, bytes]]:
    """The place and the bytes of each line that is not blank, the first without a byte-order mark."""
    for number, line in enumerate(lines(read_bytes(path, reading), b"\n"), start=1):
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if content.strip():
            yield f"{path}:{number}", content


def json_row(line: bytes, config: CorpusConfig, place: str) -> dict[str, Any]:
    """The object of one JSON line."""
    try:
        row = json.loads(line.decode("utf-8", "replace" if config.invalid == "replace" else "strict"))
    except (ValueError, RecursionError) as error:
        raise broken(place, f"is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise broken(place, "is no JSON object")
    return row
