"""The dashboards: a folder of runs or a study in; TensorBoard's and Optuna's pages on loopback out, until Ctrl-C.

Optuna's page shows a mirror of ``study.json``: the study's own storage is neither opened nor locked, and its password not asked
for. One number: 2 s between two looks at the record of a study that is running. Choice not taken: optuna-dashboard on the
storage itself, which writes to it and, with SQLite, holds up those who train.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from socketserver import ThreadingMixIn
from types import FrameType
from typing import Any
from urllib.request import urlopen
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.distributions import json_to_distribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from gpt2_lightning.errors import ConfigError, MachineError, StudyError
from gpt2_lightning.report.command import find_log, find_study
from gpt2_lightning.report.record import read_record
from gpt2_lightning.settings.dashboard import DashboardConfig
from gpt2_lightning.settings.setting import field_names, own_words, read_words
from gpt2_lightning.signals import Interrupted

__all__ = ["Asked", "Mirror", "dashboard", "read_asked", "serve"]

OWN = ("study", "run", "outputs")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOOK_SECONDS, START_SECONDS = 2.0, 60.0
TENSORBOARD = "import sys; from gpt2_lightning.signals import end_with_parent as e; e(int(sys.argv.pop(1))); \
from tensorboard.main import run_main; run_main()"
STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}
SHOWN = ("samples.txt", "config.yaml", "result.json")  # of a trial's folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What to show: a folder for TensorBoard, and the folder of a study for Optuna's page; and where."""

    folder: Path
    study: Path | None
    where: DashboardConfig

    def page(self, port: int) -> str:
        """What to open in a browser."""
        host = self.where.host
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def dashboard(words: list[str]) -> None:
    """Show what the words ask for until Ctrl-C; raises PlatformError."""
    serve(read_asked(words))


def read_asked(words: list[str]) -> Asked:
    """What the words ask for; raises ConfigError and StudyError."""
    options = own_words([*OWN, *field_names(DashboardConfig)], words, "dashboard")
    own = {key: options.pop(key) for key in OWN if key in options}
    where, outputs = DashboardConfig(**read_words(DashboardConfig, options)), Path(own.get("outputs", "outputs"))
    if {"study", "run"} <= own.keys():
        raise ConfigError(
            "study", key="study", value=own["study"], rule="excludes run", remedy="Give one of the two, or neither"
        )
    if "study" in own:
        folder = find_study(own["study"], outputs)
        return Asked(folder=folder, study=folder, where=where)
    folder = find_log(own["run"], outputs) if "run" in own else outputs
    if not folder.is_dir():
        raise ConfigError(
            "output folder", key="outputs", value=str(folder), rule="is not there", remedy="Train something first"
        )
    return Asked(folder=folder, study=None, where=where)


def serve(asked: Asked, stop: threading.Event | None = None) -> None:
    """Show it until a signal; raises MachineError where the ports are taken or the host is open to others."""
    check_host(asked)
    stop = stop or threading.Event()
    with ExitStack() as running:
        running.enter_context(Ended(stop))
        start_tensorboard(asked, running)
        print(f"TensorBoard         {asked.page(asked.where.port)}", flush=True)
        if asked.study is not None:
            print(f"Optuna's dashboard  {start_optuna(asked, asked.study, running)}", flush=True)
        print("Ctrl-C stops them", flush=True)
        stop.wait()


def check_host(asked: Asked) -> None:
    """Raise MachineError for a host that others can reach, unless that is asked for; then warn."""
    if asked.where.host in LOOPBACK:
        return
    if asked.where.allow_others == "false":
        rule = "would be open to everybody who can reach this machine"
        raise MachineError("host", key="host", value=asked.where.host, rule=rule, remedy="Set allow_others=true to allow it")
    print(f"warning: everybody who can reach {asked.where.host} can see these pages; they ask for no password", file=sys.stderr)


