"""What TensorBoard shows of a study, asked of TensorBoard itself: a row for every trial that has ended, no training touched."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard import program
from tensorboard.backend import application
from tensorboard.backend.event_processing.data_ingester import LocalDataIngester
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from werkzeug.test import Client

from gpt2_lightning import study_board
from gpt2_lightning.board import open_board
from gpt2_lightning.study_board import OF_TRIAL, progress, write_board
from tests.lab import finish
from tests.sweep.stage import Stage

CE = "val/cross_entropy"
BEGAN = datetime(2026, 11, 27, 12)
Trial = dict[str, Any]


class Page:
    """TensorBoard over a folder, as its page asks it."""

    def __init__(self, folder: Path) -> None:
        board = program.TensorBoard()
        board.configure(argv=["", "--logdir", str(folder), "--load_fast", "false", "--reload_interval", "0"])
        self.ingester = LocalDataIngester(board.flags)
        self.ingester._multiplexer.AddRunsFromDirectory(str(folder))
        self.ingester._multiplexer.Reload()
        provider, multiplexer = self.ingester.data_provider, self.ingester.deprecated_multiplexer
        wsgi = application.TensorBoardWSGIApp(
            board.flags, board.plugin_loaders, provider, board.assets_zip_provider, multiplexer
        )
        self.client = Client(wsgi)

    def runs(self) -> list[str]:
        return self.client.get("/data/runs").json

    def ask(self, what: str, **more: Any) -> Any:
        return self.client.post(f"/data/plugin/hparams/{what}", json={"experimentName": "", **more}).json

    def experiment(self) -> dict[str, Any]:
        found = self.ask("experiment")
        return {info["name"]: info for info in found.get("hparamInfos", [])} | {
            "metrics": [info["name"]["tag"] for info in found.get("metricInfos", [])]
        }

    def rows(self) -> dict[str, Trial]:
        every = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        asked = {"allowedStatuses": every, "colParams": [], "startIndex": 0, "sliceSize": 1000}
        found = {}
        for group in self.ask("session_groups", **asked)["sessionGroups"]:
            metrics = {metric["name"]["tag"]: metric["value"] for metric in group.get("metricValues", [])}
            (session,) = group["sessions"]
            found[group["name"]] = {"hparams": group["hparams"], "metrics": metrics, "run": session["name"]} | {
                "status": session["status"]
            }
        return found


def trial(place: int | None, state: str = "complete", value: float | None = None, **more: Any) -> Trial:
    """A trial of a record; they start one minute apart and take 90 s."""
    values = {CE: value} if value is not None else {}
    start = BEGAN + timedelta(minutes=place or 0)
    ended = None if state in ("running", "queued") else (start + timedelta(seconds=90)).isoformat()
    found = {"name": f"trial-{place:03d}" if place is not None else "confirm-best-1", "place": place, "state": state}
    found |= {"class": "diverged" if state == "failed" else "", "values": values, "beside": {}, "steps": 20}
    found |= {"point": {"loss.beta": 0.01 * (place or 0), "optimizer.lr": 1e-3}, "outcome": {"state": state}}
    return found | {"started": start.isoformat(), "ended": ended} | more


def record(*trials: Trial, objectives: tuple[str, ...] = (CE,), directions: tuple[str, ...] = ("minimize",)) -> dict[str, Any]:
    return {"study": "s", "objectives": list(objectives), "directions": list(directions), "trials": list(trials)}


def trained(folder: Path, name: str, values: list[float], **more: float) -> None:
    """What the training of a trial leaves: lines, and the same as events."""
    (folder / name).mkdir(parents=True)
    board = open_board(folder / name / "tensorboard")
    with (folder / name / "metrics.jsonl").open("w") as file:
        for step, value in enumerate(values, 1):
            row = {CE: value, "val/perplexity": math.exp(value), "speed/tokens_per_second": 1000.0 * step, **more}
            file.write(json.dumps({"step": step, "tokens": step, **row}) + "\n")
            board.scalars(row, step)
    board.close()


def digests(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Path]:
    """Write a record's board where trials 0 and 1 have trained."""

    def make(asked: dict[str, Any]) -> Path:
        folder = tmp_path / "outputs/sweeps/s"
        if not folder.exists():
            trained(folder, "trial-000", [4.0, 3.0, 3.5])
            trained(folder, "trial-001", [4.5])
        write_board(asked, folder)
        return folder

    return make


