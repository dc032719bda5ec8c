"""What is judged: a path, a data set or a run's own corpora in; records, or documents as tokens, out.

One number: 1 document at a time is text; what is kept of it are its tokens. Choice not taken: the stores' pieces as they lie; a
long document is put together again, so that its context is its own.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_lightning.data.corpus import Placed, Reading, corpus_files, json_lines, read_files
from gpt2_lightning.data.documents import Documents
from gpt2_lightning.data.rows import stored_record
from gpt2_lightning.data.source import open_corpora
from gpt2_lightning.data.tokens import Tokenizer
from gpt2_lightning.errors import DataError
from gpt2_lightning.settings.data import CorpusConfig, DataConfig
from gpt2_lightning.tasks.task import Record, Task

__all__ = ["corpora_texts", "file_texts", "local_records", "task_records"]

SEGMENT = 16_384  # characters of a piece


@contextmanager
def called_path() -> Iterator[None]:
    """Name the key as it is typed here: to a run it is data.path."""
    try:
        yield
    except DataError as error:
        key = "path" if error.key == "data.path" else error.key
        remedy = error.remedy.replace("data.path", "path")
        raise DataError(error.what, key=key, value=error.value, rule=error.rule, remedy=remedy) from error


def local_records(pattern: str, limit: int | None) -> list[Placed]:
    """The objects of files of JSON lines, each with its file and line; raises DataError."""
    with called_path():
        lines = (placed for path in corpus_files(pattern) for placed in json_lines(path, Reading()))
        return [(place, record(line, place)) for place, line in islice(lines, limit)]


def task_records(pattern: str, limit: int | None, task: Task) -> list[Record]:
    """The records of files, JSON lines, CSV or Parquet, as the task reads them; raises DataError."""
    with called_path():
        pieces = read_files(CorpusConfig(path=pattern), pattern, SEGMENT, Reading(), task)
        return [stored_record(piece.text) for piece in islice(pieces, limit)]


def record(line: bytes, place: str) -> dict[str, Any]:
    """One line's object; raises DataError."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError("record", key="line", value=place, rule=f"is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError("record", key="line", value=place, rule=f"is no object but {type(found).__name__}")
    return found


def file_texts(config: CorpusConfig, tokenizer: Tokenizer, limit: int | None) -> list[np.ndarray]:
    """The tokens of each document of the files, without end-of-text; raises DataError."""

    def documents() -> Iterator[np.ndarray]:
        held: list[str] = []
        for piece in read_files(config, str(config.path), SEGMENT, Reading()):
            held.append(piece.text)
            if piece.whole:
                yield tokenizer.encode("".join(held))
                held.clear()

    with called_path():
        return list(islice(documents(), limit))


def corpora_texts(config: DataConfig, cache: Path, tokenizer: Tokenizer, limit: int | None) -> dict[str, list[np.ndarray]]:
    """By corpus, the tokens of each validation document, without end-of-text; raises DataError."""
    corpora = open_corpora(config, cache)
    return {name: list(islice(whole_documents(parts["validation"], tokenizer), limit)) for name, parts in corpora.items()}


def whole_documents(documents: Documents, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The tokens of documents of which a long one lies in several pieces."""
    held: list[np.ndarray] = []
    for i in range(len(documents)):
        held.append(documents.tokens(i, tokenizer)[:-1])
        if documents.is_whole(i):
            yield np.concatenate(held)
            held.clear()
