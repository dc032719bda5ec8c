"""A study's storage: one winner a claim, nothing acknowledged lost, no password shown, and an outage outwaited."""

import errno
import fcntl
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState, create_trial

from gpt2_lightning.errors import OutputError, StudyError
from gpt2_lightning.sweep import storage
from gpt2_lightning.sweep.storage import JournalFile, Patience, asked_storage, open_storage, redacted
from tests.sweep.postgres import PASSWORD, Postgres

KINDS = ["journal", "sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
PROCESSES = 6
NOTE = {"op_code": 10, "worker_id": "w"}  # an operation that Optuna skips
FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=KINDS)
def asked(request: pytest.FixtureRequest) -> str:
    """Each kind of storage, empty."""
    return request.getfixturevalue("postgres").fresh_database() if request.param == "postgres" else request.param


def together(folder: Path, work: Callable[[int], Any], n: int = PROCESSES) -> list[Any]:
    """What each of n forked processes answers; they start their work at the same time."""
    barrier = FORK.Barrier(n)

    def run(i: int) -> None:
        barrier.wait(60)
        try:
            answer = work(i)
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        (folder / f"answer{i}").write_text(json.dumps(answer))

    children = [FORK.Process(target=run, args=(i,)) for i in range(n)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    answers = [json.loads((folder / f"answer{i}").read_text()) for i in range(n)]
    assert not [a for a in answers if isinstance(a, dict)], answers
    return answers


def study_in(place: BaseStorage) -> int:
    return place.create_new_study([optuna.study.StudyDirection.MINIMIZE], "study")


def test_an_empty_storage_can_be_opened_by_several_at_once(asked: str, tmp_path: Path) -> None:
    assert together(tmp_path, lambda _: len(open_storage(asked, tmp_path).get_all_studies())) == [0] * PROCESSES


def test_of_several_that_claim_a_trial_one_wins(asked: str, tmp_path: Path) -> None:
    place = open_storage(asked, tmp_path)
    study = study_in(place)
    barrier = FORK.Barrier(PROCESSES)

    def work(i: int) -> list[list[int]]:
        mine = open_storage(asked, tmp_path)
        for j in range(4):
            mine.create_new_trial(study, create_trial(state=TrialState.WAITING, user_attrs={"by": [i, j]}))
        barrier.wait(60)
        trials, won = [trial._trial_id for trial in mine.get_all_trials(study)], []
        for _ in range(2):  # the second time after each has put back what it won
            won.append([trial for trial in trials if claimed(mine, trial)])
            barrier.wait(60)
            for trial in won[0] if len(won) == 1 else ():
                mine.set_trial_state_values(trial, TrialState.WAITING)
            barrier.wait(60)
        return won

    won = together(tmp_path, work)
    trials = place.get_all_trials(study)
    assert sorted(trial.number for trial in trials) == list(range(4 * PROCESSES))
    assert sorted(trial.user_attrs["by"] for trial in trials) == [[i, j] for i in range(PROCESSES) for j in range(4)]
    assert {trial.state for trial in trials} == {TrialState.RUNNING}
    for turn in zip(*won, strict=True):
        assert sorted(chain(*turn)) == sorted(trial._trial_id for trial in trials)


def test_a_former_holder_claims_no_trial_that_another_has_just_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former, other = open_storage("journal", tmp_path), open_storage("journal", tmp_path)
    trial = former.create_new_trial(study_in(former))
    former.set_trial_state_values(trial, TrialState.WAITING)
    append = JournalFile.append_logs

    def late(self: JournalFile, logs: list[dict[str, Any]]) -> None:
        monkeypatch.setattr(JournalFile, "append_logs", append)
        assert claimed(other, trial)
        self.append_logs(logs)

    monkeypatch.setattr(JournalFile, "append_logs", late)
    assert not claimed(former, trial)
    assert other.set_trial_state_values(trial, TrialState.WAITING)
    assert claimed(former, trial)


def claimed(place: BaseStorage, trial: int) -> bool:
    return place.set_trial_state_values(trial, TrialState.RUNNING)


def test_of_several_that_tell_a_trial_one_is_heard(asked: str, tmp_path: Path) -> None:
    place = open_storage(asked, tmp_path)
    study = study_in(place)
    trials = [place.create_new_trial(study) for _ in range(12)]

    def work(i: int) -> list[bool]:
        mine = open_storage(asked, tmp_path)
        return [told(mine, trial, float(i)) for trial in trials]

    heard = together(tmp_path, work)
    for k, trial in enumerate(place.get_all_trials(study)):
        assert [i for i in range(PROCESSES) if heard[i][k]] == [trial.value]


def told(place: BaseStorage, trial: int, value: float) -> bool:
    try:
        return place.set_trial_state_values(trial, TrialState.COMPLETE, [value])
    except UpdateFinishedTrialError:
        return False


def test_a_finished_trial_stays_as_it_was_told(asked: str, tmp_path: Path) -> None:
    place = open_storage(asked, tmp_path)
    trial = place.create_new_trial(study_in(place))
    place.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
    for state in (TrialState.RUNNING, TrialState.FAIL, TrialState.WAITING, TrialState.COMPLETE):
        with pytest.raises(UpdateFinishedTrialError):
            place.set_trial_state_values(trial, state, [2.0])
    with pytest.raises(UpdateFinishedTrialError):
        place.set_trial_user_attr(trial, "a", 1)
    assert place.get_trial(trial).value == 1.0


def test_reads_and_attributes_can_be_done_twice(asked: str, tmp_path: Path) -> None:
    """What Patience says of calls whose first answer was lost."""
    place = open_storage(asked, tmp_path)
    trial = place.create_new_trial(study_in(place))
    for _ in range(2):
        place.set_trial_param(trial, "x", 0.5, optuna.distributions.FloatDistribution(0, 1))
        place.set_trial_user_attr(trial, "a", 1)
        place.set_trial_intermediate_value(trial, 3, 2.0)
    found = place.get_trial(trial)
    assert (found.params, found.user_attrs, found.intermediate_values) == ({"x": 0.5}, {"a": 1}, {3: 2.0})
    with pytest.raises(DuplicatedStudyError):
        study_in(place)


# The journal.


@pytest.fixture
def journal(tmp_path: Path) -> JournalFile:
    path = tmp_path / "journal.log"
    path.touch()
    return JournalFile(path)


def test_killed_writers_lose_nothing_acknowledged_and_stop_nobody(journal: JournalFile) -> None:
    rng, acknowledged, torn = random.Random(0), [], 0
    for turn in range(50):
        reading, writing = os.pipe()
        children = [FORK.Process(target=keep_appending, args=(journal.path, f"{turn}.{i}", writing)) for i in range(2)]
        for child in children:
            child.start()
        os.close(writing)
        with os.fdopen(reading) as answers:
            acknowledged.append(answers.readline().strip())
            time.sleep(rng.uniform(0, 0.01))
            os.kill(children[0].pid, signal.SIGKILL)
            while sum(name.startswith(f"{turn}.1.") for name in acknowledged) < 4:  # the other one goes on
                acknowledged.append(answers.readline().strip())
            time.sleep(rng.uniform(0, 0.01))
            os.kill(children[1].pid, signal.SIGKILL)
            acknowledged += answers.read().splitlines()
        for child in children:
            child.join()
        torn += not journal.path.read_bytes().endswith(b"\n")
    assert torn > 5, "the kills did not land within a line"
    found = [log["note"] for log in journal.read_logs(0)]
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
    assert len(found) - len(acknowledged) <= 100  # what was written when the kill came before the answer
    journal.append_logs([NOTE | {"note": "last"}])
    assert json.loads(journal.path.read_bytes().splitlines()[-1])["note"] == "last"


def keep_appending(path: Path, name: str, answers: int) -> None:
    """Append and acknowledge, a line in many small writes, until killed."""
    journal = JournalFile(path)
    storage.write_all = slowly
    for i in range(100_000):
        journal.append_logs([NOTE | {"note": f"{name}.{i}"}])
        os.write(answers, f"{name}.{i}\n".encode())


def slowly(file: int, text: bytes) -> None:
    for i in range(0, len(text), 8):
        os.write(file, text[i : i + 8])
        time.sleep(0.0003)


@pytest.mark.parametrize("fault", ["half", "whole", "limit"])
def test_a_full_disk_is_an_error_and_the_same_storage_goes_on(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, other = open_storage("journal", tmp_path), open_storage("journal", tmp_path)
    study = study_in(place)
    trial = place.create_new_trial(study)
    path = tmp_path / "journal.log"
    before = path.read_bytes()
    with monkeypatch.context() as patch, size_limit(len(before) + 20 if fault == "limit" else None):
        if fault == "half":
            patch.setattr(storage, "write_all", lambda file, text: full(os.write(file, text[: len(text) // 2])))
        elif fault == "whole":
            patch.setattr(os, "fsync", full)
        for _ in range(3):
            with pytest.raises(OSError):
                place.set_trial_user_attr(trial, "a", 1)
            assert other.get_trial(trial).user_attrs == {}
    assert path.read_bytes() == before
    place.set_trial_user_attr(trial, "b", 2)
    second = place.create_new_trial(study)
    assert place.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
    for each in (place, other, open_storage("journal", tmp_path)):
        assert each.get_trial(trial).user_attrs == {"b": 2}
        assert [t._trial_id for t in each.get_all_trials(study)] == [trial, second]


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class size_limit:
    """No file grows beyond so many bytes: the kernel writes a part, and then none."""

    def __init__(self, size: int | None) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.old = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self.size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.old[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.old)


@pytest.mark.parametrize("torn", [b'{"op_code": 10, "wor', b"\0\0\0\0", b'{"op_code": 10, "worker_id": "w", "note": 3}'])
def test_a_torn_last_line_is_not_read_and_cut_off_by_the_next(journal: JournalFile, torn: bytes) -> None:
    reader = JournalFile(journal.path)
    journal.append_logs([NOTE | {"note": 0}, NOTE | {"note": 1}])
    assert len(reader.read_logs(0)) == 2
    with journal.path.open("ab") as file:
        file.write(torn)
    assert reader.read_logs(2) == []
    journal.append_logs([NOTE | {"note": 2}])
    assert reader.read_logs(2) == [NOTE | {"note": 2}]
    assert [log["note"] for log in JournalFile(journal.path).read_logs(0)] == [0, 1, 2]


@pytest.mark.parametrize("line", [b'{"op_code": 10, "wor', b"\xff\xfe", b"[]", b"", b'{"text": "a corpus"}', b"3"])
def test_a_damaged_line_is_named(line: bytes, tmp_path: Path) -> None:
    study_in(open_storage("journal", tmp_path))
    path = tmp_path / "journal.log"
    whole = path.read_bytes()
    path.write_bytes(whole + line + b"\n" + whole)
    with pytest.raises(StudyError, match=rf"damaged: {path}:2 is not a line"):
        open_storage("journal", tmp_path)


@pytest.mark.parametrize("change", ["cut", "replaced", "removed"])
def test_a_journal_that_others_cut_is_no_longer_used(change: str, tmp_path: Path) -> None:
    place = open_storage("journal", tmp_path)
    study = study_in(place)
    path = tmp_path / "journal.log"
    path.unlink()
    if change != "removed":
        path.write_bytes(b"" if change == "replaced" else b'{"op_code"')
    with pytest.raises(FileNotFoundError if change == "removed" else StudyError):
        place.create_new_trial(study)
    assert path.exists() == (change != "removed")


def test_polling_reads_only_what_is_new(journal: JournalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    read, read_all = [], storage.read_all
    monkeypatch.setattr(storage, "read_all", lambda file, begin, end: read.append(end - begin) or read_all(file, begin, end))
    journal.append_logs([NOTE] * 100)
    assert len(journal.read_logs(0)) == 100
    journal.append_logs([NOTE | {"note": 1}])
    line = len(json.dumps(NOTE | {"note": 1}, separators=(",", ":"))) + 1
    assert journal.read_logs(100) == [NOTE | {"note": 1}]
    assert journal.read_logs(101) == []
    assert read[-3:] == [0, line, 0]
    assert len(journal.read_logs(40)) == 61  # an operation that Optuna refuses leaves it in the middle


def test_a_killed_holder_gives_the_lock_back_and_a_paused_one_is_reported(
    journal: JournalFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.3)
    reading, writing = os.pipe()
    child = FORK.Process(target=hold, args=(journal.path, writing))
    child.start()
    os.read(reading, 1)
    for use in (lambda: journal.append_logs([NOTE]), lambda: journal.read_logs(0)):
        with pytest.raises(TimeoutError, match="may be paused"):
            use()
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    journal.append_logs([NOTE])
    assert journal.read_logs(0) == [NOTE]


def hold(path: Path, ready: int) -> None:
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.write(ready, b"1")
        time.sleep(600)


def test_a_journal_is_not_used_across_a_fork(tmp_path: Path) -> None:
    place = open_storage("journal", tmp_path)
    child = FORK.Process(target=place.get_all_studies)
    child.start()
    child.join()
    assert child.exitcode == 1


# Databases.


@pytest.mark.postgres
def test_a_paused_transaction_gives_its_lock_back(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = storage.OPENINGS["postgresql"].replace("30s", "0.3s")
    monkeypatch.setitem(storage.OPENINGS, "postgresql", opening)
    asked = postgres.fresh_database()
    paused, place = open_storage(asked, tmp_path), open_storage(asked, tmp_path)
    assert isinstance(paused, RDBStorage)
    trial = place.create_new_trial(study_in(place))
    with pytest.raises(sqlalchemy.exc.DBAPIError) as raised, paused.engine.begin() as connection:
        connection.execute(sqlalchemy.text(f"SELECT * FROM trials WHERE trial_id = {trial} FOR UPDATE"))
        assert place.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
        connection.execute(sqlalchemy.text("SELECT 1"))
    assert storage.is_away(raised.value)
    assert paused.get_trial(trial).value == 1.0


@pytest.mark.postgres
def test_a_database_that_stops_is_outwaited(postgres: Postgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = open_storage(postgres.fresh_database(), tmp_path)
    study = study_in(place)
    trial = place.create_new_trial(study)
    postgres.stop()
    begin, calls = time.monotonic(), []

    def meanwhile() -> None:
        calls.append(1)
        if postgres.server is None and time.monotonic() > begin + 2:
            postgres.start()

    patience = Patience(seconds=60.0, while_waiting=meanwhile)
    assert patience.call(lambda: place.set_trial_state_values(trial, TrialState.COMPLETE, [1.0]))
    assert len(calls) > 5
    assert patience.call(lambda: place.get_trial(trial).value) == 1.0
    away, back = capsys.readouterr().err.splitlines()
    assert away.startswith("warning: the study's storage is away: ") and away.endswith("; trying again for 60 s")
    assert back.startswith("the study's storage is back after ")


@pytest.mark.postgres
def test_a_connection_broken_while_idle_is_not_noticed(
    postgres: Postgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = open_storage(postgres.fresh_database(), tmp_path)
    study = study_in(place)
    postgres.stop()
    postgres.start()
    assert Patience().call(lambda: place.get_study_name_from_id(study)) == "study"
    assert capsys.readouterr().err == ""


def test_a_file_locked_by_another_is_outwaited(tmp_path: Path) -> None:
    import sqlite3

    place = open_storage("sqlite", tmp_path)
    assert isinstance(place, RDBStorage)
    place.engine.dispose()
    place = RDBStorage(str(place.engine.url), engine_kwargs={"connect_args": {"timeout": 0.05}})
    holder = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    tries: list[int] = []

    def meanwhile() -> None:
        tries.append(1)
        if len(tries) == 3:
            holder.execute("COMMIT")

    assert Patience(while_waiting=meanwhile).call(lambda: study_in(place)) == 1
    assert len(tries) >= 3


@pytest.mark.parametrize("path", ["a b{0}%20?x#y/ü", "plain"])
def test_a_folder_of_any_name_holds_a_storage(path: str, tmp_path: Path) -> None:
    for asked, name in (("sqlite", "study.db"), ("journal", "journal.log"), (f"journal:{tmp_path / path}/j", "j")):
        study_in(open_storage(asked, tmp_path / path))
        assert (tmp_path / path / name).stat().st_size > 0
        assert open_storage(asked, tmp_path / path).get_study_id_from_name("study") >= 0


# Patience.


def failing(error: Exception, times: int) -> Callable[[], str]:
    left = iter([error] * times)

    def call() -> str:
        for found in left:
            raise found
        return "done"

    return call


def internal(error: Exception) -> Exception:
    wrapped = StorageInternalError("This typically happens due to invalid data")
    wrapped.__cause__ = error
    return wrapped


def database(kind: type[sqlalchemy.exc.DBAPIError], text: str, invalidated: bool = False) -> Exception:
    return kind("SELECT 1", {}, Exception(text), connection_invalidated=invalidated)


AWAY = [
    database(sqlalchemy.exc.OperationalError, "gone"),
    database(sqlalchemy.exc.InterfaceError, "gone"),
    database(sqlalchemy.exc.ProgrammingError, "gone", invalidated=True),
    internal(database(sqlalchemy.exc.OperationalError, "gone")),
    StorageInternalError("gone"),
    OSError(errno.ENOSPC, "gone"),
    TimeoutError("gone"),
]
AT_ONCE = [
    UpdateFinishedTrialError("no"),
    DuplicatedStudyError("no"),
    KeyError("no"),
    ValueError("no"),
    StudyError("no"),
    OutputError("no"),
    database(sqlalchemy.exc.ProgrammingError, "no"),
    internal(database(sqlalchemy.exc.DataError, "too long")),
]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Time that passes only in sleep."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    yield now


@pytest.mark.parametrize("error", AWAY, ids=repr)
def test_away_is_said_once_and_back_once(error: Exception, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert Patience(seconds=60.0).call(failing(error, 6)) == "done"
    assert clock[0] == pytest.approx(0.2 + 0.4 + 0.8 + 1.6 + 3.2 + 5.0)
    away, back = capsys.readouterr().err.splitlines()
    assert away.startswith("warning: the study's storage is away: ") and "gone" in away and "invalid data" not in away
    assert back == "the study's storage is back after 11 s"


@pytest.mark.parametrize("error", AT_ONCE, ids=repr)
def test_a_refusal_is_not_tried_again(error: Exception, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)) as raised:
        Patience(seconds=60.0).call(failing(error, 1))
    assert raised.value is error
    assert clock[0] == 0 and capsys.readouterr().err == ""


def test_patience_ends_and_says_why(clock: list[float]) -> None:
    looked: list[float] = []
    patience = Patience(seconds=7.0, while_waiting=lambda: looked.append(clock[0]))
    with pytest.raises(StudyError, match=r"has not answered for 7 s: \[Errno 28\] No space left on device"):
        patience.call(failing(OSError(errno.ENOSPC, "No space left on device"), 10_000))
    assert clock[0] == pytest.approx(7)
    assert max(b - a for a, b in pairwise(looked)) < 0.21


def test_what_is_done_while_waiting_may_end_it(clock: list[float]) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Patience(while_waiting=stop).call(failing(OSError("gone"), 10))


# What is asked for, and passwords.


@pytest.mark.parametrize(
    ("setting", "variable", "asked"),
    [
        ("journal", None, "journal"),
        ("journal", "", "journal"),
        ("journal", "sqlite:///a.db", "sqlite:///a.db"),
        ("sqlite", "sqlite:///a.db", "sqlite"),
        ("journal:a.log", "sqlite:///a.db", "journal:a.log"),
    ],
)
def test_the_environment_takes_the_place_of_the_default(
    setting: str, variable: str | None, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPT2_LIGHTNING_STORAGE", raising=False)
    if variable is not None:
        monkeypatch.setenv("GPT2_LIGHTNING_STORAGE", variable)
    assert asked_storage(setting) == asked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://u:canary@h:5432/d now", "at postgresql://u:***@h:5432/d now"),
        ("postgresql+psycopg://u:can%40ary%2F@h/d", "postgresql+psycopg://u:***@h/d"),
        ("postgresql://u:canary@canary/canary:canary@h/d", "postgresql://u:***@h/d"),
        ("at postgresql://u:my canary@h/d now", "at postgresql://u:***@h/d now"),
        ("postgresql://u:my@the canary@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:can/ary@canary/canary@h/d", "postgresql://u:***@h/d"),
        ("a://u:canary@h and b://u:canary@h", "a://u:***@h and b://u:***@h"),
        ("http://h:80/x, ask a@b", "http://h:80/x, ask a@b"),
        ("postgresql://:canary@h/d", "postgresql://:***@h/d"),
        ("postgresql://h/d?user=u&password=canary&port=1", "postgresql://h/d?user=u&password=***&port=1"),
        ("mysql://u@h/d?passwd=canary", "mysql://u@h/d?passwd=***"),
        ("host=h password='can ary' dbname=d", "host=h password=*** dbname=d"),
        ("{'user': 'u', 'password': 'canary', 'host': 'h'}", "{'user': 'u', 'password': ***, 'host': 'h'}"),
        ("PGPASSWORD=canary python", "PGPASSWORD=*** python"),
        ("journal:/a/b", "journal:/a/b"),
        ("see https://sqlalche.me/e/21/e3q8)", "see https://sqlalche.me/e/21/e3q8)"),
        ('FATAL: password authentication failed for user "u"', 'FATAL: password authentication failed for user "u"'),
        ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
    ],
)
def test_passwords_are_not_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert "canary" not in redacted(f"one\n{text}\ntwo")


@pytest.mark.parametrize(
    ("asked", "kind", "text"),
    [
        (
            "postgresql://u:canary@127.0.0.1:9/d",
            StudyError,
            "cannot be reached (sweep.storage = postgresql+psycopg://127.0.0.1:9/d)",
        ),
        ("postgres://u:canary@127.0.0.1:9/d?password=canary", StudyError, "postgresql+psycopg://127.0.0.1:9/d"),
        ("postgresql://u:c%7B0%7Dcanary{0}{x}@127.0.0.1:9/d", StudyError, "postgresql+psycopg://127.0.0.1:9/d"),
        ("mysql+pymysql://u:canary@h/d", StudyError, "pymysql is not installed. Install it: pip install pymysql"),
        ("postgresql+psycopg2://u:canary@h/d", StudyError, "pip install 'gpt2-lightning[postgres]'"),
        ("oracle8://u:canary@h/d", StudyError, "oracle8 is no database that is known here"),
        ("redis://u:canary@h/d", StudyError, "redis is no database that is known here"),
        ("postgresql+canary", StudyError, "cannot be understood (sweep.storage): what was given is no storage"),
        ("postgresql://u:12@canary@h:5/d", StudyError, "postgresql://... is no storage"),
        ("postgresql://u:1234/p@canary@h/d", StudyError, "postgresql://... is no storage"),
        ("postgresql://u:my canary@h/d", StudyError, "postgresql://... is no storage"),
        ("postgresql://u:my\ncanary@h/d", StudyError, "postgresql://... is no storage"),
        ("postgresql://u:x@h:canary/d", StudyError, "postgresql://... is no storage"),
        ("", StudyError, "what was given is no storage"),
        ("sqlite://", StudyError, "it would be gone with its process"),
        ("sqlite:///:memory:", StudyError, "it would be gone with its process"),
        ("sqlite:////proc/no/study.db", OutputError, "/proc/no/study.db): no such file or directory"),
        ("journal:/proc/no/journal.log", OutputError, "/proc/no/journal.log): no such file or directory"),
        ("journal:/", OutputError, "cannot be written"),
    ],
)
def test_a_storage_that_cannot_be_used_says_why(
    asked: str, kind: type[Exception], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "canary")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    with pytest.raises(kind) as raised:
        open_storage(asked, tmp_path)
    assert text in str(raised.value)
    assert "canary" not in "".join(traceback.format_exception(raised.value))


def test_a_file_in_the_folders_place_and_one_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database, no journal\n" * 100)
    for asked in ("journal", "sqlite"):
        with pytest.raises(OutputError, match="cannot be written"):
            open_storage(asked, tmp_path / "file")
    with pytest.raises(StudyError, match="file is not a database"):
        open_storage(f"sqlite:///{tmp_path}/file", tmp_path)
    with pytest.raises(StudyError, match="file:1 is not a line of Optuna's journal"):
        open_storage(f"journal:{tmp_path}/file", tmp_path)


@pytest.mark.postgres
@pytest.mark.parametrize("given", ["url", "environment", "query"])
def test_a_refused_password_is_not_shown(
    given: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = f"postgresql://study@127.0.0.1:{postgres.port}/postgres"
    monkeypatch.setenv("PGPASSWORD", "wrong-canary")
    urls = {"url": bare.replace("study@", "study:wrong-canary@"), "environment": bare, "query": bare + "?password=wrong-canary"}
    with pytest.raises(StudyError, match="password authentication failed") as raised:
        open_storage(urls[given], tmp_path)
    assert "canary" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.postgres
def test_a_password_from_the_environment_opens(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    open_storage(f"postgresql://study@127.0.0.1:{postgres.port}/{postgres.fresh_database().rpartition('/')[2]}", tmp_path)


@pytest.mark.postgres
def test_an_outage_shows_no_password(postgres: Postgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = open_storage(postgres.fresh_database(), tmp_path)
    study = study_in(place)
    postgres.stop()
    try:
        with pytest.raises(StudyError, match="storage is away") as raised:
            Patience(seconds=0.5).call(lambda: place.get_study_name_from_id(study))
    finally:
        postgres.start()
    said = capsys.readouterr().err + "".join(traceback.format_exception(raised.value))
    assert "warning: the study's storage is away" in said and PASSWORD not in said and "cAnArY" not in said


def test_a_storage_needs_no_torch() -> None:
    code = "import sys, gpt2_lightning.sweep.storage; assert not {'torch', 'hydra', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
