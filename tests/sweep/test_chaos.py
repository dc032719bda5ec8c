"""Three agents and whatever can happen to them, seeded: ``pytest -m chaos -s tests/sweep`` prints how often what did."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gpt2_lightning.sweep import agent as agents
from tests.sweep.fake_trial import curve
from tests.sweep.postgres import Postgres
from tests.sweep.stage import Stage, kill
from tests.sweep.test_ledger import KINDS

AGENTS, TRIALS = 3, 12
WORDS = (
    f"sweep.n_trials={TRIALS}",
    "sweep.slots=2",
    "trainer.max_steps=80",
    "trainer.val_every=20",
    "sweep.retries=100000",
    "seed=0",
)
OUTAGES, FULL = (int(os.environ.get(f"CHAOS_{name}", n)) for name, n in (("OUTAGES", 20), ("FULL", 5)))
KILLS = int(os.environ.get("CHAOS_SWEEP_KILLS", 100))
DISK_MB = 24


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own, where that is allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", place], capture_output=True)
    yield place
    if mounted.returncode == 0:
        subprocess.run(["umount", "-l", place], check=False)


class Chaos:
    """Agents that are started again until the study is over, and faults among them at random times."""

    def __init__(self, stage: Stage, chance: random.Random, server: Postgres | None, longest: float) -> None:
        self.stage, self.chance, self.server, self.longest = stage, chance, server, longest
        self.agents: dict[int, int] = {}
        self.done: Counter[str] = Counter()
        self.due: list[tuple[float, Any]] = []
        self.down = 0.0

    def run(self, faults: dict[str, int], pause: tuple[float, float], seconds: float) -> None:
        """Until every agent has ended well; as many faults of each kind as given, at most."""
        end, following = time.monotonic() + seconds, time.monotonic() + 1.5
        over: set[int] = set()
        while len(over) < AGENTS:
            assert time.monotonic() < end, self.stage.said()[-3000:]
            for i in set(range(AGENTS)) - over:
                status = self.status(i)
                if status == 0:
                    over.add(i)
                elif status is not None:
                    self.done["restarts"] += status != -99
                    self.agents[i] = self.stage.start(log=f"log{i}", AUDIT=str(self.stage.folder.parent / "audit"))
            self.heal()
            left = [kind for kind, n in faults.items() if self.done[kind] < n for _ in range(n - self.done[kind])]
            if left and time.monotonic() > following:
                self.fault(self.chance.choice(left))
                following = time.monotonic() + self.chance.uniform(*pause)
            time.sleep(0.02)
        self.heal(at_once=True)

    def status(self, i: int) -> int | None:
        """An agent's exit status; -99 where it was never started."""
        if i not in self.agents:
            return -99
        found, status = os.waitpid(self.agents[i], os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if found else None

    def fault(self, kind: str) -> None:
        """Do one thing, and note when to undo it."""
        now, stage = time.monotonic(), self.stage
        if kind == "agents killed":
            kill(self.chance.choice(list(self.agents.values())))
        elif kind == "children killed":
            living = stage.living()
            if not living:
                return
            kill(self.chance.choice(living))
        elif kind == "agents paused":
            pid = self.chance.choice(list(self.agents.values()))
            kill(pid, signal.SIGSTOP)
            self.due.append((now + self.chance.uniform(0.5, 4), lambda: kill(pid, signal.SIGCONT)))
        elif kind == "outages":
            if self.server is None or self.server.server is None:
                return
            seconds = self.longest if self.done[kind] == 3 else self.chance.uniform(0.2, min(3.0, self.longest))
            self.server.stop()
            self.down += seconds
            self.due.append((now + seconds, partial(started, self.server)))
        elif kind == "full disks":
            fill(stage.folder / "ballast")
            self.due.append((now + self.chance.uniform(0.5, 2.5), (stage.folder / "ballast").unlink))
        self.done[kind] += 1

    def heal(self, at_once: bool = False) -> None:
        """Undo what is due."""
        for when, undo in [*self.due]:
            if at_once or time.monotonic() > when:
                self.due.remove((when, undo))
                with suppress(FileNotFoundError):
                    undo()


def started(server: Postgres) -> None:
    """Start it, again where the one before still lets go of its memory."""
    for _ in range(20):
        with suppress(AssertionError):
            return server.start()
        time.sleep(0.3)
    raise TimeoutError("PostgreSQL does not start")


def fill(path: Path) -> None:
    """A file as large as the disk allows; none on one that is not small."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        for _ in range(DISK_MB * 64):
            file.write(bytes(1 << 14))


def never_killed(folder: Path) -> dict[str, Any]:
    """What every trial comes to."""
    stage = Stage(folder, "journal", *WORDS, fake={"ms": 0})
    assert stage.run(seconds=200) == 0, stage.said()
    found = stage.values(TRIALS)
    assert all(values == {"val/cross_entropy": best_of(point, 80, 20)} for point, values in found.values())
    return found


def best_of(point: dict[str, float], steps: int, every: int) -> float:
    """The best validation of a trial, by the law that it follows."""
    x, seen = 5.0, []
    for step in range(1, steps + 1):
        x = curve(x, step - 1, point["optimizer.lr"], point["loss.beta"])
        seen += [x] if step % every == 0 else []
    return min(seen)


def one_study(disk: Path, storage: str, seed: int, faults: dict[str, int], pause: tuple[float, float], longest: float,
              server: Postgres | None, truth: dict[str, Any]) -> Chaos:  # fmt: skip
    """A study under faults, held to every law."""
    stage = Stage(disk / f"study{seed}", storage, *WORDS, fake={"ms": 15})
    chaos = Chaos(stage, random.Random(seed), server, longest)
    try:
        chaos.run(faults, pause, 500)
        stage.wait_for(lambda: not stage.living(), 5)
    finally:
        for pid in chaos.agents.values():
            kill(pid, signal.SIGCONT)
            kill(pid)
        if server is not None and server.server is None:
            started(server)
    stage.assert_whole(TRIALS)
    for name, (point, values) in stage.values(TRIALS).items():
        assert values == {"val/cross_entropy": best_of(point, 80, 20)}, name
        assert [n for n, (p, _) in truth.items() if p == point] in ([name], []), name  # an agent killed while it asks asks anew
    audit = disk / "audit"
    ended = Counter(line["trial"] for line in Stage.read(audit) if line["event"] == "end")
    assert max(ended.values()) == 1, ended
    chaos.done["attempts"] = sum(len(root.attempts) for root in stage.roots(TRIALS))
    audit.unlink()
    return chaos


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "WAIT_SECONDS", 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "sqlite"])
def test_a_little_chaos(disk: Path, kind: str, request: pytest.FixtureRequest, quick: None, tmp_path: Path) -> None:
    server = request.getfixturevalue("postgres") if kind == "postgres" else None
    faults = {"agents killed": 3, "children killed": 6, "agents paused": 1, "full disks": 1, "outages": 2 if server else 0}
    storage = server.fresh_database() if server else kind
    chaos = one_study(disk, storage, 1, faults, (0.2, 0.8), 2.0, server, never_killed(tmp_path / "truth"))
    assert chaos.done["agents killed"] == 3 and chaos.done["full disks"] == 1


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "sqlite"])
def test_chaos(disk: Path, kind: str, request: pytest.FixtureRequest, quick: None, tmp_path: Path) -> None:
    """The faults are spread over as many studies of 12 trials as they take."""
    server = request.getfixturevalue("postgres") if kind == "postgres" else None
    truth, total, seed, down = never_killed(tmp_path / "truth"), Counter[str](), 0, 0.0
    wanted = {"agents killed": KILLS // 3, "children killed": KILLS - KILLS // 3, "agents paused": 10, "full disks": FULL,
              "outages": OUTAGES if server else 0}  # fmt: skip
    while any(total[name] < n for name, n in wanted.items()):
        seed += 1
        left = {name: min(n - total[name], n // 4 + 1) for name, n in wanted.items()}
        longest = 60.0 if seed == 2 else 5.0
        chaos = one_study(disk, server.fresh_database() if server else kind, seed, left, (0.05, 0.4), longest, server, truth)
        total.update(chaos.done)
        down += chaos.down
    counts = ", ".join(f"{n} {name}" for name, n in sorted(total.items()))
    print(
        f"\n{kind}: {seed} studies of {TRIALS} trials, {AGENTS} agents: {counts}; the database away for {down:.0f} s; all whole"
    )
