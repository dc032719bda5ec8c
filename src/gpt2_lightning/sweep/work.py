"""A trial in its slot: what was claimed and what its process writes in; the state people see, values and outcome out.

One number: 1 slot for a trial from its start to its outcome, also while it waits to be started again. Choice not taken: keeping
what is known of a trial in the storage alone, which would be asked ten times a second.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2_lightning.config import RunConfig
from gpt2_lightning.report.page import duration
from gpt2_lightning.sweep.ledger import Claim
from gpt2_lightning.sweep.outcome import Reports, best_candidate, log_tail, training_values
from gpt2_lightning.sweep.plan import Plan, fingerprint
from gpt2_lightning.sweep.pool import Slot, Trial
from gpt2_lightning.sweep.space import Point
from gpt2_lightning.sweep.summary import short

__all__ = ["Work"]

LOOKS, LOOK_SECONDS = 500, 1.0  # a second, at all trials' files; at one trial's at least


@dataclass(slots=True)
class Work:
    """``home``: the study's; ``stopping``: why it is to end; ``mark``: its fingerprint; ``trained``: a run's with the same."""

    claim: Claim
    slot: Slot
    config: RunConfig
    point: Point
    home: Path
    trained: Path | None = None
    child: Trial | None = None
    heard: int = 0
    begun: float = field(default_factory=time.monotonic)
    asked: float = 0.0
    again: float = 0.0
    read_at: float = 0.0
    failures: int = 0
    waits: int = 0
    step: int = 0
    step_at_start: int = 0
    first: tuple[float, int] | None = None
    value: float | None = None
    stopping: str = ""
    told: set[int] = field(default_factory=set)
    mark: str = field(init=False)
    folder: Path = field(init=False)
    log: Path = field(init=False)
    reports: Reports = field(init=False)

    def __post_init__(self) -> None:
        self.mark, self.folder = fingerprint(self.config), self.home / self.claim.name
        self.log, self.reports = self.home / "logs" / f"{self.claim.name}.txt", Reports(self.folder / "metrics.jsonl")

    @property
    def source(self) -> Path:
        """The folder of the training."""
        return self.trained or self.folder

    @property
    def asked_file(self) -> Path:
        """Where the candidates to score are written down."""
        return self.home / "configs" / f"{self.claim.name}.score.json"

    def values(self, plan: Plan) -> tuple[dict[str, float], dict[str, Any]]:
        """The objectives' values as far as there are any, and the best decode-time candidate."""
        s = plan.sweep
        decode = best_candidate(self.folder, self.asked_file, s.decode_objective, s.decode_direction)
        measured = {name: v for name, v in decode.get("measures", {}).items() if name in s.objectives}
        return training_values(self.source, s.objectives, s.directions) | measured, decode

    def outcome(self, state: str, kind: str, reason: str) -> dict[str, Any]:
        """What came of it."""
        spent = round(time.monotonic() - self.begun, 1)
        known = {"state": state, "class": kind, "reason": reason, "steps": self.step, "seconds": spent}
        known |= {"folder": str(self.source), "fingerprint": self.mark}
        return known | ({"log": log_tail(self.log)} if kind else {})

    def due(self, n: int) -> bool:
        """Whether to look for new lines, of n running trials' files: a shared file system has them to answer."""
        now = time.monotonic()
        if now - self.read_at < min(n / LOOKS, LOOK_SECONDS):
            return False
        self.read_at = now
        return True

    def __str__(self) -> str:
        """What people see of it."""
        max_steps, left = self.config.trainer.max_steps, ""
        if self.first and self.step > self.first[1]:
            seconds = (time.monotonic() - self.first[0]) / (self.step - self.first[1]) * (max_steps - self.step)
            left = f"  {duration(seconds)} left"
        state = "training" if self.step < max_steps else "scoring" if self.asked_file.exists() else "finishing"
        state = f"ending ({self.stopping})" if self.stopping else state
        value = "-" if self.value is None else f"{self.value:.4f}"
        point = ", ".join(f"{key}={short(value)}" for key, value in self.point.items())
        return f"{self.claim.name}  {state}  step {self.step}/{max_steps}  {value}{left}  {point}"
