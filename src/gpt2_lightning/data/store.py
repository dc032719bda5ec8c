"""A store: one corpus on disk, its documents by position, read in microseconds from any place.

In: a way to read a corpus. Out: a folder, written once and found again by what it was made from, with the text (UTF-8) or,
with ``data.cache``, the tokens (uint16, end-of-text included) of all documents end to end, and an index of their ends.
Formats, broken text and line ends are met here, before the first step; after that a document is one ``pread``.
One number: 9 bytes of index a document. Choice not taken: mapping the files into memory, which counts a corpus as memory held,
and turns a file cut short into a bus error.
"""

import hashlib
import json
import os
import shutil
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from gpt2_lightning.data.corpus import Piece, Reading
from gpt2_lightning.data.documents import Documents, ended
from gpt2_lightning.data.tokens import Tokenizer, load_tokenizer
from gpt2_lightning.errors import DataError, OutputError, PlatformError
from gpt2_lightning.lock import process_state

__all__ = ["Store", "open_store"]

FORMAT = 1
INDEX = np.dtype([("end", "<i8"), ("whole", "?")])  # end in the file, in elements; whether the document ends there too
PARTS = ("train", "validation")
BATCH = 64  # pieces tokenised at a time

Pieces = Callable[[Reading], Iterator[Piece]]


class Store(Documents):
    """The documents of one part, ``train`` or ``validation``, of a store's folder; raises DataError when it was cut short."""

    def __init__(self, folder: Path, part: str, made: list[Path] | None = None) -> None:
        self.folder, self.part, self.made = folder, part, made  # made: the folders made for it, where this command built it
        try:
            manifest = json.loads((folder / "store.json").read_text(encoding="utf-8"))
            self.fingerprint = manifest["fingerprint"]
            self.warnings = manifest["warnings"]
            self.tokenizer = load_tokenizer(manifest["tokenizer"]) if manifest["tokenizer"] else None
            self.file = (folder / f"{part}.bin").open("rb", buffering=0)
            if [(folder / f"{part}.{end}").stat().st_size for end in ("bin", "index")] != manifest["sizes"][part]:
                raise ValueError("its files are not as long as when they were written")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.damaged(str(error)) from error
        self.dtype = np.dtype("<u2") if self.tokenizer else np.dtype("u1")
        index = folder / f"{part}.index"
        size = index.stat().st_size // INDEX.itemsize
        entries = np.asarray(np.memmap(index, INDEX, "r", shape=(size,))) if size else np.empty(0, INDEX)
        self.ends, self.whole = entries["end"], entries["whole"]

    def damaged(self, why: str) -> DataError:
        """The error for what is on disk."""
        rule = f"is damaged: {why}"
        return DataError("store", key="folder", value=str(self.folder), rule=rule, remedy="Remove the folder to build it again")

    def __reduce__(self) -> tuple[Any, ...]:
        """Opened anew in another process."""
        return Store, (self.folder, self.part)

    def discard(self) -> None:
        """Remove it where this command built it, and the folders it made for it."""
        if self.made is not None and self.folder.is_dir():
            remove(self.folder)
            remove_empty(self.made)

    def __len__(self) -> int:
        return len(self.ends)

    def elements(self, n: int) -> int:
        """Bytes of text, or tokens, of the first n together."""
        return int(self.ends[n - 1]) if n else 0

    def first(self, documents: int | None) -> int:
        """How many segments the first so many documents of the corpus have; None means all."""
        if documents is None or documents >= int(self.whole.sum()):
            return len(self)
        return int(np.flatnonzero(self.whole)[documents - 1]) + 1

    def is_whole(self, i: int) -> bool:
        """Whether a document of the corpus ends with document i: a long one is stored as several."""
        return bool(self.whole[i])

    def read(self, i: int) -> bytes:
        """Document i as it is stored."""
        width = self.dtype.itemsize
        start = int(self.ends[i - 1]) * width if i else 0
        size = int(self.ends[i]) * width - start
        content = os.pread(self.file.fileno(), size, start)
        if len(content) < size:
            raise self.damaged(f"it was cut short while it was read, byte {start + len(content)} of '{self.part}.bin' is gone")
        return content

    def tokens(self, i: int, tokenizer: Tokenizer | None = None) -> np.ndarray:
        """The tokens of document i and end-of-text: those that are stored, where the store is one of tokens."""
        if self.tokenizer is None and tokenizer is not None:
            return super().tokens(i, tokenizer)
        return np.frombuffer(self.read(i), self.dtype)

    def text(self, i: int) -> str:
        """The text of document i."""
        if self.tokenizer is None:
            try:
                return self.read(i).decode()
            except UnicodeDecodeError as error:
                raise self.damaged(f"document {i} of '{self.part}.bin' is not UTF-8") from error
        return self.tokenizer.decode(self.tokens(i)[:-1].tolist())


def open_store(name: str, read: Pieces, made_from: dict[str, Any], tokenizer: str | None, cache: Path) -> dict[str, Store]:
    """Both parts of a corpus's store, built first where it is not there; with a tokenizer's name, a store of tokens.

    ``made_from`` is all that the store depends on. It is built beside its place and renamed, so that it is whole or not there;
    two runs that need it wait for one. Raises DataError when the text cannot be read, and leaves nothing then.
    """
    made_from = {"format": FORMAT, "tokenizer": tokenizer, **made_from}
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    place = cache / f"{name}-{key}"
    made = None if (place / "store.json").is_file() else build_at(place, read, tokenizer)
    return {part: Store(place, part, made) for part in PARTS}