class Ended:
    """Sets ``stop`` at SIGINT, the usual end; raises Interrupted for SIGTERM when all is closed."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop, self.number, self.before = stop, 0, {}  # type: ignore[var-annotated]

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal."""
        self.number = number
        self.stop.set()

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.number == signal.SIGTERM:
            raise Interrupted(self.number, "the dashboards are stopped")


def require_port(asked: Asked, port: int) -> None:
    """Raise MachineError where something listens on the port, or none can."""
    family = socket.AF_INET6 if ":" in asked.where.host else socket.AF_INET
    with socket.socket(family) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((asked.where.host, port))
        except OSError as error:
            rule = f"cannot be listened on at {asked.where.host}: {error.strerror or error}"
            raise MachineError("port", key="port", value=port, rule=rule, remedy="Set port to another one") from error


def start_tensorboard(asked: Asked, running: ExitStack) -> None:
    """TensorBoard over the folder, as a process that ends with this one; raises MachineError."""
    require_port(asked, asked.where.port)
    log = running.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    words = [
        "--logdir",
        str(asked.folder),
        "--host",
        asked.where.host,
        "--port",
        str(asked.where.port),
        "--reload_interval",
        "5",
    ]
    command = [sys.executable, "-c", TENSORBOARD, str(os.getpid()), *words]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    running.callback(end, process)
    until = time.monotonic() + START_SECONDS
    while not answers(asked.page(asked.where.port)):
        if process.poll() is not None or time.monotonic() > until:
            log.seek(0)
            last = (log.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]
            raise MachineError("TensorBoard", key="port", value=asked.where.port, rule=f"does not start: {last}")
        time.sleep(0.1)


def answers(page: str) -> bool:
    """Whether a page can be had."""
    with suppress(OSError), urlopen(page, timeout=5) as reply:
        return bool(reply.status == 200)
    return False


def end(process: "subprocess.Popen[bytes]") -> None:
    """Have a process and its children end."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Quiet(WSGIRequestHandler):
    """Answers without a line for each."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Threads(ThreadingMixIn, WSGIServer):
    """A thread a request, none of which holds up the end."""

    daemon_threads = True


def start_optuna(asked: Asked, study: Path, running: ExitStack) -> str:
    """Optuna's page over a mirror of the study's record; returns its address, or how to install it."""
    try:
        from optuna_dashboard import wsgi
    except ModuleNotFoundError:
        return "is not installed: pip install 'gpt2-lightning[dashboard]'"
    require_port(asked, asked.where.port + 1)
    folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
    mirror = Mirror(study, FileSystemArtifactStore(str(folder)))
    mirror.look()
    stopped = threading.Event()
    running.callback(stopped.set)
    threading.Thread(target=repeat, args=(mirror.look, stopped), name="mirror", daemon=True).start()
    pages = wsgi(mirror.storage, artifact_store=mirror.artifacts)
    server = make_server(asked.where.host, asked.where.port + 1, pages, Threads, Quiet)  # type: ignore[arg-type]
    running.callback(server.server_close)
    running.callback(server.shutdown)
    threading.Thread(target=server.serve_forever, name="optuna", daemon=True).start()
    return f"{asked.page(asked.where.port + 1)}dashboard/studies/{mirror.id}"


def repeat(look: Callable[[], None], stopped: threading.Event) -> None:
    """Look again and again; a record that is not there for a moment is looked for later."""
    while not stopped.wait(LOOK_SECONDS):
        with suppress(StudyError):
            look()


