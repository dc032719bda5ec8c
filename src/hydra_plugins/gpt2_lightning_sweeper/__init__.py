"""The Hydra door to the sweep engine: the words of a multirun in, ``python -m gpt2_lightning --multirun`` out.

Loaded at every start of Hydra: nothing heavy is imported. One number: 0 settings of its own; a study's are under ``sweep``, and
those that files for other sweepers have under ``hydra.sweeper`` are taken from here. Choice not taken: a launcher. A trial is a
run.
"""

import sys
from dataclasses import dataclass
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class GPT2LightningSweeperConf:
    """What a file may say in place of ``sweep.params``, ``sweep.n_trials``, ``sweep.direction`` and ``sweep.slots``."""

    _target_: str = "hydra_plugins.gpt2_lightning_sweeper.GPT2LightningSweeper"
    params: Optional[dict[str, Any]] = None  # noqa: UP045  OmegaConf reads types, not text
    n_trials: Optional[int] = None  # noqa: UP045
    direction: Any = None
    n_jobs: Optional[int] = None  # noqa: UP045


ConfigStore.instance().store(
    group="hydra/sweeper", name="gpt2_lightning", node=GPT2LightningSweeperConf, provider="gpt2_lightning"
)


class GPT2LightningSweeper(Sweeper):
    """Hands a multirun over."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Everything is composed anew for each trial."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the study, or the grid, that the words ask for, and end with its exit status."""
        from gpt2_lightning.__main__ import main

        sys.exit(main(["--multirun", *arguments]))
