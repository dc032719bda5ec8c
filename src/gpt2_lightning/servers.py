"""The dashboards: a folder of runs or a study in; TensorBoard's and Optuna's pages on loopback out, until Ctrl-C.

Optuna's page shows a mirror of ``study.json``: the study's own storage is neither opened nor locked, and its password not asked
for. One number: 2 s between two looks at the record of a study that is running. Choice not taken: optuna-dashboard on the
storage itself, which writes to it and, with SQLite, holds up those who train.
"""

import json
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from contextlib import ExitStack, redirect_stderr, suppress
from datetime import datetime
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import ExperimentalWarning
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial

from gpt2_lightning.errors import ConfigError, MachineError, StudyError
from gpt2_lightning.report.charts import STATES, frozen
from gpt2_lightning.report.command import find_log, find_study
from gpt2_lightning.report.record import RECORD, read_record
from gpt2_lightning.settings.dashboard import DashboardConfig
from gpt2_lightning.settings.setting import field_names, own_words, read_words
from gpt2_lightning.signals import Interrupted

__all__ = ["Mirror", "dashboard"]

OWN = ("study", "run", "outputs")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOOK_SECONDS = 2.0
SHOWN = ("samples.txt", "config.yaml", "result.json")  # of a trial's folder


def dashboard(words: list[str]) -> None:
    """Show what the words ask for until a signal, Ctrl-C being the usual end.

    Raises PlatformError where that cannot be, and Interrupted for SIGTERM.
    """
    folder, study, where = read_asked(words)
    check_host(where)
    with suppress(KeyboardInterrupt), ExitStack() as running:
        running.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, terminate))
        start_tensorboard(folder, where)
        print(f"TensorBoard         {page(where.host, where.port)}", flush=True)
        if study:
            print(f"Optuna's dashboard  {start_optuna(folder, where, running)}", flush=True)
        print("Ctrl-C stops them", flush=True)
        threading.Event().wait()


def terminate(number: int, frame: FrameType | None) -> None:
    """End by way of all that has to be closed."""
    raise Interrupted(number, "the dashboards are stopped")


def read_asked(words: list[str]) -> tuple[Path, bool, DashboardConfig]:
    """The folder to show, whether it is a study's, which has two pages, and where; raises ConfigError and StudyError."""
    options = own_words([*OWN, *field_names(DashboardConfig)], words, "dashboard")
    own = {key: options.pop(key) for key in OWN if key in options}
    where, outputs = DashboardConfig(**read_words(DashboardConfig, options)), Path(own.get("outputs", "outputs"))
    if {"study", "run"} <= own.keys():
        remedy = "Give one of the two, or neither"
        raise ConfigError("study", key="study", value=own["study"], rule="excludes run", remedy=remedy)
    if "study" in own:
        return find_study(own["study"], outputs), True, where
    folder = find_log(own["run"], outputs) if "run" in own else outputs
    if not folder.is_dir():
        remedy = "Train something first"
        raise ConfigError("output folder", key="outputs", value=str(folder), rule="is not there", remedy=remedy)
    return folder, False, where


def page(host: str, port: int) -> str:
    """What to open in a browser."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def check_host(where: DashboardConfig) -> None:
    """Raise MachineError for a host that others can reach, unless that is asked for; then warn."""
    if where.host in LOOPBACK:
        return
    if where.allow_others == "false":
        rule = "would be open to everybody who can reach this machine"
        raise MachineError("host", key="host", value=where.host, rule=rule, remedy="Set allow_others=true to allow it")
    print(f"warning: everybody who can reach {where.host} can see these pages; they ask for no password", file=sys.stderr)


def require_port(host: str, port: int) -> None:
    """Raise MachineError where something listens on the port, or none can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError as error:
            rule = f"cannot be listened on at {host}: {error.strerror or error}"
            raise MachineError("port", key="port", value=port, rule=rule, remedy="Set port to another one") from error


def start_tensorboard(folder: Path, where: DashboardConfig) -> None:
    """TensorBoard over the folder, in threads of this process; raises MachineError."""
    require_port(where.host, where.port)
    from tensorboard.program import TensorBoard, TensorBoardServerException

    words = {"logdir": str(folder), "host": where.host, "port": where.port, "reload_interval": 5.0}
    server = TensorBoard()
    server.configure(**words)
    with redirect_stderr(StringIO()):  # it advertises its fast reader
        try:
            server.launch()
        except TensorBoardServerException as error:
            raise MachineError("TensorBoard", key="port", value=where.port, rule=f"does not start: {error.msg}") from error


def start_optuna(study: Path, where: DashboardConfig, running: ExitStack) -> str:
    """Optuna's page over a mirror of the study's record; returns its address, or how to install it."""
    try:
        from optuna_dashboard import wsgi
    except ModuleNotFoundError:
        return "is not installed: pip install 'gpt2-lightning[dashboard]'"
    port = where.port + 1
    require_port(where.host, port)
    from werkzeug.serving import make_server  # which TensorBoard has told to say nothing of each request

    files = Path(running.enter_context(tempfile.TemporaryDirectory()))
    mirror = Mirror(study, FileSystemArtifactStore(str(files)))
    mirror.look()
    threading.Thread(target=mirror.keep_looking, name="mirror", daemon=True).start()
    pages = wsgi(mirror.storage, artifact_store=mirror.artifacts)
    server = make_server(where.host, port, pages, threaded=True)
    threading.Thread(target=server.serve_forever, name="optuna", daemon=True).start()
    return f"{page(where.host, port)}dashboard/studies/{mirror.id}"


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

    def keep_looking(self) -> None:
        """Look again and again; a record that is not there for a moment is looked for later."""
        while True:
            time.sleep(LOOK_SECONDS)
            with suppress(StudyError, OSError):
                self.look()

    def look(self) -> None:
        """Take over what is new; raises StudyError, OSError."""
        file = (self.folder / RECORD).stat()
        mark = file.st_mtime_ns, file.st_size
        if mark == self.seen:
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
        made = frozen(trial, trial["state"], self.values(trial), user_attrs=told(trial), system_attrs=files)
        made.datetime_start = datetime.fromisoformat(trial["started"]) if trial["started"] else made.datetime_start
        made.datetime_complete = datetime.fromisoformat(trial["ended"]) if trial["ended"] else made.datetime_complete
        return made


def told(trial: dict[str, Any]) -> dict[str, Any]:
    """What else its page says of a trial."""
    outcome = trial["outcome"]
    point = {**trial["point"], **outcome.get("decode", {}).get("candidate", {})}
    settings = {key: json.dumps(value) for key, value in point.items()}
    known = {"class": trial["class"], **{key: outcome.get(key) for key in ("reason", "seconds", "broken")}}
    of_trial = {"name": trial["name"], **settings, "state": trial["state"], "steps": trial["steps"]}
    return of_trial | {key: value for key, value in known.items() if value}
