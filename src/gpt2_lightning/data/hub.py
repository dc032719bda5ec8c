"""A hub data set: its id in, documents by position out, streamed a row group at a time and never downloaded whole.

``datasets`` resolves id, configuration and revision to Parquet files, whose footers say how many rows each group holds; from
then on any row is a range of bytes of one file.
One number: 256 MiB, the text of row groups that is held. Choice not taken: a streamed ``datasets`` iterator, which has no
positions: to skip rows it reads them.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_lightning.data.corpus import Piece, Reading, document_pieces
from gpt2_lightning.data.documents import Documents
from gpt2_lightning.data.rows import Rows
from gpt2_lightning.errors import DataError
from gpt2_lightning.settings.data import CorpusConfig
from gpt2_lightning.tasks.catalogue import identity as task_identity
from gpt2_lightning.tasks.task import Task

__all__ = ["HubDocuments", "hub_files", "hub_rows", "open_hub", "read_hub"]

HELD_BYTES = 2**28
READERS = 16  # footers read at a time


class RowGroups:
    """The rows of Parquet files by position, their text held by row group. Raises DataError for what cannot be read."""

    def __init__(self, files: list[str], rows: Rows) -> None:
        self.files, self.rows = files, rows
        with ThreadPoolExecutor(READERS) as pool:
            footers = list(pool.map(self.footer, range(len(files))))
        self.places = [(file, group) for file, footer in enumerate(footers) for group in range(len(footer))]
        sizes = np.array([size for footer in footers for size in footer], np.int64).reshape(-1, 2)
        self.ends, self.text_bytes = np.cumsum(sizes[:, 0]), int(sizes[:, 1].sum())
        self.held: OrderedDict[int, tuple[list[dict[str, Any]], int]] = OrderedDict()
        self.file_starts = np.cumsum([0, *(sum(rows for rows, _ in footer) for footer in footers)])
        config, task = rows.config, [task_identity(rows.task)] if rows.task else []
        cut = (config.field, config.join, config.holdout_every, config.holdout_limit, *task)
        told = "\n".join(map(str, (*cut, *files, *sizes.ravel().tolist())))
        self.fingerprint = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def open(self, file: int) -> Any:
        """A Parquet file, opened for reading by ranges."""
        import fsspec
        import pyarrow.parquet

        system, path = fsspec.core.url_to_fs(self.files[file])
        return pyarrow.parquet.ParquetFile(system.open(path))

    def footer(self, file: int) -> list[tuple[int, int]]:
        """Rows and bytes of text of each row group of a file; of records, of all that is in it."""
        with troubles(self.files[file]), self.open(file) as parquet:
            groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
            names = parquet.schema_arrow.names
            asked = self.rows.columns(names, self.files[file])
            if asked is None:
                return [(group.num_rows, group.total_byte_size) for group in groups]
            column = names.index(asked[0])
            return [(group.num_rows, group.column(column).total_uncompressed_size) for group in groups]

    def row(self, i: int) -> str:
        """The text of row i."""
        group = int(np.searchsorted(self.ends, i, "right"))
        start = int(self.ends[group - 1]) if group else 0
        file = self.places[group][0]
        place = f"{self.files[file]}, row {i - int(self.file_starts[file]) + 1}"
        return self.rows.text(self.values(group)[i - start], place)

    def values(self, group: int) -> list[dict[str, Any]]:
        """All rows of a row group, kept until others need the place."""
        if group not in self.held:
            file, number = self.places[group]
            with troubles(self.files[file]), self.open(file) as parquet:
                asked = self.rows.columns(parquet.schema_arrow.names, self.files[file])
                table = parquet.read_row_group(number, columns=asked)
                self.held[group] = table.to_pylist(), table.nbytes
            while len(self.held) > 1 and sum(size for _, size in self.held.values()) > HELD_BYTES:
                self.held.popitem(last=False)
        self.held.move_to_end(group)
        return self.held[group][0]


class HubDocuments(Documents):
    """One part, ``train`` or ``validation``, of a data set's documents, ``config.join`` rows each."""

    def __init__(self, rows: RowGroups, config: CorpusConfig, part: str) -> None:
        self.rows, self.config, self.part, self.fingerprint = rows, config, part, rows.fingerprint
        self.documents = -(-len(rows) // config.join)
        limit = config.holdout_limit if config.holdout_limit is not None else self.documents
        self.held_out = min(limit, self.documents // config.holdout_every)

    def __len__(self) -> int:
        return self.held_out if self.part == "validation" else self.documents - self.held_out

    def elements(self, n: int) -> int:
        """Bytes of text of the first n documents, from the footers."""
        return self.rows.text_bytes * n // max(1, self.documents)

    def position(self, i: int) -> int:
        """Where document i of the part stands among all."""
        every = self.config.holdout_every
        if self.part == "validation":
            return i * every + every - 1
        return i + min(self.held_out, i // (every - 1))

    def text(self, i: int) -> str:
        """The text of document i: its rows, a line each."""
        first = self.position(i) * self.config.join
        return "\n".join(self.rows.row(n) for n in range(first, min(first + self.config.join, len(self.rows))))


@contextmanager
def troubles(name: str) -> Iterator[None]:
    """What the network, the hub, or a file does wrong, as a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        rule = f"cannot be read: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        remedy = "Check the id, the revision and the network"
        raise DataError("hub data set", key="hub", value=name, rule=rule, remedy=remedy) from error


def hub_files(config: CorpusConfig, part: str = "train") -> list[str]:
    """The files of a part of a data set, at the commit that its revision means."""
    with troubles(str(config.hub)):
        import datasets

        builder = datasets.load_dataset_builder(str(config.hub), config.hub_config, revision=commit(config))
        return [str(file) for file in (builder.config.data_files or {})[part]]


def commit(config: CorpusConfig) -> str | None:
    """The commit that the revision means. Asked of the hub itself: ``datasets`` answers a wrong one from its own cache."""
    import huggingface_hub

    if Path(str(config.hub)).is_dir():
        return None
    return huggingface_hub.HfApi().dataset_info(str(config.hub), revision=config.revision).sha


def open_hub(config: CorpusConfig, task: Task | None = None) -> dict[str, HubDocuments]:
    """Both parts of a hub data set."""
    rows = RowGroups(hub_files(config), Rows(config, task))
    return {part: HubDocuments(rows, config, part) for part in ("train", "validation")}


def read_hub(config: CorpusConfig, segment_characters: int, reading: Reading) -> Iterator[Piece]:
    """The pieces of both parts, for a store."""
    for part, documents in open_hub(config).items():
        reading.bytes_total = documents.rows.text_bytes
        for i in range(len(documents)):
            text = documents.text(i)
            reading.bytes_read += len(text)
            yield from (piece._replace(part=part) for piece in document_pieces(text, segment_characters))


def hub_rows(name: str, part: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a data set's part as they are, each with its place; raises DataError. Parquet and JSON lines are read."""
    with troubles(name):
        import fsspec
        import pyarrow.parquet

        for file in hub_files(CorpusConfig(hub=name), part):
            with fsspec.open(file, "rb") as opened:
                if file.endswith(".parquet"):
                    rows = pyarrow.parquet.ParquetFile(opened).iter_batches(1024)
                    found = (row for batch in rows for row in batch.to_pylist())
                else:
                    found = (json.loads(line) for line in opened if line.strip())
                yield from ((f"{file}, row {number}", row) for number, row in enumerate(found, 1))
