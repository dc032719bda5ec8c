"""Where a study is kept: one word or URL in, an Optuna storage out that survives what disks, databases and signals do.

A journal is a file of JSON lines that only grows. Its lock is the kernel's and goes with the process that held it; a line
counts once its newline is there, so half a line is nobody's, and whoever appends next cuts it off. A database is Optuna's own
RDBStorage, with each transaction opened so that a claim has one winner and a paused process holds nobody up.
Open a storage after a fork, not before: both halves would be one worker to Optuna, and both would win every claim.
One number: 5 s for a database to answer before it counts as away. Choice not taken: Optuna's own journal file, whose lock
outlives a killed holder by 30 s and whose readers stop at a half-written line once another follows it.
"""

import fcntl
import json
import math
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState
from sqlalchemy import URL, Engine, event, exc, make_url

from gpt2_lightning.errors import OutputError, PlatformError, StudyError, first_line

__all__ = ["DEFAULT", "VARIABLE", "JournalFile", "Patience", "asked_storage", "open_storage", "redacted"]

T = TypeVar("T")
DEFAULT: Final = "journal"
VARIABLE: Final = "GPT2_LIGHTNING_STORAGE"
KEY: Final = "sweep.storage"
FORMS: Final = (
    "It is journal, journal:PATH, sqlite, sqlite:///PATH, or a database's URL such as postgresql://USER@HOST/DATABASE"
)
DRIVERS: Final = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
CONNECT_SECONDS: Final = 5
LOCK_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 0.05  # a server takes longer to go and come back
TABLE_TRIES: Final = 8
# SQLite takes its lock before the first read, or two claims of one trial both succeed. PostgreSQL drops a transaction whose
# process was paused within it, or its row lock stops everybody.
OPENINGS: Final = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SET LOCAL idle_in_transaction_session_timeout = '30s'"}
ALIVE: Final = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
CONNECT: Final[dict[str, dict[str, Any]]] = {
    "sqlite": {"timeout": 30, "isolation_level": None},
    "postgresql+psycopg": {"connect_timeout": CONNECT_SECONDS, **ALIVE},
    "postgresql+psycopg2": {"connect_timeout": CONNECT_SECONDS, **ALIVE},
    "mysql+pymysql": {"connect_timeout": CONNECT_SECONDS},
    "mysql+mysqldb": {"connect_timeout": CONNECT_SECONDS},
}
SECRETS: Final = (
    (re.compile(r"(\w://[^\s:/@]*:)(?:[^/\n]*@\S*@|[^/\n]*@|\S*@)"), r"\1***@"),
    (re.compile(r"(?i)(pass(?:word|wd)|pwd)(=|[\"']\s*:\s*)(\"[^\"]*\"|'[^']*'|[^\s&\"',;)]+)"), r"\1\2***"),
)


def asked_storage(setting: str) -> str:
    """What ``sweep.storage`` asks for; GPT2_LIGHTNING_STORAGE takes the place of the default, and of nothing else."""
    return os.environ.get(VARIABLE) or setting if setting == DEFAULT else setting


def redacted(text: str) -> str:
    """The text with ``***`` for every password in a URL, its query, or a ``password=`` of a library's message."""
    for pattern, shown in SECRETS:
        text = pattern.sub(shown, text)
    return text


def open_storage(asked: str, folder: Path) -> BaseStorage:
    """The storage of a study whose folder this is.

    Raises StudyError where it cannot be used, with the reason and no password; OutputError where its file cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name, _, path = asked.partition(":")
    if name == "journal":
        file = Path(path) if path else folder / "journal.log"
        require_writable(file)
        try:
            return Journal(JournalFile(file))
        except OSError as error:
            raise StudyError("the study's journal cannot be read", key=KEY, value=str(file), rule=first_line(error)) from error
    return open_database(URL.create("sqlite", database=str(folder / "study.db")) if asked == "sqlite" else parsed_url(asked))


def require_writable(path: Path) -> None:
    """Make the file and its folders where they are missing; raises OutputError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
    except OSError as error:
        rule = (error.strerror or str(error)).lower()
        raise OutputError("the study's storage cannot be written", key=KEY, value=str(path), rule=rule) from error


def parsed_url(text: str) -> URL:
    """The URL of a database, its driver named; the text is never shown unless it was understood."""
    try:
        url = make_url(text)
        url.get_backend_name()
    except (exc.ArgumentError, ValueError):
        url = None
    if url is None or (url.host and ("@" in f"{url.host}{url.database}" or not text.isprintable() or " " in text)):
        scheme = text.partition("://")[0]
        named = f"{scheme}://..." if "://" in text and scheme.replace("+", "").isalnum() else "what was given"
        rule = f"{named} is no storage. {FORMS}; in a user's name or password, @ : / and blanks are written %40 %3A %2F %20"
        raise StudyError("the study's storage cannot be understood", key=KEY, rule=rule) from None
    url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    if url.drivername == "sqlite" and url.database in (None, "", ":memory:"):
        raise StudyError("the study's storage cannot be used", key=KEY, value=text, rule="it would be gone with its process")
    return url


