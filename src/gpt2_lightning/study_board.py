"""The board of a study: its record in; what TensorBoard's HParams and scalars show of it out.

A trial that has ended gets a file of its own beside the events of its training, so that its curves and its row are one run;
so does one that was trained elsewhere, or not at all. The study is a run of its own, ``study``, over the number of the trial.
Written again it is the same: a file that is right is left alone, and no training's is touched.
One number: 64 KiB of a trial's metrics are read, their end. Choice not taken: a folder of rows beside the trials, which would
show every trial twice.
"""

import json
import math
import os
from collections import Counter
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from gpt2_lightning.board import Board, Layout, Value, events
from gpt2_lightning.metrics import perplexity
from gpt2_lightning.report.page import write_bytes
from gpt2_lightning.report.record import OVER

__all__ = ["write_board"]

LOGGED = {
    "val/cross_entropy": "nats a token of the last validation",
    "val/perplexity": "of the last validation",
    "speed/tokens_per_second": "at the last logged step",
}
KINDS = {bool: "bool", int: "number", float: "number", type(None): "none"}  # what values are to TensorBoard; others are text
HUMAN = "generation/human/"
TAIL = 2**16
EMPTIED = 16  # files of a study that are kept
OF_TRIAL = "events.out.tfevents.9999999999.trial"  # behind all that a training writes, as TensorBoard reads them
CHARTS: Layout = {
    "study": {
        "best so far": ["study/best/"],
        "trials by state": [f"study/{state}$" for state in OVER],
        "slots in use": ["study/slots_in_use$"],
    }
}
Trial = dict[str, Any]


class Results(NamedTuple):
    """What came out of a trial by tag: its ``own``, and the last that its training has ``logged`` in its run."""

    own: dict[str, float]
    logged: dict[str, float]


def write_board(record: dict[str, Any], folder: Path) -> None:
    """Write all of it for the study in the folder, whose record it is; raises OSError."""
    ended = [trial for trial in record["trials"] if trial["state"] in OVER]
    results = {trial["name"]: trial_results(trial, record, folder) for trial in ended}
    kinds = parameters(ended)
    for trial in ended:
        write_trial(trial, folder, record["study"], results[trial["name"]], kinds)
    write_study(record, folder, results, kinds)


def parameters(trials: list[Trial]) -> dict[str, bool]:
    """The keys that were searched, and ``state``; whether each is shown as text, as it is where not all values are alike."""
    keys = dict.fromkeys(key for trial in trials for key in point(trial))
    kinds = {key: {KINDS.get(type(of[key]), "text") for of in map(point, trials) if key in of} for key in keys}
    return {key: of not in ({"number"}, {"bool"}, {"none", "number"}) for key, of in kinds.items()}


def point(trial: Trial) -> dict[str, Any]:
    """What a trial was trained and decoded with, of what was searched, and how it ended."""
    decode = trial["outcome"].get("decode", {}).get("candidate", {})
    failure = {"failure": trial["class"]} if trial["state"] == "failed" else {}
    return {**trial["point"], **decode, "state": trial["state"], **failure}


def shown(trial: Trial, kinds: dict[str, bool]) -> dict[str, Value]:
    """A trial's parameters; a number that it lacks is absent."""
    values = {key: value for key, value in point(trial).items() if value is not None or kinds[key]}
    return {key: as_text(value) if kinds[key] else value for key, value in values.items()}


def as_text(value: Any) -> str:
    """A value as text."""
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def trial_results(trial: Trial, record: dict[str, Any], folder: Path) -> Results:
    """The objectives, the first of validation as ``val/best``, what was decoded, and what the training has logged."""
    values, judged = trial["values"], [name for name in record["objectives"] if name.startswith("val/")]
    found = {"val/best" if name in judged[:1] else f"objective/{name}": value for name, value in values.items()}
    measures = trial["outcome"].get("decode", {}).get("measures", {})
    found |= {tag: value for tag, value in measures.items() if not tag.startswith(HUMAN)}
    logged = last_logged(folder / trial["name"] / "metrics.jsonl")
    if not logged and "val/cross_entropy" in values:
        found |= {"val/cross_entropy": values["val/cross_entropy"], "val/perplexity": perplexity(values["val/cross_entropy"])}
    return Results({tag: float(v) for tag, v in found.items() if tag not in logged and math.isfinite(v)}, logged)


def last_logged(path: Path) -> dict[str, float]:
    """The last value of each metric that a training has logged and that is a result; empty where it has logged nothing."""
    found: dict[str, float] = {}
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        for line in file.read().splitlines():
            with suppress(ValueError):
                row = json.loads(line)
                found |= {tag: float(v) for tag, v in row.items() if is_result(tag)}
    return found