MIXED = (
    trial(0, value=3.0), trial(1, "pruned", 4.5), trial(2, "failed"), trial(3, "running"), trial(4, "queued"),
    trial(5, value=2.0, outcome={"state": "complete", "decode": {
        "candidate": {"sampler.k": 8}, "measures": {"generation/zipf": 1.5, "generation/human/zipf": 1.0}}}),
    trial(None, value=3.1),
)  # fmt: skip


def test_every_trial_that_has_ended_has_a_row_in_the_run_of_its_curves(study: Callable[..., Path]) -> None:
    page = Page(study(record(*MIXED)))
    rows = page.rows()
    assert set(rows) == {f"{name} (s)" for name in ("trial-000", "trial-001", "trial-002", "trial-005", "confirm-best-1")}
    assert {name: (row["hparams"]["state"], row["status"]) for name, row in rows.items()} == {
        "trial-000 (s)": ("complete", "STATUS_SUCCESS"),
        "trial-001 (s)": ("pruned", "STATUS_SUCCESS"),
        "trial-002 (s)": ("failed", "STATUS_FAILURE"),
        "trial-005 (s)": ("complete", "STATUS_SUCCESS"),
        "confirm-best-1 (s)": ("complete", "STATUS_SUCCESS"),
    }
    assert rows["trial-000 (s)"]["run"] == "trial-000/tensorboard"
    metrics = {"val/best": 3.0, CE: 3.5, "val/perplexity": math.exp(3.5), "speed/tokens_per_second": 3000}
    assert rows["trial-000 (s)"]["metrics"] == pytest.approx(metrics)
    elsewhere = {"val/best": 2.0, CE: 2.0, "val/perplexity": math.exp(2.0), "generation/zipf": 1.5}
    assert rows["trial-005 (s)"]["metrics"] == pytest.approx(elsewhere)
    assert rows["trial-002 (s)"]["metrics"] == {} and rows["trial-002 (s)"]["hparams"]["failure"] == "diverged"
    assert "sampler.k" not in rows["trial-000 (s)"]["hparams"] and rows["trial-005 (s)"]["hparams"]["sampler.k"] == 8
    assert page.experiment()["metrics"] == [
        "val/best", CE, "val/perplexity", "speed/tokens_per_second", "generation/zipf"
    ]  # fmt: skip
    assert sorted(page.runs()) == ["confirm-best-1/tensorboard", "study"] + [f"trial-{i:03d}/tensorboard" for i in (0, 1, 2, 5)]


def test_trials_that_have_not_ended_are_left_alone(study: Callable[..., Path]) -> None:
    folder = study(record(*MIXED))
    assert not (folder / "trial-003").exists() and not (folder / "trial-004").exists()


def test_seen_from_above_names_are_those_of_the_study(study: Callable[..., Path]) -> None:
    page = Page(study(record(*MIXED)).parents[1])
    assert {"sweeps/s/study", "sweeps/s/trial-000/tensorboard"} <= set(page.runs())
    assert set(page.rows()) == set(Page(study(record(*MIXED))).rows())


def test_curves_stay_those_of_the_training(study: Callable[..., Path]) -> None:
    board = EventAccumulator(str(study(record(*MIXED)) / "trial-000/tensorboard")).Reload()
    assert [e.value for e in board.Scalars(CE)] == [4.0, 3.0, 3.5]
    assert "hp_metric" not in board.Tags()["scalars"]


