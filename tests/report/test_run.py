"""The report of a run and of several, the words of the command, and the lists."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpt2_lightning.__main__ import main
from gpt2_lightning.lock import Lock
from gpt2_lightning.report import listing
from tests.report.folders import CE, HOSTILE, mixed, run, study, trial

RUNS = Path("outputs/runs")


@pytest.fixture(autouse=True)
def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five megabytes less to write for each of these pages."""
    monkeypatch.setattr("gpt2_lightning.report.command.drawing_code", lambda: "/* plotly */")


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main([*words]) == status
    out, err = capsys.readouterr()
    return out if status == 0 else err


def test_a_run_s_report_has_result_curves_samples_settings_and_commands(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(RUNS / "a/20260101-000000", samples="older")
    run(RUNS / "a/20260102-000000", samples="To be")
    folder = RUNS / "a/20260102-000000"
    assert said(capsys, "report", "run=a").split() == [f"{folder}/report/index.html", f"{folder}/report/report.md"]
    text = (folder / "report/report.md").read_text()
    assert "Best validation: 2.625 nats a token; the run is finished." in text
    values = "a/20260102-000000 | finished | 5,184 | 2.625 | 3.5 | 40 | 2.625 | 40 of 40 | 2,560 | 1 min 01 s | 1,025 | 256 MiB"
    assert f"| {values} |" in text
    assert "```text\nTo be\n```" in text and "older" not in text
    assert f"python -m gpt2_lightning generate run={folder} prompt='To be, or'" in text
    assert "optimizer:\n  lr: 0.01" in text
    assert sorted(p.stem for p in (folder / "report").glob("*.png")) == ["gradient-norm", "learning-rate", "loss", "speed"]


def test_runs_side_by_side_show_where_they_differ(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(RUNS / "a/1", optimizer={"lr": 0.01})
    run(RUNS / "b/2", optimizer={"lr": 0.02}, finished=False, steps=20)
    (index, twin) = said(capsys, "report", f"run=a,{RUNS}/b/2").split()
    assert Path(index) == Path("outputs/reports/1+2/index.html")
    text = Path(twin).read_text()
    assert "| optimizer.lr | 0.01 | 0.02 |" in text and "run.name" not in text.split("## What differs")[1].split("##")[0]
    assert "b/2 | unfinished" in text and "config=outputs/runs/b/2/config.yaml run.id=2    # go on" in text
    (index, _) = said(capsys, "report", "run=a,b", "out=there").split()
    assert Path(index) == Path("there/index.html")


def test_a_run_that_has_just_begun_has_a_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(RUNS / "a/1", steps=0, finished=False)
    (folder / "metrics.jsonl").write_bytes(b'{"step": 5, "tok')
    (folder / "samples.txt").unlink()
    _, twin = said(capsys, "report", "run=a").split()
    text = Path(twin).read_text()
    assert "There is no validation yet." in text and text.count("Nothing to draw") == 4 and "There are no samples." in text


def test_samples_and_settings_of_a_run_are_only_text(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(RUNS / "a/1", samples=HOSTILE, data={"path": HOSTILE})
    index, _ = said(capsys, "report", "run=a").split()
    html = Path(index).read_text()
    assert "<img" not in html and html.count("&lt;img src=x onerror") == 2


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "study (study = ''): or run must be given. Give one of study=NAME, run=NAME and run=NAME,NAME"),
        (["study=a", "run=a"], 2, "study (study = a): excludes run."),
        (["stdy=a"], 2, "argument of report (argument = stdy=a): is not known. Did you mean study?"),
        (["a"], 2, "argument of report (argument = a): is not known. The keys are study, run, outputs, out"),
        (["run="], 2, "run (run = ''): must not be empty"),
        (["run=a,,b"], 2, "run (run = a,,b): must not be empty"),
        (["run=a,a"], 2, "run (run = a,a): names a run twice"),
        (["run=b"], 2, "run (run = b): is not there. There are a"),
        (["run=" + "x" * 300], 2, "is not there. There are a"),
        (["run=b", "outputs=nowhere"], 2, "There are no runs in 'nowhere' yet"),
        (["study=b"], 5, "study (study = b): has no study.json. There are lr"),
        (["study=b", "outputs=nowhere"], 5, "There are no studies in 'nowhere' yet"),
    ],
)  # fmt: skip
def test_words_that_are_wrong(
    words: list[str], status: int, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(RUNS / "a/1")
    study(here / "outputs/sweeps/lr", [])
    error = said(capsys, "report", *words, status=status)
    assert message in error and error.count("\n") == 1
    assert list(here.rglob("index.html")) == []


def test_a_study_is_found_by_name_and_by_path(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(here / "outputs/sweeps/lr", [trial(0)])
    for word in ("study=lr", "study=outputs/sweeps/lr"):
        assert said(capsys, "report", word).split()[0] == "outputs/sweeps/lr/report/index.html"
    (here / "outputs/sweeps/lr/best.yaml").write_text("")
    said(capsys, "report", "study=lr", "out=page")
    assert "python -m gpt2_lightning train best=lr\n" in Path("page/report.md").read_text()


def table(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


def test_runs_are_listed_with_state_best_and_steps(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    for i, (name, finished, steps) in enumerate([("a/1", True, 40), ("a/2", False, 20), ("b/3", False, 10)]):
        folder = run(RUNS / name, finished=finished, steps=steps)
        for path in folder.iterdir():
            os.utime(path, (now - 7200 * (i + 1),) * 2)
    holder = Lock(RUNS / "b/3")
    child = os.fork()
    if child == 0:
        holder.acquire()
        time.sleep(60)
        os._exit(0)
    try:
        while not (RUNS / "b/3/.lock/1").exists():
            time.sleep(0.01)
        found = table(said(capsys, "list", "runs", "sort=name"))
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert [row[:4] for row in found] == [
        ["name", "id", "state", "best"], ["a", "1", "finished", "2.6250"], ["a", "2", "unfinished", "2.7500"],
        ["b", "3", "running", "3.0000"],
    ]  # fmt: skip
    assert [row[4].strip() for row in found[1:3]] == ["2 h", "4 h"] and found[2][6].strip() == "20 of 40"
    assert [row[1] for row in table(said(capsys, "list", "runs"))[1:]] == ["3", "1", "2"], "the newest first"
    assert [row[0] + row[1] for row in table(said(capsys, "list", "runs", "sort=best", "n=2"))[1:]] == ["a1", "a2"]
    assert [row[1] for row in table(said(capsys, "list", "runs", "name=[!a]*"))[1:]] == ["3"]
    assert [row[1] for row in table(said(capsys, "list", "runs", "state=finished"))[1:]] == ["1"]
    assert "none of 3 runs" in said(capsys, "list", "runs", "state=running")


def test_studies_are_listed_with_objective_and_trials(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(here / "outputs/sweeps/lr", mixed(5))
    values: list[Any] = [{"val/accuracy": 0.25}, {"val/accuracy": 0.5}]
    up = [trial(i, value=v) for i, v in enumerate(values)]
    study(here / "outputs/sweeps/up", up, n_trials=4, objectives=["val/accuracy"], directions=["maximize"])
    (here / "outputs/sweeps/begun").mkdir()
    found = table(said(capsys, "list", "studies", "sort=name"))
    assert [row[:4] for row in found] == [
        ["name", "objective", "state", "best"], ["begun", "-", "unfinished", "-"],
        ["lr", CE, "finished", f"{min(t['values'][CE] for t in mixed(5) if t['values']):.4f}"],
        ["up", "val/accuracy", "unfinished", "0.5000"],
    ]  # fmt: skip
    assert [row[-1].strip() for row in found[2:]] == ["5 of 5", "2 of 4"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sort=x", "sort (sort = x): must be one of age, best, name, size"),
        ("state=x", "state (state = x): must be one of running, finished, unfinished"),
        ("n=0", "n (n = 0): must be an integer, at least 1"),
        ("srt=age", "argument of list runs (argument = srt=age): is not known. Did you mean sort?"),
        ("age", "argument of list runs (argument = age): is not known. The keys are sort, name, state, n, outputs"),
    ],
)
def test_words_of_a_list_that_are_wrong(word: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in said(capsys, "list", "runs", word, status=2)


def test_without_runs_that_is_said_and_groups_are_listed_as_before(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "list", "runs") == "no runs in 'outputs'\n"
    assert said(capsys, "list", "studies", "outputs=x") == "no studies in 'x'\n"
    assert said(capsys, "list", "schedule").startswith("schedule\n  ")


def test_three_hundred_runs_are_listed_without_torch_in_a_second(here: Path) -> None:
    for i in range(300):
        run(RUNS / f"a/{i:03d}", finished=i % 2 == 0)
    began = time.process_time()
    found = sorted(listing.runs(Path("outputs")), key=listing.KEYS["name"])
    assert len(found) == 300 and time.process_time() - began < 1
    code = "import sys; from gpt2_lightning.__main__ import main; main(['list', 'runs', 'n=3']); "
    code += "assert not {'torch', 'plotly', 'matplotlib', 'optuna'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 4


def test_a_name_in_a_list_moves_no_cursor(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(RUNS / "a\x1b[2J/1")
    assert "a?[2J" in said(capsys, "list", "runs")


def test_result_files_that_are_damaged_do_not_end_a_list(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("{", "[]", json.dumps({"best": None}), json.dumps({"best": {CE: "x"}})):
        folder = run(RUNS / f"a/{len(list(RUNS.glob('a/*')))}")
        (folder / "result.json").write_text(text)
    assert len(said(capsys, "list", "runs").splitlines()) == 5
