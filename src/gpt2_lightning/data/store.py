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
from gpt2_lightning.data.tokens import Tokenizer, load_tokenizer
from gpt2_lightning.errors import DataError, OutputError, PlatformError

__all__ = ["Store", "discard", "open_store"]

FORMAT = 1
INDEX = np.dtype([("end", "<i8"), ("whole", "?")])  # end in the file, in elements; whether the document ends there too
PARTS = ("train", "validation")
BATCH = 64  # pieces tokenised at a time

Pieces = Callable[[Reading], Iterator[Piece]]


class Store:
    """The documents of one part, ``train`` or ``validation``, of a store's folder; raises DataError when it was cut short."""

    def __init__(self, folder: Path, part: str, built: bool = False) -> None:
        self.folder, self.part, self.built = folder, part, built
        manifest = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        self.fingerprint: str = manifest["fingerprint"]
        self.warnings: list[str] = manifest["warnings"]
        self.tokenizer = load_tokenizer(manifest["tokenizer"]) if manifest["tokenizer"] else None
        self.dtype = np.dtype("<u2") if self.tokenizer else np.dtype("u1")
        index = folder / f"{part}.index"
        size = index.stat().st_size // INDEX.itemsize
        entries = np.asarray(np.memmap(index, INDEX, "r", shape=(size,))) if size else np.empty(0, INDEX)
        self.ends, self.whole = entries["end"], entries["whole"]
        self.file = (folder / f"{part}.bin").open("rb", buffering=0)

    def __reduce__(self) -> tuple[Any, ...]:
        """Opened anew in another process."""
        return Store, (self.folder, self.part)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def elements(self) -> int:
        """Bytes of text, or tokens, of all documents together."""
        return int(self.ends[-1]) if len(self.ends) else 0

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
            rule = f"was cut short while it was read: byte {start + len(content)} of document {i} is gone"
            raise DataError("store", key="file", value=self.file.name, rule=rule, remedy="Remove its folder to build it again")
        return content

    def tokens(self, i: int) -> np.ndarray:
        """The tokens of document i, end-of-text included; for a store of tokens."""
        return np.frombuffer(self.read(i), self.dtype)

    def text(self, i: int) -> str:
        """The text of document i."""
        if self.tokenizer is None:
            return self.read(i).decode()
        return self.tokenizer.decode(self.tokens(i)[:-1].tolist())


def open_store(name: str, read: Pieces, made_from: dict[str, Any], tokenizer: str | None, cache: Path) -> dict[str, Store]:
    """Both parts of a corpus's store, built first where it is not there; with a tokenizer's name, a store of tokens.

    ``made_from`` is all that the store depends on. It is built beside its place and renamed, so that it is whole or not there;
    two runs that need it wait for one. Raises DataError when the text cannot be read, and leaves nothing then.
    """
    made_from = {"format": FORMAT, "tokenizer": tokenizer, **made_from}
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    place = cache / f"{name}-{key}"
    built = not (place / "store.json").is_file()
    if built:
        build_at(place, read, tokenizer)
    return {part: Store(place, part, built) for part in PARTS}


def discard(store: Store) -> None:
    """Remove a store that this command built for a run that is refused."""
    if store.built:
        shutil.rmtree(store.folder, ignore_errors=True)
        remove_empty([store.folder.parent, store.folder.parent.parent])


def build_at(place: Path, read: Pieces, tokenizer: str | None) -> None:
    """Build a store under a lock; raises OutputError where it cannot be written."""
    made = [folder for folder in (place.parent, *place.parent.parents) if not folder.exists()]
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    lock = place.with_name(f".{place.name}.lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not (place / "store.json").is_file():
                clear(place)
                partial.mkdir()
                write_store(partial, read, tokenizer)
                partial.replace(place)
    except OSError as error:
        if isinstance(error, PlatformError):
            raise
        raise OutputError("store", key="folder", value=str(place.parent), rule=f"cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            lock.unlink()
        shutil.rmtree(partial, ignore_errors=True)
        remove_empty(made)


def clear(place: Path) -> None:
    """Remove what killed builds have left of this store."""
    for left in place.parent.glob(f".{place.name}.*"):
        if left.is_dir():
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
    for part in parts.values():
        part.close()
    manifest = {"format": FORMAT, "fingerprint": digest.hexdigest(), "tokenizer": tokenizer, "warnings": reading.warnings}
    (folder / "store.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


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

    def close(self) -> None:
        """Flush to the disk and close."""
        for file in (self.content, self.index):
            file.flush()
            os.fsync(file.fileno())
            file.close()


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
        waiting: deque[tuple[list[Piece], Future[list[np.ndarray]]]] = deque()
        while batch := list(islice(pieces, BATCH)):
            waiting.append((batch, pool.submit(encode_all, batch, tokenizer)))
            if len(waiting) > 2 * cores:
                yield from joined(*waiting.popleft())
        for done in waiting:
            yield from joined(*done)


def encode_all(batch: list[Piece], tokenizer: Tokenizer) -> list[np.ndarray]:
    """The tokens of each piece with end-of-text; tiktoken lets other threads run meanwhile."""
    return [np.append(tokenizer.encode(piece.text), tokenizer.end_of_text).astype("<u2") for piece in batch]


def joined(batch: list[Piece], future: "Future[list[np.ndarray]]") -> Iterator[tuple[Piece, bytes, int]]:
    """The pieces of one batch with what they became."""
    for piece, tokens in zip(batch, future.result(), strict=True):
        yield piece, tokens.tobytes(), len(tokens)
