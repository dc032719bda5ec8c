"""Who has started the ranks: an environment in; this process's place among them out.

torchrun and srun start all ranks at once, on every node. Without them rank 0 starts the others of its machine through Lightning
and tells them by their environment. Slurm's variables count only in a job step of several tasks that a run of several ranks
is meant for: a run of one rank in an allocation, and a study's trial, are worlds of their own.
One number: 10,000 ports for the meetings of Slurm's job steps. Choice not taken: Lightning's detection, which takes a
scheduler's variables wherever it finds them. Imports no torch.
"""

import os
import re
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass

from gpt2_lightning.errors import MachineError
from gpt2_lightning.settings.trainer import TrainerConfig

__all__ = ["GPU_SHARE", "RUN_FOLDER", "World", "find_world", "is_other_rank", "may_speak", "own_rank"]

RUN_FOLDER = "GPT2_LIGHTNING_RUN"  # tells the other ranks the folder that rank 0 opened
GPU_SHARE = "GPT2_LIGHTNING_GPU_SHARE"  # tells a trial how much of its GPUs' memory is its own
TORCHRUN, SRUN = "TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"
FIRST_PORT, PORTS = 15_000, 10_000


@dataclass(frozen=True, slots=True)
class World:
    """Ranks that somebody else has started: this one's numbers, how many there are, and where rank 0 is to be met."""

    starter: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    restarts: str = "0"

    @property
    def nodes(self) -> int:
        """Machines, each with as many ranks."""
        return self.size // self.local_size


def find_world(config: TrainerConfig) -> World | None:
    """The ranks that torchrun or srun has started for this run; None where nobody has.

    Raises MachineError where they are not as many as the run asks for.
    """
    world = by_torchrun() if TORCHRUN in os.environ else by_srun() if asks_for_tasks(config) else None
    if world is not None:
        require_fit(world, config)
    elif (config.nodes or 1) > 1:
        rule, remedy = "nobody has started ranks on other nodes", "Start the same command with torchrun or srun on each node"
        raise MachineError("nodes", key="trainer.nodes", value=config.nodes, rule=rule, remedy=remedy)
    return world


def by_torchrun() -> World:
    """torchrun's variables."""
    e = os.environ
    rank, size, local_rank, local_size = (int(e[f"{n}"]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    restarts = e.get("TORCHELASTIC_RESTART_COUNT", "0")
    return World("torchrun", rank, size, local_rank, local_size, e["MASTER_ADDR"], int(e["MASTER_PORT"]), restarts)


def asks_for_tasks(config: TrainerConfig) -> bool:
    """Whether this is one of several tasks of a job step, and the run is one of several ranks."""
    return several_tasks() and (config.nodes, config.devices) != (1, 1)


def several_tasks() -> bool:
    """Whether srun has started this process beside others."""
    return int(os.environ.get(SRUN, "1")) > 1 and "SLURM_PROCID" in os.environ


def by_srun() -> World:
    """The variables of a job step; MASTER_ADDR and MASTER_PORT win over what they give."""
    e = os.environ
    size, nodes = int(e[SRUN]), int(e.get("SLURM_STEP_NUM_NODES", "1"))
    address = e.get("MASTER_ADDR") or node_address(first_node(e.get("SLURM_STEP_NODELIST", "localhost")))
    number = 7 * int(e.get("SLURM_JOB_ID", "0")) + int(e.get("SLURM_STEP_ID", "0"))
    port = int(e.get("MASTER_PORT") or FIRST_PORT + number % PORTS)
    local_rank, restarts = int(e["SLURM_LOCALID"]), e.get("SLURM_RESTART_COUNT", "0")
    return World("srun", int(e["SLURM_PROCID"]), size, local_rank, max(1, size // nodes), address, port, restarts)


def first_node(names: str) -> str:
    """The first of Slurm's ``a[3-5,7],b``: a3."""
    found = re.match(r"([^,\[]+)(?:\[([0-9]+))?", names)
    return found[1] + (found[2] or "") if found else names


def node_address(name: str) -> str:
    """A node's name where it can be looked up, else the address that Slurm has for it."""
    with suppress(OSError):
        socket.getaddrinfo(name, None)
        return name
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["scontrol", "show", "node", name], capture_output=True, text=True, timeout=60)
        if found := re.search(r"NodeAddr=(\S+)", done.stdout):
            return found[1]
    return name


def require_fit(world: World, config: TrainerConfig) -> None:
    """Raise MachineError where the ranks are others than the run's."""
    nodes, devices = config.nodes or world.nodes, config.devices or world.local_size
    per_node = f"{world.local_size} on each of {world.nodes} nodes" if world.nodes > 1 else f"{world.size} on one node"
    rule = f"{world.starter} has started {world.size} ranks, {per_node}; the run has {devices} on each of {nodes}"
    remedy = f"Set trainer=ddp, or trainer.nodes={world.nodes} trainer.devices={world.local_size}"
    if world.local_size * world.nodes != world.size:
        rule, remedy = f"{world.starter} has started {world.size} ranks, not as many on each node", "Start as many on each node"
        raise MachineError("ranks", key="trainer.devices", value=config.devices, rule=rule, remedy=remedy)
    if nodes != world.nodes:
        raise MachineError("ranks", key="trainer.nodes", value=nodes, rule=rule, remedy=remedy)
    if devices != world.local_size:
        raise MachineError("ranks", key="trainer.devices", value=devices, rule=rule, remedy=remedy)


def own_rank(world: World | None) -> int:
    """This process's number among the ranks."""
    return world.rank if world else int(os.environ.get("LOCAL_RANK", "0")) if RUN_FOLDER in os.environ else 0


def is_other_rank(config: TrainerConfig) -> bool:
    """Whether this is another rank than 0, whose part it is to open the run's folder."""
    return own_rank(find_world(config)) != 0


def may_speak() -> bool:
    """Whether it is this process's part to say what all meet alike: of ranks that were started together, the first's."""
    started = os.environ.get("RANK") if TORCHRUN in os.environ else os.environ["SLURM_PROCID"] if several_tasks() else None
    return started in (None, "0")
