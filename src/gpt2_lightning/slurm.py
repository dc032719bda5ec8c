"""Slurm: a run or a study, checked, in; one job, or an array of a study's agents, submitted through submitit out.

The script's command is what a person would type, with the nodes and ranks that Slurm gives it and with a ``run.id`` fixed here:
every start of the job, requeued or not, finds the same folder and goes on in it.
One number: 1 process for Slurm to signal, the command's own, on one node; on several, srun starts one for each rank. Choice not
taken: submitit's own jobs, which unpickle a function: their process stands between Slurm's signals and the run.
"""

import os
import secrets
import shlex
import shutil
import sys
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from gpt2_lightning.config import RunConfig
from gpt2_lightning.errors import ConfigError, MachineError
from gpt2_lightning.folder import find_folder, finished, runs_folder
from gpt2_lightning.settings.launch import SlurmLaunch, unfit
from gpt2_lightning.settings.pretrained import require_there
from gpt2_lightning.sweep.command import begin
from gpt2_lightning.sweep.plan import Plan
from gpt2_lightning.sweep.storage import DEFAULT, VARIABLE, asked_storage

__all__ = ["submit_run", "submit_study"]

NOT_FOR_JOBS = ("launch", "dry_run", "run.id", "trainer.nodes", "trainer.devices", "sweep.agents", "sweep.storage")
HANDED_ON = f': "${{{VARIABLE}:?the storage is not in the environment, which Slurm was to hand on}}"'
SHIELD = "trap '' TERM  # Slurm tells the ranks, too: they save, and srun waits for them in a session of its own"


class Script(SlurmExecutor):
    """submitit's executor for a command line in place of a pickled function."""

    @classmethod
    def affinity(cls) -> int:
        """A script can be made where there is no Slurm; whether there is, ``send`` finds out."""
        return 2

    def text(self, command: str) -> str:
        """The script."""
        return self._make_submission_file_text(command, "")

    def send(self, command: str) -> str:
        """Submit it and return the job's number; raises MachineError with sbatch's own words."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with redirect_stderr(StringIO()):
                return str(self._submit_command(command).job_id)
        except (FailedJobError, FailedSubmissionError) as error:
            raise MachineError("Slurm", rule=f"the job is refused: {of_sbatch(str(error))}") from error
        finally:
            self.written.unlink(missing_ok=True)  # a link to the script, or the script of a job that is none
            remove_empty(self.folder, self.folder.parent)

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        self.written = submission_file_path
        return ["sbatch", "--export=ALL", str(submission_file_path)]


def submit_run(words: list[str], config: RunConfig, launch: SlurmLaunch, dry_run: bool) -> None:
    """Submit a run, or print its script; raises PlatformError for what a start here would refuse."""
    require_there(config.init)
    nodes, devices = ranks(words, config, launch)
    config = replace(config, trainer=replace(config.trainer, nodes=nodes, devices=devices))
    folder = find_folder(config, say=not dry_run)
    said = finished(folder, config) if folder else None
    if said is not None:
        print(said)
        return
    name = folder.name if folder else new_id() if config.run.id == "auto" else config.run.id
    own = [f"trainer.nodes={nodes}", f"trainer.devices={devices}", f"run.id={name}"]
    own += ["resume=auto"] if config.resume == "never" else []  # the run is new, and goes on when it is requeued
    gpus = devices if launch.gpus_per_node or config.trainer.accelerator == "gpu" else None
    job = {"job_name": config.run.name, "nodes": nodes, "ntasks_per_node": devices, "gpus_per_node": gpus}
    script = make_script(config, launch, job, {}, [SHIELD] if nodes > 1 else [])
    command = job_command(launch, [*job_words(words), *own], nodes)
    if dry_run:
        print(script.text(command), end="")
        return
    require_slurm()
    size = f"{counted(nodes, 'node')} with {counted(devices, 'rank')} each"
    told(script.send(command), size, runs_folder(config) / name, script.folder, "")


def submit_study(words: list[str], plan: Plan, launch: SlurmLaunch, dry_run: bool) -> None:
    """Submit a study's agents, or print their script; raises PlatformError for what a start here would refuse."""
    agents, asked = plan.sweep.agents, asked_storage(plan.sweep.storage)
    check_study(plan, launch)
    n = plan.sweep.devices_per_trial
    gpus = launch.gpus_per_node or (n if plan.base.trainer.accelerator == "gpu" else None)
    job = {"job_name": plan.sweep.name, "nodes": 1, "ntasks_per_node": 1, "gpus_per_node": gpus}
    array = {"array": f"0-{agents - 1}"} if agents > 1 else {}
    storage = [HANDED_ON] if "://" in asked else []
    script = make_script(plan.base, launch, job, array, storage)
    kept = [] if plan.sweep.storage == DEFAULT else [f"sweep.storage={DEFAULT if storage else asked}"]
    command = job_command(launch, [*job_words(words), *kept])
    if dry_run:
        print(script.text(command), end="")
        return
    require_slurm()
    begun = begin(plan)
    os.environ |= {VARIABLE: asked} if storage else {}
    told(script.send(command), counted(agents, "agent"), begun.folder, script.folder, "_0" if agents > 1 else "")


