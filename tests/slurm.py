"""A Slurm cluster of the tests' own: two nodes on this machine's loopback, in a temporary folder, that end with the tests.

As a program, ``python tests/slurm.py FOLDER``, it starts the daemons and is the parent of whatever they leave behind: when it
ends, so has everything that any job has started.
"""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
SECONDS = 40.0
REQUEUE_SECONDS = 5  # from a requeued job's end to its next start, the least that Slurm takes; by default it is 120
CONF = """ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmctldPidFile={folder}/ctld/pid
SlurmdPidFile={folder}/%n/pid
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/%n
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/%n.log
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={requeue}
CredType=cred/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=20
FirstJobId={ports[3]}
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName=n1 Port={ports[1]} NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4
NodeName=n2 Port={ports[2]} NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE
"""


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    lacking = [name for name in PROGRAMS if not find(name)]
    if lacking:
        return f"{', '.join(lacking)} not installed: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "Slurm's controller of the tests needs root"


def find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Cluster:
    """Running until ``remove``; ``env`` is how its commands find it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short, for the socket's path
        for name in ("ctld", "n1", "n2", "munge"):
            (self.folder / name).mkdir()
        (self.folder / "munge/key").write_bytes(secrets.token_bytes(128))
        (self.folder / "munge/key").chmod(0o600)
        host = socket.gethostname().partition(".")[0]
        conf = CONF.format(folder=self.folder, host=host, requeue=REQUEUE_SECONDS, ports=free_ports(4))
        (self.folder / "slurm.conf").write_text(conf)
        self.env = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, __file__, str(self.folder)]
            self.parent = subprocess.Popen(
                command, env=os.environ | self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        end = time.monotonic() + SECONDS
        while self.said("sinfo", "-h", "-o", "%T %D").strip() != "idle 2":
            assert self.parent.poll() is None and time.monotonic() < end, self.logs()
            time.sleep(0.2)

    def logs(self) -> str:
        """The ends of what the daemons say."""
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.folder.glob("*log")))

    def said(self, *words: str) -> str:
        """What one of Slurm's commands prints."""
        return subprocess.run(words, env=os.environ | self.env, capture_output=True, text=True, timeout=60).stdout

    def state(self, job: str) -> str:
        """A job's state, such as RUNNING; empty when it is forgotten."""
        return self.said("squeue", "-h", "-t", "all", "-o", "%T", "-j", job).strip()

    def jobs(self) -> list[str]:
        """What there is, and how it stands."""
        return self.said("squeue", "-h", "-t", "all", "-o", "%i %T %r").split("\n")[:-1]

    def remove(self) -> None:
        """End everything and wait for it."""
        self.parent.terminate()
        self.parent.wait(timeout=30)
        shutil.rmtree(self.folder, ignore_errors=True)


def free_ports(n: int) -> list[int]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def supervise(folder: Path) -> None:
    """Run the daemons until this process is told to end or its parent is gone; then end all that comes from them."""
    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    libc.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: whose parent is gone is this process's
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    munge = folder / "munge"
    files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
    try:
        daemon("munged", "-F", "-f", f"--socket={munge / 'socket'}", *files)
        while not (munge / "socket").exists():
            time.sleep(0.05)
        daemon("slurmctld", "-D")
        for node in ("n1", "n2"):
            daemon("slurmd", "-D", "-N", node)
        while True:
            os.wait()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_children()


def daemon(name: str, *words: str) -> None:
    subprocess.Popen([find(name) or name, *words], stdin=subprocess.DEVNULL)


def end_children() -> None:
    """Kill the children, and theirs that come to this process when they have no other parent, until there are none."""
    with suppress(ChildProcessError):
        while True:
            for child in Path("/proc").glob("[0-9]*/stat"):
                with suppress(OSError, ValueError, IndexError):
                    if int(child.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                        os.kill(int(child.parent.name), signal.SIGKILL)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(0.02)


if __name__ == "__main__":
    supervise(Path(sys.argv[1]))
