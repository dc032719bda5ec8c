"""The dashboards: what the mirror shows of a study that is running, who may see the pages, and how they end."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta

from gpt2_lightning.__main__ import main
from gpt2_lightning.servers import Mirror
from tests.report.folders import BETA, CE, LR, mixed, study, trial


@pytest.fixture
def folder(here: Path) -> Path:
    return study(
        here / "outputs/sweeps/fine", [trial(0), trial(1, "pruned"), trial(2, "failed", reason="no"), trial(3, "running")]
    )


def mirrored(folder: Path, artifacts: Path) -> Mirror:
    artifacts.mkdir()
    found = Mirror(folder, FileSystemArtifactStore(str(artifacts)))
    found.look()
    return found


def told(mirror: Mirror) -> list[tuple[Any, ...]]:
    return [(t.number, t.state.name, t.user_attrs["name"], t.values, t.intermediate_values) for t in mirror.study.trials]


def test_the_mirror_shows_every_trial_and_follows_a_running_study(folder: Path, here: Path) -> None:
    mirror = mirrored(folder, here / "artifacts")
    record = json.loads((folder / "study.json").read_text())
    reports = [{int(step): value for step, value in one["reports"].items()} for one in record["trials"]]
    names = [one["name"] for one in record["trials"]]
    values = list(record["trials"][0]["values"].values())
    pruned = [list(reports[1].values())[-1]]
    before = [(0, "COMPLETE", names[0], values, reports[0]), (1, "PRUNED", names[1], pruned, reports[1]),
              (2, "FAIL", names[2], None, {}), (3, "RUNNING", names[3], None, {})]  # fmt: skip
    assert told(mirror) == before
    record["trials"][3:] = [trial(3), trial(4, "running"), trial(5, "queued")]
    (folder / "study.json").write_text(json.dumps(record))
    mirror.look()
    after = told(mirror)
    assert after[:3] == before[:3]
    assert after[3][:4] == (3, "COMPLETE", names[3], list(record["trials"][3]["values"].values()))
    assert [one[1:3] for one in after[4:]] == [("RUNNING", "trial-004")]


def test_a_trial_is_shown_with_its_settings_its_reason_and_its_files(folder: Path, here: Path) -> None:
    mirror = mirrored(folder, here / "artifacts")
    first, _, failed, _ = mirror.study.trials
    assert first.params == trial(0)["params"] and set(first.params) == {LR, BETA}
    assert (failed.user_attrs["reason"], failed.user_attrs["class"]) == ("no", "diverged")
    (artifact,) = get_all_artifact_meta(first, storage=mirror.storage)
    assert artifact.filename == "samples.txt"
    assert (first.datetime_start, first.datetime_complete) == tuple(
        datetime.fromisoformat(trial(0)[at]) for at in ("started", "ended")
    )


def test_the_mirror_of_several_objectives_has_their_values(here: Path) -> None:
    names = [CE, "seconds"]
    one = trial(0, value={"seconds": 9.0, CE: 2.0})
    folder = study(here / "s", [one], objectives=names, directions=["minimize", "maximize"])
    mirror = mirrored(folder, here / "artifacts")
    assert mirror.study.trials[0].values == [2.0, 9.0]
    assert [d.name for d in mirror.study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert mirror.study.metric_names == names


def test_the_mirror_opens_nothing_that_the_study_writes_to(folder: Path, here: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    (folder / "journal.log").write_bytes(b"not to be read")
    (folder / "journal.log").chmod(0)
    mirrored(folder, here / "artifacts").look()
    (folder / "journal.log").unlink()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["study=fin"], 5, "There are fine"),
        (["run=none"], 2, "There are no runs"),
        (["outputs=elsewhere"], 2, "is not there"),
        (["study=fine", "run=one"], 2, "excludes run"),
        (["prot=1"], 2, "Did you mean port?"),
        (["colour=1"], 2, "The keys are study, run, outputs, port, host, allow_others"),
        (["study"], 2, "is not known"),
        (["port=x"], 2, "must be an integer"),
        (["port=65535"], 2, "at most 65534"),
        (["host=0.0.0.0"], 7, "Set allow_others=true"),
        (["host=0.0.0.0", "allow_others=yes"], 2, "must be one of true, false"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, message: str
) -> None:
    assert main(["dashboard", *words]) == status
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_port_in_use_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["dashboard", "study=fine", f"port={port}"]) == 7
    said = capsys.readouterr().err
    assert f"port (port = {port}): cannot be listened on at 127.0.0.1: Address already in use. Set port" in said


class Served:
    """The command as a process, once it has printed what to open."""

    def __init__(self, port: int, *words: str) -> None:
        command = [sys.executable, "-m", "gpt2_lightning", "dashboard", f"port={port}", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("Ctrl-C"):
                break

    def end(self, number: int) -> int:
        """Its exit status after a signal."""
        self.process.send_signal(number)
        return self.process.wait(20)


def free_ports() -> int:
    """The first of two ports nobody listens on."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            try:
                other.bind(("127.0.0.1", one.getsockname()[1] + 1))
            except OSError:
                continue
            return int(one.getsockname()[1])


