"""Where a command's work is done: on this machine, as jobs of a scheduler, or on a cluster. No part of what a run or study is.

One number: 120 s between Slurm's word that the time is over and its end, in which a run saves.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Final

from gpt2_lightning.settings.setting import Settings, setting

TIME: Final = r"(?:(\d+)-(\d{1,2})(?::(\d{2}))?(?::(\d{2}))?|(\d+):(\d{2}):(\d{2}))"
OURS: Final = {
    "account": "launch.account", "array": "sweep.agents", "chdir": "run.folder", "cpus-per-task": "launch.cpus_per_task",
    "error": "run.folder", "gpus-per-node": "launch.gpus_per_node", "job-name": "run.name", "nodes": "launch.nodes",
    "no-requeue": "launch.requeue", "ntasks": "trainer.devices", "ntasks-per-node": "trainer.devices",
    "open-mode": "run.folder", "output": "run.folder", "partition": "launch.partition", "requeue": "launch.requeue",
    "signal": "launch.signal_seconds", "time": "launch.time", "wrap": "launch.setup",
}  # fmt: skip


@dataclass(kw_only=True, slots=True)
class LaunchConfig(Settings, group="launch"):
    """On this machine."""

    kind: str = setting("local", "what starts the work", choices=("local",))


@dataclass(kw_only=True, slots=True)
class SlurmLaunch(LaunchConfig):
    """A job of Slurm. ``options``: any other option of sbatch by its long name."""

    kind: str = setting("slurm", "what starts the work", choices=("slurm",))
    partition: str | None = setting(None, "partition of the cluster (none: its default)")
    account: str | None = setting(None, "account that is charged (none: your default)")
    time: str | None = setting(None, "time limit, H:MM:SS or D-HH:MM:SS (none: the partition's)")
    nodes: int | None = setting(None, "nodes of a run (none: trainer.nodes)", at_least=1)
    gpus_per_node: int | None = setting(None, "GPUs of each node, of a run each a rank", at_least=1)
    cpus_per_task: int | None = setting(None, "CPU cores of each rank, or each agent (none: the default)", at_least=1)
    requeue: bool = setting(True, "start again where the job is preempted or its time is over")
    signal_seconds: int = setting(120, "seconds before the time limit at which a run saves and is requeued", at_least=10)
    setup: list[str] = setting([], "lines of shell before the command")
    options: dict[str, Any] = field(default_factory=dict)

    def check_rules(self) -> None:
        """What is written into a script stays in its line and is not another setting's; a job has time to save and go on."""
        for name in ("partition", "account"):
            if (value := getattr(self, name)) is not None and (fault := unfit(value)):
                raise self.refuse(name, fault)
        for line in self.setup:
            if not line.isprintable():
                raise self.refuse("setup", "must be lines of printable text")
        if self.time is not None and seconds(self.time) is None:
            rule = "must be H:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS"
            raise self.refuse("time", rule, "Set launch.time=4:00:00; in a file in quotes, or YAML makes a number of it")
        if self.time is not None and (seconds(self.time) or 0) <= self.signal_seconds:
            rule = f"must be longer than launch.signal_seconds = {self.signal_seconds}, or nothing is trained"
            raise self.refuse("time", rule)
        for name, value in self.options.items():
            self.check_option(str(name), value)

    def check_option(self, name: str, value: Any) -> None:
        """One option of sbatch; raises ConfigError."""
        long = name.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", long):
            rule = f"'{name}' is no long name of an option of sbatch"
            raise self.refuse("options", rule, "Set launch.options.qos=high, as sbatch has --qos=high")
        if long in OURS:
            raise self.refuse("options", f"'{name}' follows from {OURS[long]}", f"Set {OURS[long]}")
        if not isinstance(value, str | int | float | bool | None) or (fault := unfit(str(value))):
            rule = f"'{name}' {fault if isinstance(value, str) else 'must be text, a number, true, or null'}"
            raise self.refuse("options", rule)


@dataclass(kw_only=True, slots=True)
class RayLaunch(LaunchConfig):
    """The trials of a study on the nodes of a Ray cluster that is there."""

    kind: str = setting("ray", "what starts the work", choices=("ray",))
    address: str = setting("auto", "where the cluster is: HOST:PORT, or auto for RAY_ADDRESS or the one this machine is in")
    cpus: int = setting(1, "CPU cores of each trial", at_least=1)

    def check_rules(self) -> None:
        """An address of Ray's own port; its client's (ray://) holds no actors of ours."""
        if self.address != "auto" and not re.fullmatch(r"[\w.-]+:\d{1,5}", self.address):
            raise self.refuse("address", "must be auto or HOST:PORT", "Set launch.address=auto")


LAUNCHERS: dict[str, type[LaunchConfig]] = {"local": LaunchConfig, "slurm": SlurmLaunch, "ray": RayLaunch}


def unfit(value: str) -> str:
    """Why a value cannot stand in a line of options; empty where it can."""
    good = value and value.isprintable() and not set(value) & set("'\"\\")
    return "" if good else "must be printable text without quotes and backslashes"


def seconds(time: str) -> int | None:
    """How long a limit of Slurm's is; None for what is none, and for its short forms, which people read otherwise."""
    found = re.fullmatch(TIME, time)
    if found is None:
        return None
    days, *rest = (int(part or 0) for part in (found[1], found[2] or found[5], found[3] or found[6], found[4] or found[7]))
    return 86400 * days + 3600 * rest[0] + 60 * rest[1] + rest[2]
