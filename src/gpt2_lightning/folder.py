"""The folder of a run: a RunConfig in, the one folder under ``outputs/runs/NAME/`` that it writes to, locked, out.

``run.id=auto`` is the newest unfinished run of that name with equal settings and no living holder, else a new one named by
date and time. A new folder appears whole, with config.yaml and lock, in one step; a run is finished once result.json is there.
One number: 1 config.yaml is read for each unfinished run of the name, none for the others. Imports no torch: what is
refused is refused at once.
"""

import json
import os
import shutil
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gpt2_lightning.config import RunConfig, differences, load_config, to_yaml
from gpt2_lightning.errors import CheckpointError, ConfigError, OutputError
from gpt2_lightning.lock import DEAD_SECONDS, Lock, held, job_id, living_holder

__all__ = ["RunFolder", "find_folder", "finished", "not_allowed", "refuse", "runs_folder", "sync_folder", "write_whole"]

Differences = dict[str, tuple[Any, Any]]


def runs_folder(config: RunConfig) -> Path:
    """Where the runs of this name are, or the trials of this study."""
    folder = Path(config.run.folder).absolute()
    return folder / "sweeps" / config.run.study if config.run.study else folder / "runs" / config.run.name


def find_folder(config: RunConfig, say: bool = False) -> Path | None:
    """The folder to go on in, None for a new one; changes nothing.

    Raises CheckpointError where the run asked for has other settings or there is none, OutputError where it is held.
    """
    if config.resume == "never":
        refuse_taken(config)
        return None
    if config.run.id != "auto":
        return given_folder(config)
    notes = []
    for folder in unfinished(runs_folder(config)):
        differ = changed(folder, config)
        holder = living_holder(folder, ask=differ == {})
        if differ == {}:
            if holder is None:
                return folder
            notes.append(str(held(folder, holder)))
        elif differ:
            notes.append(f"'{folder.name}' is unfinished, but differs in {shown(differ)}")
    if config.resume == "must":
        rule = f"there is no unfinished run to go on with in '{runs_folder(config)}'. {notes[0] if notes else ''}"
        raise CheckpointError("run", key="resume", value="must", rule=rule)
    if say and notes:
        print(f"a new run: {notes[0]}", file=sys.stderr)
    return None


def refuse_taken(config: RunConfig) -> None:
    """Raise OutputError where a new run is asked for under the id of one that is there."""
    parent = runs_folder(config)
    if config.run.id != "auto" and (parent / config.run.id).exists():
        remedy = "Give another run.id, or none"
        raise OutputError("run folder", key="run.id", value=config.run.id, rule=f"exists already in '{parent}'", remedy=remedy)


def given_folder(config: RunConfig) -> Path | None:
    """The folder of ``run.id``, fit to go on in; None where it is new."""
    folder = runs_folder(config) / config.run.id
    if not folder.exists():
        if config.resume == "must":
            raise CheckpointError("run", key="run.id", value=config.run.id, rule=f"is not in '{folder.parent}'")
        return None
    holder = living_holder(folder, ask=True)
    if holder is not None:
        raise held(folder, holder)
    differ = changed(folder, config)
    if differ is None:
        raise CheckpointError(
            "run", key="run.id", value=config.run.id, rule=f"'{folder}' holds no config.yaml that can be read"
        )
    if differ:
        raise refuse(f"run {config.run.id}", differ)
    return folder


def refuse(what: str, differ: Differences) -> CheckpointError:
    """The error for settings that may not change unless it is said."""
    remedy = f"Set 'resume_allow=[{','.join(differ)}]' to go on with the new ones, or give another run.id"
    return CheckpointError(what, rule=f"has other settings: {shown(differ)}", remedy=remedy)


def shown(differ: Differences) -> str:
    """The keys and both values."""
    return ", ".join(f"{key} ({then} there, {now} now)" for key, (then, now) in differ.items())


def unfinished(parent: Path) -> list[Path]:
    """The runs that have no result, the newest first; before them those of the Slurm job this runs in."""
    found = [file for file in parent.glob("[!.]*/config.yaml") if not (file.parent / "result.json").exists()]
    found.sort(key=lambda file: (bool(job_id()) and file.parent.name.endswith(suffix()), file.stat().st_mtime), reverse=True)
    return [file.parent for file in found]


