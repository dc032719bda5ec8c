"""Lists of what there is: the folder of outputs in; a table of its runs or studies out, from the files alone.

One number: 64 KiB at the end of a run's metrics say how far it is. Choice not taken: an index beside the folders, which
would be one more thing to be out of date.
"""

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from gpt2_lightning.errors import ConfigError, StudyError
from gpt2_lightning.report.record import OVER, RECORD, read_result, read_study, run_state
from gpt2_lightning.settings.setting import own_words

__all__ = ["list_outputs"]

TAIL = 2**16
STATES = ("running", "finished", "unfinished")
DEFAULTS = {"sort": "age", "name": "*", "state": "", "n": "", "outputs": "outputs"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A run or a study; ``touched`` in seconds since 1970, ``size`` in bytes, ``sign`` -1 where higher is better."""

    name: str
    id: str
    state: str
    best: float | None
    sign: int = 1
    touched: float
    size: int
    steps: str


def list_outputs(words: list[str]) -> None:
    """Print the table of ``runs`` or ``studies``, as the words after it ask; raises ConfigError."""
    given = read_words(words[0], words[1:])
    outputs = Path(given["outputs"])
    found = list(runs(outputs) if words[0] == "runs" else studies(outputs))
    kept = [item for item in found if fnmatchcase(item.name, given["name"]) and given["state"] in ("", item.state)]
    kept.sort(key=KEYS[given["sort"]])
    if not kept:
        print(f"no {words[0]} in '{outputs}'" if not found else f"none of {len(found)} {words[0]} in '{outputs}' is asked for")
        return
    which, what = ("id", "steps") if words[0] == "runs" else ("objective", "trials")
    heads = ["name", which, "state", "best", "age", "size", what]
    print("\n".join(aligned([heads, *(cells(item) for item in kept[: int(given["n"] or len(kept))])])))


KEYS = {
    "age": lambda item: -item.touched,
    "best": lambda item: (item.best is None, item.sign * (item.best or 0), item.name),
    "name": lambda item: (item.name, item.id),
    "size": lambda item: -item.size,
}


def read_words(what: str, words: list[str]) -> dict[str, str]:
    """The words by key, and the defaults of the others; raises ConfigError."""
    given = own_words(list(DEFAULTS), words, f"list {what}")
    for key, value in given.items():
        for name, choices in (("sort", KEYS), ("state", STATES)):
            if key == name and value not in choices:
                raise ConfigError(name, key=name, value=value, rule=f"must be one of {', '.join(choices)}")
        if key == "n" and (not value.isdecimal() or int(value) < 1):
            raise ConfigError("n", key="n", value=value, rule="must be an integer, at least 1")
    return DEFAULTS | given


def runs(outputs: Path) -> Iterator[Item]:
    """The runs in a folder of outputs."""
    for config in (outputs / "runs").glob("[!.]*/[!.]*/config.yaml"):
        with suppress(OSError):  # removed meanwhile
            yield run_item(config.parent)


def run_item(folder: Path) -> Item:
    """One run."""
    result = read_result(folder)
    steps, best = progress(folder / "metrics.jsonl", whole=not result)
    with suppress(KeyError, TypeError, ValueError):
        best = float(result["best"]["val/cross_entropy"])
    config = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    asked = re.search(r"^  max_steps: (\d+)$", config, re.MULTILINE)
    size, touched = weigh(folder)
    return Item(name=folder.parent.name, id=folder.name, state=run_state(folder, result), best=best, touched=touched, size=size,
                steps=f"{steps:,} of {int(asked[1]):,}" if asked else f"{steps:,}")  # fmt: skip


def progress(path: Path, whole: bool) -> tuple[int, float | None]:
    """The last step of a run's metrics, and, looking at the whole file, the lowest validation."""
    steps, best = 0, None
    with suppress(OSError), path.open("rb") as file:
        file.seek(0 if whole else max(0, path.stat().st_size - TAIL))
        for text in file:
            if found := re.match(rb'\{"step": (\d+),', text):
                steps = max(steps, int(found[1]))
            if whole and (value := re.search(rb'"val/cross_entropy": ([0-9.e+-]+)', text)):
                best = min(best, float(value[1])) if best is not None else float(value[1])
    return steps, best


def studies(outputs: Path) -> Iterator[Item]:
    """The studies in a folder of outputs."""
    for folder in sorted((outputs / "sweeps").glob("[!.]*")):
        if folder.is_dir():
            with suppress(OSError):
                yield study_item(folder)


def study_item(folder: Path) -> Item:
    """One study; of one that has no record yet, what can be said."""
    size, touched = weigh(folder)
    try:
        study = read_study(folder)
    except StudyError:
        return Item(name=folder.name, id="-", state="unfinished", best=None, touched=touched, size=size, steps="-")
    name = study.objectives[0]
    sign = -1 if study.asked["directions"][0] == "maximize" else 1
    over = sum(row.state in OVER for row in study.own)
    return Item(name=folder.name, id=name + (", ..." if study.objectives[1:] else ""), state=study.state, sign=sign, size=size,
                best=study.ranked[0].values[name] if study.ranked else None, touched=(folder / RECORD).stat().st_mtime,
                steps=f"{over} of {study.asked['n_trials']}")  # fmt: skip


def weigh(folder: Path) -> tuple[int, float]:
    """The bytes of all files below a folder, and when one directly in it was written last."""
    size, touched = 0, 0.0
    for path in folder.rglob("*"):
        with suppress(OSError):
            stat = path.stat()
            size += stat.st_size if path.is_file() else 0
            touched = max(touched, stat.st_mtime) if path.parent == folder else touched
    return size, touched


def cells(item: Item) -> list[str]:
    """An item as it is shown."""
    best = "-" if item.best is None else f"{item.best:.4f}"
    return [printable(item.name), printable(item.id), item.state, best, age(time.time() - item.touched), in_bytes(item.size),
            item.steps]  # fmt: skip


def printable(text: str) -> str:
    """A name that moves no cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


def age(seconds: int | float) -> str:
    """One unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def in_bytes(size: int | float) -> str:
    """One unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def aligned(table: list[list[str]]) -> list[str]:
    """Columns; numbers, from the fourth on, to the right."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  ".join(c.rjust(w) if i > 2 else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in table]  # fmt: skip
