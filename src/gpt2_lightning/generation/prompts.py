"""Prompts in a file: JSON lines in, their records out. Imports no torch, so that a fault in the file is told at once.

One number: 1, the record a line. Choice not taken: lines as str.splitlines sees them, which parts strings at U+2028.
"""

import json
from pathlib import Path
from typing import Any

from gpt2_lightning.errors import DataError

__all__ = ["read_prompts"]


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, each with a ``prompt``; raises DataError with the line."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise DataError("prompts", key="prompts", value=str(path), rule=f"cannot be read: {error.strerror}") from error
    return [read_record(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def read_record(line: bytes, place: str) -> dict[str, Any]:
    """One line's object; raises DataError."""
    remedy = 'Write each line as {"prompt": "..."}'
    try:
        record = json.loads(line.decode("utf-8"))
        json.dumps(record, ensure_ascii=False).encode("utf-8")  # half a surrogate pair can be escaped, and not be written
    except UnicodeError as error:
        raise DataError("prompts", key="line", value=place, rule=f"is not valid UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError("prompts", key="line", value=place, rule=f"is not JSON: {error}", remedy=remedy) from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise DataError("prompts", key="line", value=place, rule="has no prompt that is text", remedy=remedy)
    return record
