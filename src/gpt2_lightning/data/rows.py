"""A row of a file or of a hub data set: its fields in, the text of its document out, or a record's parts as JSON.

One number: 2, the ways: the text of one field, or what a task reads. Choice not taken: marks between the parts, which a text
may hold itself.
"""

import json
from typing import Any

from gpt2_lightning.errors import DataError
from gpt2_lightning.settings.data import CorpusConfig
from gpt2_lightning.tasks.task import BadRecord, Part, Record, Task

__all__ = ["Rows", "broken", "checked_text", "stored_record", "stored_text", "text_column"]


class Rows:
    """How a corpus's rows become documents: by a task where they are records. Raises DataError with a row's place."""

    def __init__(self, config: CorpusConfig, task: Task | None = None) -> None:
        self.config, self.task = config, task if task and task.config.of_records else None
        self.of_records = self.task is not None

    def columns(self, names: list[str], place: str) -> list[str] | None:
        """The columns to be read of a Parquet file; None means all."""
        return None if self.task else [text_column(names, self.config, place)]

    def text(self, row: dict[str, Any], place: str) -> str:
        """The document as it is stored."""
        if self.task is None:
            return checked_text(row[text_column(list(row), self.config, place)], self.config, place)
        try:
            record = self.task.read(row)
        except BadRecord as error:
            raise broken(place, str(error), "Set task.x and task.y, or mend the record", "record") from error
        if not any(part.kind == "y" and part.text for part in record):
            raise broken(place, "has nothing to predict: no Y, or an empty one", what="record")
        return stored_text([Part(part.kind, checked_text(part.text, self.config, place)) for part in record])


def broken(place: str, rule: str, remedy: str = "", what: str = "corpus") -> DataError:
    """The error for what is read, or cannot be, at a place: a path, a file's line or row."""
    return DataError(what, key="data.path", value=place, rule=rule, remedy=remedy)


def stored_text(record: Record) -> str:
    """A record as one text."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def stored_record(text: str) -> Record:
    """The record of such a text."""
    return [Part(*part) for part in json.loads(text)]


def text_column(names: list[str], config: CorpusConfig, place: str) -> str:
    """The configured field; raises DataError naming those there are."""
    if config.field not in names:
        rule = f"has no field '{config.field}'; it has {', '.join(names) or 'none'}"
        raise broken(place, rule, "Set field=NAME for this corpus")
    return config.field


def checked_text(value: Any, config: CorpusConfig, place: str) -> str:
    """A row's text, its line ends made ``\\n``; raises DataError where it is none, or holds half a surrogate pair."""
    if not isinstance(value, str):
        rule = f"holds no text in the field '{config.field}' but {type(value).__name__}"
        raise broken(place, rule, "Set field=NAME for this corpus")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        if config.invalid != "replace":
            remedy = "Repair it, or set invalid=replace for this corpus"
            raise broken(place, "holds half a surrogate pair", remedy) from error
        value = value.encode("utf-8", "replace").decode()
    return value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value
