"""A PostgreSQL server of the tests' own: an empty folder in, a running server out that can be stopped and started."""

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from itertools import count
from pathlib import Path
from urllib.parse import quote

PASSWORD = "cAnArY/p@ss:wörd%25{0}"
SECONDS = 30.0


def programs() -> Path | None:
    """The folder of the server's programs, the newest version's where there are several."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((place for place in reversed(places) if (place / "postgres").exists()), None)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def end_with_parent() -> None:
    """Ask the kernel to stop the server when the tests are killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


class Postgres:
    """A server on 127.0.0.1 with one user, ``study``, and its password; as root it runs as another user, as it must."""

    def __init__(self, place: Path, sync: bool = False) -> None:
        self.place, self.port, self.databases, self.sync = place, free_port(), count(), sync
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short, for the socket's path; pytest's own is closed to others
        self.identity: dict[str, int] = {}
        if os.geteuid() == 0:
            names = {entry.pw_name: entry for entry in pwd.getpwall()}
            user = names.get("postgres") or names["nobody"]
            self.identity = {"user": user.pw_uid, "group": user.pw_gid}
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        self.server: subprocess.Popen[bytes] | None = None
        self.initialise()
        self.start()

    @property
    def url(self) -> str:
        """The URL of the first database, password and all."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql://study:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"

    def initialise(self) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD, encoding="utf-8")
        secret.chmod(0o644)
        words = ["-U", "study", "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(
            [self.place / "initdb", "-D", self.folder / "data", *words],
            **self.identity, extra_groups=[] if self.identity else None, capture_output=True, text=True, cwd="/",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert threading.current_thread() is threading.main_thread(), "the server ends with the thread that started it"
        words = ["-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder), *([] if self.sync else ["-F"])]
        with (self.folder / "log").open("ab") as log:
            self.server = subprocess.Popen(
                [self.place / "postgres", "-D", self.folder / "data", *words],
                **self.identity, extra_groups=[] if self.identity else None, stdout=log, stderr=log, cwd="/",
                stdin=subprocess.DEVNULL, preexec_fn=end_with_parent,
            )  # fmt: skip
        end = time.monotonic() + SECONDS
        while not self.answers():
            assert self.server.poll() is None and time.monotonic() < end, (self.folder / "log").read_text(errors="replace")
            time.sleep(0.05)

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=2).close()
            return True
        except psycopg.OperationalError:
            return False

    def stop(self) -> None:
        """Stop it at once, as in an outage: connections break, nothing is tidied up."""
        if self.server is not None:
            self.server.send_signal(signal.SIGQUIT)
            self.server.wait(SECONDS)
            self.server = None

    def fresh_database(self) -> str:
        """The URL of a new, empty database."""
        import psycopg

        name = f"study{next(self.databases)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url_of(name)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
