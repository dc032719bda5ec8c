"""The lock of a run's folder: a folder in, its only holder out, or the one line that names the other.

``.lock/`` holds one file, named by how many times the run has been started, and whoever made the highest number is the holder.
A number is made in one step and never made twice, so of two starts at once one wins, whether the lock was free, released, or
its holder dead. A holder on this machine lives while its process does (a process is told from a later one of the same number by
its start time); one elsewhere lives while its file is touched, and Slurm has not said that its job is over.
One number: 120 s without a touch, and a holder on another machine counts as dead. Choice not taken: flock, which network file
systems honour by chance.
"""

import errno
import json
import os
import socket
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from gpt2_lightning.errors import OutputError

__all__ = ["Lock", "job_id", "living_holder", "process_state"]

TOUCH_SECONDS = 15
DEAD_SECONDS = 120
OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}  # not NODE_FAIL
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


@dataclass(slots=True)
class Holder:
    """A process: ``machine`` is this boot and its processes' numbering, ``born`` when it began by the kernel's clock."""

    pid: int
    host: str
    machine: str
    born: str
    since: str
    job: str = ""
    restart: str = ""
    released: bool = False

    def same_process(self, other: "Holder") -> bool:
        """Whether both are one process; replacing its program by exec leaves it the same."""
        return (self.pid, self.host, self.machine, self.born) == (other.pid, other.host, other.machine, other.born)


class Lock:
    """The lock of ``folder``, which must exist; to be acquired, held through training, and released."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder / ".lock", 0
        self.done = threading.Event()

    def acquire(self) -> None:
        """Become the holder; raises OutputError that names the living one."""
        self.folder.mkdir(exist_ok=True)
        while not self.number:
            newest = newest_number(self.folder)
            holder = living_holder(self.folder.parent, ask=True)
            if holder is not None:
                raise held(self.folder.parent, holder)
            if claim(self.folder, newest + 1):
                self.number = newest + 1
        for path in self.folder.iterdir():
            if path.name != str(self.number) and not (path.name.isdecimal() and int(path.name) > self.number):
                path.unlink(missing_ok=True)
        threading.Thread(target=self.keep_touching, name="lock", daemon=True).start()

    def require(self) -> None:
        """Raise OutputError where another start has taken the run over, because this process seemed dead to it."""
        if newest_number(self.folder) != self.number:
            raise OutputError("run folder", key="folder", value=str(self.folder.parent), rule="another start has taken it over")

    def keep_touching(self) -> None:
        """Tell other machines that the holder lives."""
        while not self.done.wait(TOUCH_SECONDS):
            with suppress(OSError):
                os.utime(self.folder / str(self.number))

    def release(self) -> None:
        """Give it back; the number stays taken."""
        self.done.set()
        me = this_process()
        me.released = True
        with suppress(OSError):
            partial = write_holder(self.folder, me)
            if newest_number(self.folder) == self.number:
                partial.replace(self.folder / str(self.number))


def living_holder(run: Path, ask: bool = False) -> Holder | None:
    """Who holds the run in this folder; None when nobody does, or this very process. ``ask`` Slurm, too: to take it over."""
    path = run / ".lock" / str(newest_number(run / ".lock"))
    try:
        touched = path.stat().st_mtime
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    fresh = time.time() - touched < DEAD_SECONDS
    try:
        holder = Holder(**json.loads(text))
    except (ValueError, TypeError):  # being written, or cut short by a full disk
        return Holder(0, "?", "", "", "?") if fresh else None
    return holder if lives(holder, fresh, ask) else None


def lives(holder: Holder, fresh: bool, ask: bool = False) -> bool:
    """Whether the holder is alive and another process."""
    me = this_process()
    if holder.released or holder.same_process(me):
        return False
    if holder.machine and holder.machine == me.machine:
        return process_state(holder.pid) is not None and birth(holder.pid) == holder.born
    if holder.job and holder.job == me.job and holder.restart != me.restart:
        return False  # Slurm has started this job again, so its former start is over
    return fresh and not (ask and is_over(holder.job))


def newest_number(folder: Path) -> int:
    """The highest number in a lock's folder; 0 when there is none."""
    try:
        return max((int(name) for name in (path.name for path in folder.iterdir()) if name.isdecimal()), default=0)
    except OSError:
        return 0


def claim(folder: Path, number: int) -> bool:
    """Make the file of that number, whole and in one step; False when it was there."""
    partial, target = write_holder(folder, this_process()), folder / str(number)
    with suppress(FileNotFoundError):  # a winner has tidied up
        try:
            os.link(partial, target)
            return True
        except FileExistsError:
            return partial.stat().st_nlink == 2  # a network file system may have done it and lost the answer
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return create(target, partial.read_bytes())
        finally:
            partial.unlink(missing_ok=True)
    return False


def create(path: Path, content: bytes) -> bool:
    """Make the file where there are no links: at once, but empty for a moment."""
    try:
        with path.open("xb") as file:
            file.write(content)
        return True
    except FileExistsError:
        return False


def write_holder(folder: Path, holder: Holder) -> Path:
    """The holder's file under a name of its own."""
    partial = folder / f".{os.getpid()}.{socket.gethostname()}.{threading.get_ident()}"
    partial.write_text(json.dumps(asdict(holder)), encoding="utf-8")
    return partial


def held(run: Path, holder: Holder) -> OutputError:
    """The error that names the holder."""
    rule = f"is held by process {holder.pid} on {holder.host}, which started at {holder.since}"
    remedy = f"Wait for it or end it; elsewhere than on this machine, {DEAD_SECONDS} seconds after its death it counts as dead"
    return OutputError("run folder", key="folder", value=str(run), rule=rule, remedy=remedy)


def this_process() -> Holder:
    """This process as a holder."""
    now = datetime.now().isoformat(timespec="seconds")
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return Holder(os.getpid(), socket.gethostname(), machine(), birth(os.getpid()), now, job_id(), restart)


def job_id() -> str:
    """The Slurm job this runs in, with its place in an array; empty outside of Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def is_over(job: str) -> bool:
    """Whether Slurm says of a job that it has ended; a node it has lost may still be at work. False where it says nothing."""
    with suppress(OSError, subprocess.TimeoutExpired):
        words = ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=5) if job else None
        return done is not None and done.returncode == 0 and bool(states := set(done.stdout.split())) and states <= OVER
    return False


def machine() -> str:
    """This boot of this machine, and whose process numbers are meant: containers have their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def process_state(pid: int) -> str | None:
    """The kernel's letter for a living process; None when there is none, or it is dead and only not yet waited for."""
    fields = process_fields(pid)
    if fields is not None:
        return fields[0] if fields and fields[0] not in "ZXx" else None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "?"


def birth(pid: int) -> str:
    """When a process began, in ticks since the boot; empty where the system does not say."""
    fields = process_fields(pid)
    return fields[19] if fields else ""


def process_fields(pid: int) -> list[str] | None:
    """What stands behind the name in ``/proc/PID/stat``; empty when there is no such process, None without ``/proc``."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return [] if Path("/proc/self/stat").exists() else None