def test_what_a_training_measures_of_its_text_is_not_measured_twice(tmp_path: Path) -> None:
    trained(tmp_path, "trial-000", [4.0, 3.0], **{"generation/zipf": 9.0})
    decode = {"candidate": {"sampler.k": 8}, "measures": {"generation/zipf": 1.5, "generation/length": 24.0}}
    write_board(record(trial(0, value=3.0, outcome={"decode": decode})), tmp_path)
    board = EventAccumulator(str(tmp_path / "trial-000/tensorboard")).Reload()
    assert [e.value for e in board.Scalars("generation/zipf")] == [9.0, 9.0]
    assert [e.value for e in board.Scalars("generation/length")] == [24.0]


def test_written_again_nothing_changes_and_written_with_more_only_what_has_to(study: Callable[..., Path]) -> None:
    folder = study(record(*MIXED[:2]))
    before = digests(folder)
    study(record(*MIXED[:2]))
    assert digests(folder) == before
    study(record(*MIXED))
    after = digests(folder)
    assert set(before) <= set(after)
    old, new = (folder / path for path in sorted(path for path in after if path.startswith("study/")))
    assert old.stat().st_size < 100 < new.stat().st_size
    assert all(after[path] == before[path] for path in before if not path.startswith("study/"))
    assert [path for path in after if "partial" in path] == []


def test_a_page_that_is_open_is_not_shown_the_study_twice(study: Callable[..., Path]) -> None:
    folder = study(record(*MIXED[:1]))
    board = EventAccumulator(str(folder / "study")).Reload()
    study(record(*MIXED))
    board.Reload()
    assert [e.step for e in board.Scalars("study/complete")] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("values", "kind", "shown"),
    [
        ((1, 2.5), "DATA_TYPE_FLOAT64", (1, 2.5)),
        ((True, False), "DATA_TYPE_BOOL", (True, False)),
        (("adamw", "sgd"), "DATA_TYPE_STRING", ("adamw", "sgd")),
        ((8, None), "DATA_TYPE_FLOAT64", (8, None)),
        (("x", None), "DATA_TYPE_STRING", ("x", "none")),
        ((None, None), "DATA_TYPE_STRING", ("none", "none")),
        (("x", 1), "DATA_TYPE_STRING", ("x", "1")),
        ((True, 1), "DATA_TYPE_STRING", ("true", "1")),
        (([0.9, 0.95], [0.9, 0.99]), "DATA_TYPE_STRING", ("[0.9, 0.95]", "[0.9, 0.99]")),
        (("<script>", "</td>"), "DATA_TYPE_STRING", ("<script>", "</td>")),
    ],
)
def test_parameters_are_numbers_where_they_can_be(
    tmp_path: Path, values: tuple[Any, Any], kind: str, shown: tuple[Any, Any]
) -> None:
    write_board(record(*(trial(i, value=1.0, point={"key": v}) for i, v in enumerate(values))), tmp_path)
    page = Page(tmp_path)
    assert page.experiment()["key"]["type"] == kind
    assert tuple(row["hparams"].get("key") for _, row in sorted(page.rows().items())) == shown


def test_several_objectives_are_columns_of_their_own(tmp_path: Path) -> None:
    both = {"val/cross_entropy": 2.0, "seconds": 7.0}
    asked = record(trial(0, values=both), objectives=(CE, "seconds"), directions=("minimize", "minimize"))
    write_board(asked, tmp_path)
    assert Page(tmp_path).rows()["trial-000 (s)"]["metrics"]["objective/seconds"] == 7.0
    assert progress(asked)[0][1]["study/best/seconds"] == 7.0


def test_a_study_without_any_trial_has_a_board(tmp_path: Path) -> None:
    write_board(record(), tmp_path)
    page = Page(tmp_path)
    assert page.runs() == ["study"] and page.rows() == {}