def ranks(words: list[str], config: RunConfig, launch: SlurmLaunch) -> tuple[int, int]:
    """Nodes, and ranks of each; raises ConfigError where the launch and the run do not agree."""
    typed = {word.partition("=")[0].lstrip("+") for word in words}
    t, found = config.trainer, []
    if launch.gpus_per_node and t.accelerator == "cpu":
        raise launch.refuse("gpus_per_node", "asks for GPUs, and trainer.accelerator=cpu uses none", "Set trainer=gpu")
    for name, asked, has in (("nodes", launch.nodes, t.nodes), ("devices", launch.gpus_per_node, t.devices)):
        follows = has is None or (has == 1 and f"trainer.{name}" not in typed)
        if asked is not None and not follows and asked != has:
            key = "nodes" if name == "nodes" else "gpus_per_node"
            rule = f"differs from trainer.{name} = {has}"
            raise launch.refuse(key, rule, f"Set trainer.{name}={asked}, or leave one of the two out")
        found.append(asked or has)
    nodes, devices = found
    if devices is None:
        rule = "must be said to Slurm before the node is known"
        raise ConfigError("devices", key="trainer.devices", value="null", rule=rule, remedy="Set launch.gpus_per_node=4")
    return nodes or 1, devices


def check_study(plan: Plan, launch: SlurmLaunch) -> None:
    """Raise ConfigError for agents that could not work, or not together."""
    n, gpus = plan.sweep.devices_per_trial, launch.gpus_per_node
    if launch.nodes not in (None, 1):
        raise launch.refuse("nodes", "is more than an agent has", f"Set sweep.agents={launch.nodes}: each has a node")
    if gpus and plan.base.trainer.accelerator == "cpu":
        raise launch.refuse("gpus_per_node", "asks for GPUs, and trainer.accelerator=cpu uses none", "Set trainer=gpu")
    if gpus and gpus < n:
        raise launch.refuse("gpus_per_node", f"is less than sweep.devices_per_trial = {n}", f"Set launch.gpus_per_node={n}")
    if plan.sweep.agents > 1 and asked_storage(plan.sweep.storage).startswith("sqlite"):
        remedy = "Set sweep.storage to the URL of a PostgreSQL database, or to journal where all nodes see one folder"
        raise plan.sweep.refuse("storage", f"is for one machine, and not for {plan.sweep.agents} agents", remedy)


def make_script(config: RunConfig, launch: SlurmLaunch, job: dict[str, Any], more: dict[str, Any], setup: list[str]) -> Script:
    """The executor of a job's script; raises ConfigError where the output folder cannot be written into it."""
    folder = Path(config.run.folder).absolute() / "slurm"
    if fault := unfit(str(folder)):
        raise ConfigError("output folder", key="run.folder", value=str(folder), rule=f"{fault}, for Slurm")
    threads = [f"export OMP_NUM_THREADS={launch.cpus_per_task}"] if launch.cpus_per_task else []
    script = Script(folder)
    script.update_parameters(
        **job,
        partition=launch.partition,
        account=launch.account,
        cpus_per_task=launch.cpus_per_task,
        time=None,
        wckey=None,
        setup=[*launch.setup, *threads, *setup],
        use_srun=False,
        stderr_to_stdout=True,
        additional_parameters={**own_options(folder, launch, job["nodes"], "array" in more), **more},
    )
    return script


def own_options(folder: Path, launch: SlurmLaunch, nodes: int, array: bool) -> dict[str, Any]:
    """The options of sbatch that submitit has no names for, or other defaults."""
    left_out = [name for name, value in launch.options.items() if value is None or value is False]  # 0 is a value
    given = {name.replace("_", "-"): value for name, value in launch.options.items() if name not in left_out}
    log = f"{str(folder).replace('%', '%%')}/{'%A_%a' if array else '%j'}.log"
    signal = f"{'B:' if nodes == 1 else ''}USR1@{launch.signal_seconds}"
    limit = {"time": launch.time} if launch.time else {}
    return {**given, "output": log, "signal": signal, "requeue" if launch.requeue else "no-requeue": True, **limit}


def job_words(words: list[str]) -> list[str]:
    """What was typed, without what has been seen to here."""
    seen_to = [word.lstrip("+").partition("=")[0] for word in words]
    return [word for word, key in zip(words, seen_to, strict=True) if not key.startswith("launch.") and key not in NOT_FOR_JOBS]


def job_command(launch: SlurmLaunch, words: list[str], nodes: int = 1) -> str:
    """The line of shell that is the job. On one node it is the process that Slurm signals; Lightning starts its other ranks."""
    python = [sys.executable, "-u", "-m", "gpt2_lightning", "train", *words, "launch=local"]
    if nodes == 1:
        return f"exec {shlex.join(python)}"
    cores = [f"--cpus-per-task={launch.cpus_per_task}"] if launch.cpus_per_task else []  # srun does not take sbatch's
    return shlex.join(["setsid", "srun", "--kill-on-bad-exit=1", *cores, *python])


def require_slurm() -> None:
    """Raise MachineError where no job can be submitted."""
    if shutil.which("sbatch") is None:
        remedy = "Start the command where jobs are submitted; dry_run=true shows the script anywhere"
        raise MachineError("Slurm", key="launch", value="slurm", rule="there is no sbatch on this machine", remedy=remedy)


def of_sbatch(text: str) -> str:
    """What sbatch said, in one line."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip().rstrip(".") for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "sbatch said nothing"


def remove_empty(*folders: Path) -> None:
    """Folders made for a job that is none."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def new_id() -> str:
    """The id of a run that begins when Slurm says so; two in a second differ."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def counted(n: int, what: str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{n} {what}{'s' * (n > 1)}"


def told(job: str, size: str, folder: Path, logs: Path, task: str) -> None:
    """What a person needs to know of a job."""
    shown = (os.path.relpath(path) for path in (folder, logs / f"{job}{task}.log"))
    print("submitted job {}, {}\n  folder  {}\n  log     {}".format(job, size, *shown))
    print(f"  end     scancel {job}   (it saves first; the same command goes on)", flush=True)