def open_database(url: URL) -> RDBStorage:
    """Optuna's storage in a database whose tables are there; two processes may make them at once."""
    if url.get_backend_name() == "sqlite":
        require_writable(Path(url.database or ""))
    for tries_left in reversed(range(TABLE_TRIES)):
        try:
            return connected(url)
        except (exc.DBAPIError, StorageInternalError, ImportError, exc.NoSuchModuleError, RuntimeError) as error:
            if not tries_left or not is_race(error):
                raise unusable(url, error) from error
            time.sleep(random.uniform(0.05, 0.4))
    raise AssertionError("the last try returns or raises")


def connected(url: URL) -> RDBStorage:
    """One attempt at it."""
    arguments = {key: value for key, value in CONNECT.get(url.drivername, {}).items() if key not in url.query}
    text = url.render_as_string(hide_password=False)  # with braces in it as %7B: Optuna takes it for a template
    storage = RDBStorage(text, engine_kwargs={"pool_pre_ping": False, "connect_args": arguments})
    event.listen(storage.engine, "checkout", partial(require_answer, storage.engine))
    event.listen(storage.engine, "checkin", lambda connection, record: record.info.update(used=time.monotonic()))
    opening = OPENINGS.get(storage.engine.name)
    if opening is not None:
        event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql(opening))
    return storage


def require_answer(engine: Engine, connection: Any, record: Any, proxy: Any) -> None:
    """Have the database answer on a connection that was idle, or the pool make another: asking takes as long as a read."""
    if time.monotonic() - record.info.get("used", math.inf) > IDLE_SECONDS:
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise exc.DisconnectionError from error


def is_race(error: Exception) -> bool:
    """Whether another process may just have made the same table or row."""
    error = source(error)
    busy = isinstance(error, exc.OperationalError) and ("already exists" in str(error) or "locked" in str(error))
    return busy or isinstance(error, exc.ProgrammingError | exc.IntegrityError | exc.InternalError)


def source(error: Exception) -> Exception:
    """The database's error where Optuna wraps it in one that guesses at the reason."""
    return error.__cause__ if isinstance(error, StorageInternalError) and isinstance(error.__cause__, Exception) else error


def reason(error: Exception) -> str:
    """The first line of what the driver or the system said, without a password."""
    error = source(error)
    driver = getattr(error, "orig", None)
    return redacted(first_line(driver if isinstance(driver, BaseException) else error))


def unusable(url: URL, error: Exception) -> StudyError:
    """Why a database cannot be a study's storage, and what helps."""
    what, rule, remedy = "the study's database cannot be used", reason(error), ""
    if isinstance(error, exc.NoSuchModuleError):
        rule, remedy = f"{url.drivername} is no database that is known here", FORMS
    elif isinstance(error, ImportError):
        cause = error.__cause__ or error
        missing = getattr(cause, "name", None) or url.get_driver_name()
        install = "'gpt2-lightning[postgres]'" if url.get_backend_name() == "postgresql" else missing
        what, rule = "the study's database has no driver here", f"{missing} is not installed"
        remedy = f"Install it: pip install {install}"
    elif is_away(error):
        what = "the study's database cannot be reached"
    place = URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()
    return StudyError(what, key=KEY, value=place, rule=rule, remedy=remedy)


def is_away(error: Exception) -> bool:
    """Whether the storage did not answer, or not now, rather than said no."""
    error = source(error)
    if isinstance(error, exc.DBAPIError):
        return error.connection_invalidated or isinstance(error, exc.OperationalError | exc.InterfaceError)
    return isinstance(error, StorageInternalError | exc.TimeoutError | OSError) and not isinstance(error, PlatformError)


@dataclass(kw_only=True, slots=True)
class Patience:
    """Calls on a storage that may be away for a while: tried again for ``seconds``, at first after 0.2 s, at last every 5 s.

    The answer may have been lost after the work was done, so a call tried again must bear being done twice. Reads do, and so do
    attributes, parameters and intermediate values: it is the same again. Not so
    creating a trial: a second one appears. Give it a mark among its attributes, and look for the mark before each try;
    creating a study: DuplicatedStudyError. ``load_if_exists`` bears it;
    telling a trial: UpdateFinishedTrialError. Read it and compare;
    claiming one: False though it was won. Read it, and compare a mark set in an attribute.
    """

    seconds: float = 300.0
    while_waiting: Callable[[], None] = lambda: None

    def call(self, what: Callable[[], T]) -> T:
        """What ``what`` returns; raises StudyError when the storage stays away, and any other error at once.

        Meanwhile the rest is looked after several times a second.
        """
        began, pause = None, 0.2
        while True:
            try:
                answer = what()
                break
            except Exception as error:
                if not is_away(error):
                    raise
                now = time.monotonic()
                if began is None:
                    began = now
                    say(f"warning: the study's storage is away: {reason(error)}; trying again for {self.seconds:g} s")
                if now - began >= self.seconds:
                    rule = f"it has not answered for {self.seconds:g} s: {reason(error)}"
                    raise StudyError("the study's storage is away", rule=rule) from error
                end = min(now + pause, began + self.seconds)
                while (left := end - time.monotonic()) > 0:
                    self.while_waiting()
                    time.sleep(min(left, 0.2))
                pause = min(2 * pause, 5.0)
        if began is not None:
            say(f"the study's storage is back after {time.monotonic() - began:.0f} s")
        return answer