def build_at(place: Path, read: Pieces, tokenizer: str | None) -> list[Path]:
    """Build a store, and give the folders that were made for it; raises OutputError where it cannot be written.

    Whoever else needs it waits at the lock; but nothing depends on the lock, since everybody builds in a folder of their own.
    """
    made = [folder for folder in (place.parent, *place.parent.parents) if not folder.exists()]
    partial, lock = own_name(place), place.with_name(f".{place.name}.lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            clear(place)
            if not (place / "store.json").is_file():
                partial.mkdir(parents=True)
                write_store(partial, read, tokenizer)
                put(partial, place)
    except OSError as error:
        if isinstance(error, PlatformError):
            raise
        raise OutputError("store", key="folder", value=str(place.parent), rule=f"cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            lock.unlink()
        shutil.rmtree(partial, ignore_errors=True)
        remove_empty(made)
    return made


def put(partial: Path, place: Path) -> None:
    """Give a finished store its name; one that somebody else has finished meanwhile stays."""
    if place.exists() and not (place / "store.json").is_file():
        remove(place)
    try:
        partial.replace(place)
    except OSError:
        if not (place / "store.json").is_file():
            raise


def own_name(place: Path) -> Path:
    """A name beside a store's that no other living process of any machine uses."""
    return place.with_name(f".{place.name}.{socket.gethostname()}.{os.getpid()}")


def remove(folder: Path) -> None:
    """Take a folder away under another name first, so that it is never half there."""
    away = own_name(folder).with_name(f"{own_name(folder).name}.gone")
    folder.replace(away)
    shutil.rmtree(away, ignore_errors=True)


def clear(place: Path) -> None:
    """Remove what processes of this machine that are no more have left of this store."""
    for left in place.parent.glob(f".{place.name}.{socket.gethostname()}.*"):
        pid = left.name.removesuffix(".gone").rpartition(".")[2]
        if left.is_dir() and not (pid.isdecimal() and process_state(int(pid))):
            shutil.rmtree(left, ignore_errors=True)


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that were made for nothing, innermost first."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def write_store(folder: Path, read: Pieces, tokenizer: str | None) -> None:
    """Write both parts, then the manifest that makes the store valid."""
    reading = Reading()
    digest = hashlib.blake2b(digest_size=16)
    parts = {part: PartWriter(folder, part) for part in PARTS}
    for piece, data, elements in encoded(progress(read, reading), load_tokenizer(tokenizer) if tokenizer else None):
        parts[piece.part].add(data, elements, piece.whole)
        digest.update(f"\0{piece.part}{piece.whole}".encode() + (piece.text.encode() if tokenizer else data))
    sizes = {name: part.close() for name, part in parts.items()}
    manifest = {"format": FORMAT, "fingerprint": digest.hexdigest(), "tokenizer": tokenizer, "sizes": sizes}
    with (folder / "store.json").open("w", encoding="utf-8") as file:
        json.dump(manifest | {"warnings": reading.warnings}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


class PartWriter:
    """Appends documents and their ends to the two files of one part."""

    def __init__(self, folder: Path, part: str) -> None:
        self.content, self.index = (folder / f"{part}.bin").open("wb"), (folder / f"{part}.index").open("wb")
        self.end = 0

    def add(self, data: bytes, elements: int, whole: bool) -> None:
        """One document, or one segment of it."""
        self.end += elements
        self.content.write(data)
        self.index.write(np.array((self.end, whole), INDEX).tobytes())

    def close(self) -> list[int]:
        """Flush to the disk, close, and say how many bytes the two files have."""
        sizes = []
        for file in (self.content, self.index):
            file.flush()
            os.fsync(file.fileno())
            sizes.append(file.tell())
            file.close()
        return sizes


def progress(read: Pieces, reading: Reading) -> Iterator[Piece]:
    """The pieces as they are read, with a bar of the source's bytes where it takes more than three seconds."""
    every = 0.5 if sys.stderr.isatty() else 15.0
    with tqdm(unit="B", unit_scale=True, desc="preparing", delay=3, mininterval=every, leave=False) as bar:
        for piece in read(reading):
            bar.total = reading.bytes_total
            bar.update(reading.bytes_read - bar.n)
            yield piece


def encoded(pieces: Iterator[Piece], tokenizer: Tokenizer | None) -> Iterator[tuple[Piece, bytes, int]]:
    """Each piece with its bytes for the file and their number of elements; tokenised on all cores, in order."""
    if tokenizer is None:
        for piece in pieces:
            data = piece.text.encode()
            yield piece, data, len(data)
        return
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        waiting: deque[Future[list[tuple[Piece, bytes, int]]]] = deque()
        while batch := list(islice(pieces, BATCH)):
            waiting.append(pool.submit(encode_all, batch, tokenizer))
            if len(waiting) > 2 * cores:
                yield from waiting.popleft().result()
        for done in waiting:
            yield from done.result()


def encode_all(batch: list[Piece], tokenizer: Tokenizer) -> list[tuple[Piece, bytes, int]]:
    """The same of some pieces, with end-of-text behind each; tiktoken lets other threads run meanwhile."""
    tokens = [ended(tokenizer.encode(piece.text), tokenizer.end_of_text).astype("<u2") for piece in batch]
    return [(piece, of_it.tobytes(), len(of_it)) for piece, of_it in zip(batch, tokens, strict=True)]