class Mirror:
    """A study in memory that follows ``study.json``; files of finished trials are its artifacts."""

    def __init__(self, folder: Path, artifacts: FileSystemArtifactStore) -> None:
        """Read the record; raises StudyError."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.artifacts = folder, artifacts
        record = read_record(folder)
        self.storage, self.objectives = InMemoryStorage(), record["objectives"]
        self.study = optuna.create_study(storage=self.storage, study_name=record["study"], directions=record["directions"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.study.set_metric_names(self.objectives)
        (self.id,) = (s._study_id for s in self.storage.get_all_studies())
        self.ids: dict[str, int] = {}
        self.over: set[str] = set()
        self.seen: tuple[int, int] | None = None

    def look(self) -> None:
        """Take over what is new; raises StudyError."""
        file = (self.folder / "study.json").stat() if (self.folder / "study.json").exists() else None
        mark = (file.st_mtime_ns, file.st_size) if file else None
        if mark is not None and mark == self.seen:
            return
        for trial in read_record(self.folder)["trials"]:
            if trial["name"] not in self.over and trial["state"] != "queued":
                self.take(trial)
        self.seen = mark

    def take(self, trial: dict[str, Any]) -> None:
        """One trial as it is now; its times are its own where it is over when it is first seen."""
        over = trial["state"] != "running"
        files = self.attached(trial) if over else {}
        if trial["name"] not in self.ids:
            self.ids[trial["name"]] = self.storage.create_new_trial(self.id, self.frozen(trial, files))
        else:
            self.follow(trial, self.ids[trial["name"]], files)
        if over:
            self.over.add(trial["name"])

    def follow(self, trial: dict[str, Any], at: int, files: dict[str, Any]) -> None:
        """Bring a trial that was running up to date."""
        for step, value in trial["reports"].items():
            self.storage.set_trial_intermediate_value(at, int(step), value)
        for name, value in told(trial).items():
            self.storage.set_trial_user_attr(at, name, value)
        for name, value in files.items():
            self.storage.set_trial_system_attr(at, name, value)
        if trial["state"] != "running":
            self.storage.set_trial_state_values(at, STATES[trial["state"]], self.values(trial))

    def values(self, trial: dict[str, Any]) -> list[float] | None:
        """Its objectives' values; of a pruned trial the last report."""
        if trial["state"] == "complete":
            return [trial["values"][name] for name in self.objectives]
        last = list(trial["reports"].values())[-1:]
        return last if trial["state"] == "pruned" and last and len(self.objectives) == 1 else None

    def attached(self, trial: dict[str, Any]) -> dict[str, Any]:
        """The files of a trial's folder, copied for its page, as Optuna has them written down."""
        scratch = optuna.create_study().ask()
        for file in (self.folder / trial["name"] / name for name in SHOWN):
            if file.is_file():
                upload_artifact(artifact_store=self.artifacts, file_path=str(file), study_or_trial=scratch)
        return dict(scratch.study.trials[0].system_attrs)

    def frozen(self, trial: dict[str, Any], files: dict[str, Any]) -> FrozenTrial:
        """A trial as Optuna has it."""
        distributions = {name: json_to_distribution(text) for name, text in trial["distributions"].items()}
        reports = {int(step): value for step, value in trial["reports"].items()}
        made = create_trial(
            state=STATES[trial["state"]], values=self.values(trial), params=trial["params"], distributions=distributions,
            user_attrs=told(trial), system_attrs=files, intermediate_values=reports,
        )  # fmt: skip
        made.datetime_start = datetime.fromisoformat(trial["started"]) if trial["started"] else made.datetime_start
        made.datetime_complete = datetime.fromisoformat(trial["ended"]) if trial["ended"] else made.datetime_complete
        return made


def told(trial: dict[str, Any]) -> dict[str, Any]:
    """What else its page says of a trial."""
    outcome = trial["outcome"]
    point = {**trial["point"], **outcome.get("decode", {}).get("candidate", {})}
    known = {key: outcome[key] for key in ("reason", "seconds", "broken") if outcome.get(key)}
    why = {"class": trial["class"]} if trial["class"] else {}
    settings = {key: json.dumps(value) for key, value in point.items()}
    return {"name": trial["name"], **settings, "state": trial["state"], "steps": trial["steps"], **why, **known}
