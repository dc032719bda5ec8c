"""A stage for the engine: agents as forks of the test process in one folder, with trials that cost a Python's start each."""

import csv
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from gpt2_lightning.sweep import command, pool
from gpt2_lightning.sweep.ledger import Ledger, Root
from gpt2_lightning.sweep.storage import Patience, open_storage
from tests.lab import NANO, finish, start

SPACE = ("optimizer.lr=tag(log, interval(1e-4, 1e-1))", "loss.beta=interval(0, 0.05)")
FAKE = (sys.executable, "-S", "-E", str(Path(__file__).with_name("fake_trial.py")))
Break = Callable[[], None]
Line = dict[str, Any]


class Stage:
    """A folder, a storage, and the study's command line."""

    def __init__(self, folder: Path, storage: str = "journal", *more: str, fake: dict[str, Any] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.storage, self.fake = folder, storage, fake or {}
        self.words = [*NANO, *SPACE, "sweep.name=study", "sweep.n_trials=8", "sweep.sampler=random", "sweep.pruner=none",
                      "sweep.report=false", "trainer.max_steps=20", "trainer.val_every=5", "checkpoint.every=2",
                      "sweep.lease_seconds=2", *more]  # fmt: skip
        if storage == "sqlite":
            self.words.append("sweep.storage=sqlite")
        self.env = {"GPT2_LIGHTNING_STORAGE": storage} if "://" in storage else {}
        self.agents: list[int] = []

    @property
    def study(self) -> Path:
        return self.folder / "outputs/sweeps/study"

    def start(self, *words: str, broken: Break | None = None, log: str = "log", **env: str) -> int:
        """An agent's process number."""

        def fakes() -> None:
            pool.COMMAND = FAKE  # type: ignore[assignment]
            if broken:
                broken()

        env = {
            "FAKE": json.dumps(self.fake),
            "AUDIT": str(self.folder / "audit"),
            "CUDA_VISIBLE_DEVICES": "",
            **self.env,
            **env,
        }
        pid = start(["sweep", *self.words, *words], self.folder, fakes, log=log, **env)
        self.agents.append(pid)
        return pid

    def run(self, *words: str, broken: Break | None = None, seconds: float = 60, **env: str) -> int:
        """An agent's exit status."""
        return finish(self.start(*words, broken=broken, **env), seconds)

    def together(self, n: int, *words: str, **env: str) -> list[int]:
        """The exit statuses of agents that start at the same time."""
        agents = [self.start(*words, **env) for _ in range(n)]
        return [finish(pid, 90) for pid in agents]

    def said(self, log: str = "log") -> str:
        return (self.folder / log).read_text(errors="replace")

    def audit(self, event: str = "") -> list[Line]:
        """What the trials' processes have noted."""
        return [line for line in self.read(self.folder / "audit") if line["event"] == event or not event]

    @staticmethod
    def read(path: Path) -> list[Line]:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, what: Callable[[], Any], seconds: float = 30) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := what():
                return found
            time.sleep(0.01)
        raise TimeoutError(self.said())

    def ledger(self, n_trials: int = 8, name: str = "study", directions: Sequence[str] = ("minimize",)) -> Ledger:
        """The study as it is in the storage."""
        storage = open_storage(self.storage, self.folder / "outputs/sweeps" / name)
        return Ledger(name, storage, Patience(seconds=20.0), 2.0, list(directions), n_trials)

    def roots(self, n_trials: int = 8) -> list[Root]:
        return self.ledger(n_trials).roots()

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.ledger().trials()

    def table(self, name: str = "study") -> list[dict[str, str]]:
        with (self.folder / "outputs/sweeps" / name / "trials.csv").open() as file:
            return list(csv.DictReader(file))

    def assert_whole(self, n: int = 8, states: Sequence[str] = ("complete",)) -> None:
        """Exactly n trainings are over, none is lost, twice, or left running; nothing runs any more."""
        roots = self.roots(n)
        assert [root.place for root in roots if root.place is not None] == list(range(n))
        assert all(root.outcome and root.outcome["state"] in states for root in roots), [r.outcome for r in roots]
        for root in roots:
            assert sum("outcome" in t.user_attrs for t in root.attempts) == 1
        assert [t.number for t in self.trials() if t.state in (TrialState.RUNNING, TrialState.WAITING)] == []
        assert sorted(row["trial"] for row in self.table()) == sorted(root.name for root in roots)
        assert self.living() == []

    def living(self) -> list[int]:
        """Processes of trials that were started from here and live."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if any(str(self.folder).encode() in word for word in words) and b"trial" in words:
                found.append(int(path.parent.name))
        return found

    def values(self, n_trials: int = 8) -> dict[str, Any]:
        """Parameters and final values by trial, for comparison."""
        return {r.name: (r.last.user_attrs["point"], r.outcome and r.outcome["values"]) for r in self.roots(n_trials)}


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


assert command.study