def say(line: str) -> None:
    """One line on standard error."""
    with suppress(OSError):  # on a full disk
        print(line, file=sys.stderr, flush=True)


class Stale(Exception):
    """The journal has grown since it was last read."""


class Journal(JournalStorage):
    """Optuna's journal, of whose claims one wins: alone it also believes a former holder that claims a trial again."""

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Tell or claim a trial; False where another process holds it."""
        while True:
            try:
                return super().set_trial_state_values(trial_id, state, values)
            except Stale:
                continue


class JournalFile(BaseJournalBackend):
    """Optuna's journal in a file at ``path``, which exists: one JSON object a line, for the processes of one machine."""

    def __init__(self, path: Path) -> None:
        self.path, self.pid = path, os.getpid()
        self.starts = [0]  # where each line begins that was read, and where the next one will

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """The whole lines from that number on; raises StudyError at one that is not Optuna's, OSError when none can be read."""
        with self.locked(os.O_RDONLY, fcntl.LOCK_SH) as file:
            text = self.since(file, log_number_from)
        logs = []
        for number, line in enumerate(text.split(b"\n")[:-1], start=log_number_from):
            logs.append(self.parsed(line, number))
            if number + 1 == len(self.starts):
                self.starts.append(self.starts[number] + len(line) + 1)
        return logs

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Put lines at the end, on the disk when this returns; raises OSError with the file as it was.

        A claim is judged by what has been read, so it raises Stale where there is more.
        """
        text = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with self.locked(os.O_RDWR | os.O_APPEND, fcntl.LOCK_EX) as file:
            whole = self.starts[-1] + self.since(file, len(self.starts) - 1).rfind(b"\n") + 1
            if whole > self.starts[-1] and any("trial_id" in log and log.get("state") == TrialState.RUNNING for log in logs):
                raise Stale
            os.ftruncate(file, whole)  # the torn line of a killed writer
            try:
                write_all(file, text)
                os.fsync(file)
            except BaseException:
                os.ftruncate(file, whole)
                raise

    @contextmanager
    def locked(self, flags: int, kind: int) -> Iterator[int]:
        """The file, open and locked, for exclusive or shared use; raises TimeoutError where it stays locked."""
        assert os.getpid() == self.pid, "a storage is opened after the fork"
        file = os.open(self.path, flags | os.O_CLOEXEC)
        try:
            self.lock(file, kind)
            yield file
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # by name: a child forked meanwhile has the file open, too
            os.close(file)

    def lock(self, file: int, kind: int) -> None:
        """Wait for the lock, not for ever: a paused process may hold it."""
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError(f"{self.path} is locked by another process, which may be paused") from None
                time.sleep(random.uniform(0.001, 0.005))

    def since(self, file: int, number: int) -> bytes:
        """The bytes from a line's start to the end; raises StudyError when what was read is there no more."""
        size = os.fstat(file).st_size
        if size < self.starts[-1]:
            raise StudyError("the study's journal has been cut or replaced", key=KEY, value=str(self.path))
        return read_all(file, self.starts[number], size)

    def parsed(self, line: bytes, number: int) -> dict[str, Any]:
        """The line as an operation of Optuna's."""
        try:
            log = json.loads(line)
            if isinstance(log, dict) and isinstance(log.get("op_code"), int):
                return log
        except ValueError:
            pass
        rule = f"{self.path}:{number + 1} is not a line of Optuna's journal"
        remedy = "Bring the file back from a copy, or cut it before that line to lose what follows"
        raise StudyError("the study's journal is damaged", rule=rule, remedy=remedy)


def read_all(file: int, begin: int, end: int) -> bytes:
    """The bytes from begin to end; the kernel gives at most 2 GB at a time."""
    parts = []
    while begin < end and (part := os.pread(file, end - begin, begin)):
        parts.append(part)
        begin += len(part)
    return b"".join(parts)


def write_all(file: int, text: bytes) -> None:
    """Write all of it; a disk that is nearly full takes a part first and fails at the next."""
    while text:
        text = text[os.write(file, text) :]
