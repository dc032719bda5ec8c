"""The record of a study: its folder in; what was asked, each trial and which is best out, without the study's storage.

One number: 1 file, ``study.json``, which is whole at any moment. Choice not taken: the storage, which may be far away, busy, or
behind a password.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_lightning.errors import StudyError, first_line
from gpt2_lightning.lock import living_holder
from gpt2_lightning.report.ranking import Row, front, rank

__all__ = ["OVER", "RECORD", "StudyRecord", "read_record", "read_result", "read_study", "run_state"]

RECORD = "study.json"
OVER = ("complete", "pruned", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRecord:
    """``asked``: the study's own part of the record; ``rows``: its trials; ``best``: of several objectives the front.

    A trial that no process holds is ``waiting``, not running.
    """

    folder: Path
    asked: dict[str, Any]
    rows: list[Row]
    ranked: list[Row]
    best: list[Row]

    @property
    def objectives(self) -> list[str]:
        """What trials are judged by."""
        return self.asked["objectives"]

    @property
    def own(self) -> list[Row]:
        """The trials that are not beside the study."""
        return [row for row in self.rows if row.place is not None]

    @property
    def baseline(self) -> Row | None:
        """The experiment as it is, where it can be compared with."""
        return next((row for row in self.ranked if row.name == self.asked["baseline"]), None)

    @property
    def state(self) -> str:
        """running, finished or unfinished."""
        if any(row.state == "running" for row in self.rows):
            return "running"
        over = sum(row.state in OVER for row in self.own)
        return "finished" if over >= self.asked["n_trials"] and all(row.state in OVER for row in self.rows) else "unfinished"


def read_record(folder: Path) -> dict[str, Any]:
    """The record of the study in that folder; raises StudyError."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        return found
    except (OSError, ValueError) as error:
        rule = f"has no {RECORD} that can be read: {first_line(error)}"
        raise StudyError("study", key="study", value=str(folder), rule=rule) from error


def read_result(folder: Path) -> dict[str, Any]:
    """What a run has come to; nothing before it is finished."""
    with suppress(OSError, ValueError):
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def run_state(folder: Path, result: dict[str, Any]) -> str:
    """running, finished or unfinished."""
    return "finished" if result else "unfinished" if living_holder(folder) is None else "running"


def read_study(folder: Path) -> StudyRecord:
    """The study in that folder; raises StudyError."""
    record = read_record(folder)
    try:
        rows = [row_of(trial, folder) for trial in record.pop("trials")]
        asked = (rows, record["objectives"], record["directions"])
        ranked = rank(*asked)
        best = ranked[:1] if len(record["objectives"]) == 1 else front(*asked)
        return StudyRecord(folder=folder, asked=record, rows=rows, ranked=ranked, best=best)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        rule = f"has a {RECORD} that is none of ours: {first_line(error)}"
        raise StudyError("study", key="study", value=str(folder), rule=rule) from error


def row_of(trial: dict[str, Any], folder: Path) -> Row:
    """One trial of the record."""
    state = trial["state"]
    if state not in OVER:
        state = "waiting" if living_holder(folder / trial["name"]) is None else "running"
    alike = {key: trial[key] for key in ("name", "place", "values", "point", "outcome", "beside", "steps")}
    return Row(state=state, why=trial["class"], told=trial, **alike)