def is_result(tag: str) -> bool:
    """Whether a metric of a training is shown in a trial's row; what people wrote is the same in all."""
    return tag in LOGGED or (tag.startswith("generation/") and not tag.startswith(HUMAN))


def columns(results: dict[str, Results], record: dict[str, Any]) -> dict[str, str]:
    """The tags of the results that any trial has, the objectives first, and what each is."""
    whats = {"val/best": f"the best of all validations: {', '.join(record['objectives'])}"}
    whats |= {f"objective/{name}": f"what trials are judged by: {way}" for name, way in
              zip(record["objectives"], record["directions"], strict=True)}  # fmt: skip
    whats |= LOGGED
    found = list(dict.fromkeys(tag for of_trial in results.values() for tag in (*of_trial.own, *of_trial.logged)))
    order = [tag for tag in whats if tag in found] + sorted(tag for tag in found if tag not in whats)
    return {tag: whats.get(tag, "of text decoded as is best") for tag in order}


def write_trial(trial: Trial, folder: Path, study: str, results: Results, kinds: dict[str, bool]) -> None:
    """A trial's row, and those of its results that its training has not logged."""
    began, ended = seconds(trial["started"]), seconds(trial["ended"])

    def write(board: Board) -> None:
        board.session(f"{trial['name']} ({study})", shown(trial, kinds), trial["state"], began, ended)
        board.scalars(results.own, trial["steps"])

    write_bytes(folder / trial["name"] / "tensorboard" / OF_TRIAL, events(write, ended))


def write_study(record: dict[str, Any], folder: Path, results: dict[str, Results], kinds: dict[str, bool]) -> None:
    """The study's run: the columns of the HParams tab, and how the study went."""
    trials = record["trials"]
    latest = max((seconds(trial[at]) for trial in trials for at in ("started", "ended")), default=0.0)
    rows = [shown(trial, kinds) for trial in trials if trial["state"] in OVER]
    domains = {key: [row[key] for row in rows if key in row] for key in kinds}

    def write(board: Board) -> None:
        board.layout(CHARTS)
        if rows:
            began = min(seconds(trial["started"]) for trial in trials)
            board.experiment({key: values for key, values in domains.items() if values}, columns(results, record), began)
        for place, scalars in progress(record):
            board.scalars(scalars, place)

    path = folder / "study" / f"events.out.tfevents.{int(latest):010d}.study"
    write_bytes(path, events(write, latest, purge_step=0))
    empty_others(path)


def empty_others(path: Path) -> None:
    """Earlier files of the study hold nothing any more; a page that is open stands in one, and is lost when that is gone."""
    others = sorted(set(path.parent.glob("events.out.tfevents.*.study")) - {path}, reverse=True)
    for other in others[:EMPTIED]:
        write_bytes(other, events(lambda board: None, 0.0))
    for other in others[EMPTIED:]:
        other.unlink(missing_ok=True)


def progress(record: dict[str, Any]) -> list[tuple[int, dict[str, float]]]:
    """At each trial's number: the best values so far, the trials up to it by state, and how many ran when it started."""
    own = sorted((t for t in record["trials"] if t["place"] is not None), key=lambda t: t["place"])
    states, best, found = Counter[str](), dict[str, float](), []
    for trial in own:
        states[trial["state"]] += 1
        if trial["state"] == "complete" and not trial["outcome"].get("broken"):
            for name, way in zip(record["objectives"], record["directions"], strict=True):
                better = max if way == "maximize" else min
                if name in trial["values"]:
                    best[name] = better(best.get(name, trial["values"][name]), trial["values"][name])
        scalars = {f"study/best/{name}": value for name, value in best.items()}
        scalars |= {f"study/{state}": float(states[state]) for state in OVER}
        found.append((trial["place"], scalars | {"study/slots_in_use": slots_in_use(trial, record["trials"])}))
    return found


def slots_in_use(trial: Trial, trials: list[Trial]) -> float:
    """How many trials ran when this one started, itself among them."""
    start = seconds(trial["started"])
    ends = [(seconds(t["started"]), seconds(t["ended"]) if t["ended"] else math.inf) for t in trials if t["started"]]
    return float(sum(began <= start < ended or began == start for began, ended in ends))


def seconds(at: str | None) -> float:
    """A time of the record in seconds of the epoch; 0 where there is none."""
    return datetime.fromisoformat(at).timestamp() if at else 0.0