def ask(port: int, path: str, data: bytes | None = None) -> Any:
    request = Request(f"http://127.0.0.1:{port}/{path}", data, {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as reply:
        return json.load(reply)


@pytest.fixture
def served(here: Path) -> Iterator[tuple[int, Served]]:
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is an extra")
    study(here / "outputs/sweeps/fine", mixed(10))
    port = free_ports()
    found = Served(port, "study=fine")
    yield port, found
    found.process.kill()
    found.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_both_pages_answer_and_end_together(served: tuple[int, Served], number: int, status: int) -> None:
    port, found = served
    assert [line.split()[-1] for line in found.said[:2]] == [
        f"http://127.0.0.1:{port}/", f"http://127.0.0.1:{port + 1}/dashboard/studies/0"]  # fmt: skip
    assert "fine" in json.dumps(ask(port, "data/environment"))
    (summary,) = ask(port + 1, "api/studies")["study_summaries"]
    assert summary["study_name"] == "fine"
    trials = ask(port + 1, "api/studies/0?after=0")["trials"]
    assert [one["state"] for one in trials] == ["Complete", "Pruned", "Complete", "Pruned", "Fail"] * 2
    assert found.end(number) == status
    end = time.monotonic() + 10
    while open_ports(port) and time.monotonic() < end:
        time.sleep(0.1)
    assert open_ports(port) == []


def open_ports(first: int) -> list[int]:
    """Which of the two are listened on."""
    found = []
    for port in (first, first + 1):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                found.append(port)
    return found


CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


def seen(page: str, profile: Path) -> str:
    """The text that a browser shows of a page, some seconds after it was opened."""
    done = subprocess.run(
        [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         f"--user-data-dir={profile}", "--window-size=1400,2000", "--virtual-time-budget=15000", "--dump-dom", page],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return re.sub(r"\s+", " ", re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", done.stdout, flags=re.DOTALL))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
def test_a_browser_shows_the_trials(served: tuple[int, Served], here: Path) -> None:
    port, _ = served
    trials = seen(f"http://127.0.0.1:{port + 1}/dashboard/studies/0/trials", here / "profile")
    assert "10 Trials" in trials and trials.count("Pruned") == 4 and "Best Trial" in trials
    assert "samples.txt" in trials and "name trial-000" in trials


@pytest.mark.slow
def test_tensorboard_has_scalars_charts_texts_and_a_row_for_each_trial(here: Path) -> None:
    words = ["model=nano", "trainer=cpu", "optimizer.lr=choice(1e-3, 2e-3)", "sweep.sampler=grid", "sweep.baseline=false",
             "sweep.name=real", "trainer.max_steps=4", "trainer.val_every=2", "trainer.log_every=1", "data.batch_size=2",
             "data.val_batches=1", "samples.max_new_tokens=4"]  # fmt: skip
    assert subprocess.run([sys.executable, "-m", "gpt2_lightning", *words], capture_output=True).returncode == 0
    port = free_ports()
    served = Served(port, "study=real")
    try:
        runs = [f"trial-00{i}/tensorboard" for i in range(2)]
        tags = ask(port, "data/plugin/scalars/tags")
        for run in runs:
            points = ask(port, f"data/plugin/scalars/scalars?tag=val%2Fcross_entropy&run={run.replace('/', '%2F')}")
            lines = [json.loads(line) for line in (here / "outputs/sweeps/real" / run).with_name("metrics.jsonl").open()]
            logged = [(line["step"], line["val/cross_entropy"]) for line in lines if "val/cross_entropy" in line]
            assert [(step, value) for _, step, value in points] == [(step, pytest.approx(value)) for step, value in logged]
            assert {"train/cross_entropy", "optimizer/update_norm", "speed/tokens_per_second"} <= tags[run].keys()
        charts = json.dumps(ask(port, "data/plugin/custom_scalars/layout"))
        assert "best so far" in charts and "train/cross_entropy" in charts
        texts = ask(port, "data/plugin/text/tags")
        assert all({"config", "command", "samples"} <= {tag.split("/")[0] for tag in texts[run]} for run in runs)
        groups = ask(port, "data/plugin/hparams/session_groups", rows())["sessionGroups"]
        assert sorted(group["name"] for group in groups) == ["trial-000 (real)", "trial-001 (real)"]
        assert sorted(group["hparams"]["optimizer.lr"] for group in groups) == [1e-3, 2e-3]
    finally:
        served.process.kill()
        served.process.wait()


def rows() -> bytes:
    """What TensorBoard's page asks for the rows of its HParams tab with."""
    states = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    return json.dumps(
        {"experimentName": "", "allowedStatuses": states, "colParams": [], "startIndex": 0, "sliceSize": 100}
    ).encode()
