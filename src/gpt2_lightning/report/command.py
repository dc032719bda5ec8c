"""The ``report`` command: words in; a page of a run or a study in its folder out, and its paths on the screen.

One number: 1 of ``study`` and ``run`` is asked for. Choice not taken: a server; a file can be kept, sent and printed.
"""

import os
from contextlib import suppress
from pathlib import Path

from gpt2_lightning.errors import ConfigError, StudyError
from gpt2_lightning.report.charts import drawing_code
from gpt2_lightning.report.page import write_page
from gpt2_lightning.report.record import RECORD, read_study
from gpt2_lightning.report.run import read_log, runs_page
from gpt2_lightning.report.study import study_page
from gpt2_lightning.settings.setting import own_words

__all__ = ["find_study", "report", "report_study"]

WORDS = ("study", "run", "outputs", "out")


def report(words: list[str]) -> None:
    """Write the report that the words ask for; raises PlatformError."""
    given = read_words(words)
    outputs = Path(given.get("outputs", "outputs"))
    if "study" in given:
        folder = find_study(given["study"], outputs)
        paths = report_study(folder, Path(given["out"]) if "out" in given else None)
    else:
        paths = report_runs(given["run"].split(","), outputs, given.get("out"))
    print("\n".join(shown(path) for path in paths))


def read_words(words: list[str]) -> dict[str, str]:
    """The words by key; raises ConfigError."""
    given = own_words(WORDS, words, "report")
    for key, value in given.items():
        if not value or ("" in value.split(",") and key == "run"):
            raise ConfigError(key, key=key, value=value, rule="must not be empty")
    if ("study" in given) == ("run" in given):
        rule = "excludes run" if "study" in given else "or run must be given"
        remedy = "Give one of study=NAME, run=NAME and run=NAME,NAME"
        raise ConfigError("study", key="study", value=given.get("study", ""), rule=rule, remedy=remedy)
    return given


def find_study(name: str, outputs: Path) -> Path:
    """The folder of a study, by its path or name; raises StudyError."""
    with suppress(OSError):  # a name that is too long
        for folder in (Path(name), outputs / "sweeps" / name):
            if (folder / RECORD).is_file():
                return folder
    there = sorted(path.parent.name for path in (outputs / "sweeps").glob(f"*/{RECORD}"))
    remedy = f"There are {', '.join(there)}" if there else f"There are no studies in '{outputs}' yet"
    raise StudyError("study", key="study", value=name, rule=f"has no {RECORD}", remedy=remedy)


def report_study(folder: Path, out: Path | None = None) -> list[Path]:
    """Write the report of the study in that folder; returns what was written, the page first. Raises PlatformError."""
    return write_page(study_page(read_study(folder), shown(folder)), out or folder / "report", drawing_code())


def report_runs(names: list[str], outputs: Path, out: str | None) -> list[Path]:
    """Write the report of one run, or of several side by side."""
    folders = [find_log(name, outputs) for name in names]
    if len(set(folders)) < len(folders):
        raise ConfigError("run", key="run", value=",".join(names), rule="names a run twice")
    several = outputs / "reports" / "+".join(folder.name for folder in folders)[:200]
    place = Path(out) if out else several if len(folders) > 1 else folders[0] / "report"
    return write_page(runs_page([read_log(folder, shown(folder)) for folder in folders]), place, drawing_code())


def find_log(name: str, outputs: Path) -> Path:
    """The folder of a run, by its path, its name (the newest id) or name and id; raises ConfigError."""
    runs = outputs / "runs"
    with suppress(OSError):  # a name that is too long
        for folder in (Path(name), runs / name, *sorted((runs / name).glob("[!.]*"), reverse=True)):
            if (folder / "config.yaml").is_file():
                return folder
    there = sorted({path.parents[1].name for path in runs.glob("*/[!.]*/config.yaml")})
    remedy = f"There are {', '.join(there)}" if there else f"There are no runs in '{outputs}' yet"
    raise ConfigError("run", key="run", value=name, rule="is not there", remedy=remedy)


def shown(path: Path) -> str:
    """A path as it is shortest from here."""
    return os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else str(path.absolute())