# how a study went
states = st.sampled_from(["complete", "pruned", "failed", "running"])


@given(st.lists(st.tuples(states, st.floats(0, 9), st.booleans())), st.sampled_from(["minimize", "maximize"]))
def test_the_best_so_far_is_that_of_complete_trials_within_the_constraints(
    asked: list[tuple[str, float, bool]], direction: str
) -> None:
    trials = [
        trial(i, state, value, outcome={"broken": ["seconds"] if broken else []})
        for i, (state, value, broken) in enumerate(asked)
    ]
    found = progress(record(*reversed(trials), directions=(direction,)))
    assert [place for place, _ in found] == list(range(len(asked)))
    better = min if direction == "minimize" else max
    for place, scalars in found:
        fit = [value for state, value, broken in asked[: place + 1] if state == "complete" and not broken]
        assert scalars.get(f"study/best/{CE}") == (better(fit) if fit else None)
        for state in ("complete", "pruned", "failed"):
            assert scalars[f"study/{state}"] == sum(s == state for s, _, _ in asked[: place + 1])


def test_slots_in_use_are_the_trials_that_ran_when_one_started() -> None:
    at = [(0, 100), (0, 50), (50, 80), (60, None), (200, 210)]
    trials = [
        trial(i, started=(BEGAN + timedelta(seconds=a)).isoformat(), ended=b and (BEGAN + timedelta(seconds=b)).isoformat())
        for i, (a, b) in enumerate(at)
    ]
    assert [scalars["study/slots_in_use"] for _, scalars in progress(record(*trials))] == [2, 2, 2, 3, 2]


# what it costs
def test_two_hundred_trials_have_two_hundred_rows(tmp_path: Path) -> None:
    asked = record(*(trial(i, "failed" if i % 7 == 3 else "complete", 2.0 + 1 / (i + 1)) for i in range(200)))
    for i in range(0, 200, 2):
        trained(tmp_path, f"trial-{i:03d}", [4.0 - 0.01 * step for step in range(40)])
    write_board(asked, tmp_path)
    assert len(Page(tmp_path).rows()) == 200


def test_no_torch_is_needed() -> None:
    code = "import sys, gpt2_lightning.study_board; assert not {'torch', 'tensorflow', 'optuna'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# a study that is run
def test_a_study_leaves_a_board_with_all_its_trials(tmp_path: Path) -> None:
    stage = Stage(
        tmp_path, "journal", "sweep.report=true", "sweep.n_trials=5", fake={"trial-001": "diverge", "trial-002": "error"}
    )
    assert stage.run() == 0, stage.said()
    rows = Page(stage.study).rows()
    table = {f"{line['trial']} (study)": line["state"] for line in stage.table()}
    assert {name: row["hparams"]["state"] for name, row in rows.items()} == table and len(table) == 5
    assert sorted(table.values()) == ["complete"] * 3 + ["failed"] * 2
    assert (stage.study / "trial-001/tensorboard" / OF_TRIAL).exists()


def test_a_study_that_is_stopped_leaves_a_board_and_one_that_cannot_is_no_failure(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "stopped", "journal", "sweep.report=true", fake={"ms": 30})
    agent = stage.start("sweep.slots=2")
    stage.wait_for(lambda: (stage.study / "trials.csv").exists() and any(t["state"] == "complete" for t in stage.table()))
    os.kill(agent, signal.SIGINT)
    assert finish(agent, 60) == 130
    rows = Page(stage.study).rows()
    assert 1 <= len(rows) < 8

    def broken() -> None:
        def refuse(*_: Any) -> None:
            raise PermissionError("not here")

        study_board.write_board = refuse

    other = Stage(tmp_path / "broken", "journal", "sweep.report=true", "sweep.n_trials=1")
    assert other.run(broken=broken) == 0 and "warning: the report is not written: not here" in other.said()