def changed(folder: Path, config: RunConfig) -> Differences | None:
    """In what the run's settings differ from these, but for what may; None where they cannot be read."""
    try:
        return not_allowed(load_config(str(folder / "config.yaml"), []), config)
    except ConfigError:
        return None


def not_allowed(then: RunConfig, now: RunConfig) -> Differences:
    """The differences that ``resume_allow`` does not cover."""
    return {
        key: values
        for key, values in differences(then, now).items()
        if not any(key == may or key.startswith(f"{may}.") for may in now.resume_allow)
    }


class RunFolder:
    """An open run: its ``path``, its ``lock``, and whether it was there ``before``."""

    def __init__(self, config: RunConfig) -> None:
        """Make or take over the folder; raises OutputError when it cannot be written or is held."""
        parent = runs_folder(config)
        try:
            self.open(config, parent)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            remedy = "Set run.folder to a folder that can be written"
            raise OutputError("run folder", key="run.folder", value=str(parent), rule=str(error), remedy=remedy) from error

    def open(self, config: RunConfig, parent: Path) -> None:
        """Take what was found; when another start was quicker, look again."""
        while True:
            tidy_folders(parent)
            found = find_folder(config, say=True)
            self.before = found is not None
            if found is None:
                made = make_folder(parent, config)
                if made:
                    self.path, self.lock = made
                    return
                continue
            self.path, self.lock = found, Lock(found)
            try:
                self.lock.acquire()
                return
            except OutputError:
                if config.run.id != "auto":
                    raise

    def finished(self, config: RunConfig) -> str | None:
        """What to say of a run that has reached its last step; None for one that has more to do."""
        return finished(self.path, config)

    def begin(self, config: RunConfig) -> None:
        """Note the settings it goes on with; what says that it was finished goes first."""
        (self.path / "result.json").unlink(missing_ok=True)
        for left in (*self.path.glob(".rank*"), *self.path.glob(".*.partial")):
            left.unlink(missing_ok=True)
        write_settings(self.path, config)
        (self.path / "checkpoints").mkdir(exist_ok=True)


def finished(folder: Path, config: RunConfig) -> str | None:
    """``finished at step N``, unless it is to go on to a later step than it was to end at."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        longer = config.trainer.max_steps > load_config(str(folder / "config.yaml"), []).trainer.max_steps
        return None if longer else f"run {folder.name} is finished, at step {result['steps']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def make_folder(parent: Path, config: RunConfig) -> tuple[Path, Lock] | None:
    """A new folder with its settings, held by this process; under the id asked for, or a free one. None where it was taken."""
    parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    names = [f"{now}{n}{suffix()}" for n in ("", *(f"-{n}" for n in range(2, 1000)))]
    hidden = parent / f".{now}.{os.getpid()}"
    (hidden / "checkpoints").mkdir(parents=True)
    write_settings(hidden, config)
    lock = Lock(hidden)
    lock.acquire()
    for name in names if config.run.id == "auto" else [config.run.id]:
        try:
            hidden.rename(parent / name)
        except OSError:
            if not (parent / name).exists():
                raise
            continue
        lock.folder = parent / name / ".lock"
        with suppress(OSError):
            for folder in (parent / name, parent, parent.parent):
                sync_folder(folder)
        return parent / name, lock
    lock.release()
    shutil.rmtree(hidden)
    return None


def suffix() -> str:
    """What a run's id ends with inside a Slurm job, by which the job finds it again."""
    return f"-job{job_id()}" if job_id() else ""


def tidy_folders(parent: Path) -> None:
    """Remove folders that were being made when their process was killed."""
    for path in parent.glob(".*"):
        old = (path / ".lock" / "1").exists() or time.time() - path.stat().st_mtime > DEAD_SECONDS
        if old and living_holder(path) is None:
            shutil.rmtree(path, ignore_errors=True)


def write_settings(folder: Path, config: RunConfig) -> None:
    """The run's config.yaml; what was allowed to change once is not allowed for ever."""
    write_whole(folder / "config.yaml", to_yaml(replace(config, resume_allow=[])))


def write_whole(path: Path, text: str) -> None:
    """Write beside the target, flush, rename, flush the folder; raises OutputError."""
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")  # others may write it, too
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OutputError("file", key="file", value=str(path), rule=f"cannot be written: {error.strerror}") from error
    with suppress(OSError):
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk; raises OSError where that cannot be waited for."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
