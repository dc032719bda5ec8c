"""A study: what is searched, by what it is judged, and how much of the machine it may take.

One number: 20 trainings, the baseline among them. The space is text in Hydra's own sweep grammar, since users of other
sweepers have it in their files.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from gpt2_lightning.settings.setting import Settings, setting
from gpt2_lightning.settings.trainer import NAME

SAMPLERS = ("tpe", "gp", "cmaes", "qmc", "random", "grid", "nsga2")
PRUNERS = ("halving", "hyperband", "median", "threshold", "none")
DIRECTIONS = ("minimize", "maximize")
CONSTRAINTS = ("peak_memory", "seconds", "parameters")  # bytes, seconds of training, trainable parameters


@dataclass(kw_only=True, slots=True)
class SweepConfig(Settings, group="sweep"):
    """A study of one experiment. ``objective`` and ``direction`` are a word each, or a list for several objectives."""

    name: str = setting("auto", "name of the study (auto: that of its file in sweeps/)")
    params: dict[str, Any] = field(default_factory=dict)
    objective: Any = field(default="val/cross_entropy", metadata={"what": "what trials are judged by"})
    direction: Any = field(default="minimize", metadata={"what": "which way is better"})
    n_trials: int = setting(20, "trainings of the study in all, the baseline among them", at_least=1)
    sampler: str = setting("tpe", "what proposes settings", choices=SAMPLERS)
    sampler_options: dict[str, Any] = field(default_factory=dict)
    pruner: str = setting("halving", "what ends trials early", choices=PRUNERS)
    pruner_options: dict[str, Any] = field(default_factory=dict)
    seed: int = setting(0, "seed of the proposals", at_least=0, at_most=2**31)
    baseline: bool = setting(True, "train the experiment as it is first, as trial 0")
    enqueue: list[Any] = field(default_factory=list)
    warm_start: str = setting("", "study whose trials the proposals start from (empty: none)")
    report_by: str = setting("step", "what reports to the pruner are counted in", choices=("step", "tokens"))
    joint: bool = setting(False, "propose decode-time settings together with the others")
    decode_objective: str = setting("generation/perplexity_gap", "what decode-time settings are judged by")
    decode_direction: str = setting("minimize", "which way is better for decode-time settings", choices=DIRECTIONS)
    decode_rows: int = setting(32, "validation rows that are continued to judge decode-time settings", at_least=1)
    decode_tokens: int = setting(64, "new tokens of each of them", at_least=1)
    slots: int | None = setting(None, "trials at a time (none: one for each group of devices)", at_least=1)
    agents: int = setting(1, "agents that launch=slurm starts, each on a machine of its own", at_least=1)
    devices_per_trial: int = setting(1, "devices of a trial, each a rank", at_least=1)
    storage: str = setting("journal", "where the study is kept: journal, sqlite, or a database's URL")
    retries: int = setting(3, "starts without progress of a trial that was killed", at_least=0)
    lease_seconds: float = setting(60.0, "seconds without a sign of life of its machine, and a trial is taken over", at_least=1)
    trial_seconds: float | None = setting(None, "longest training of a trial in seconds (none: no limit)", above=0)
    constraints: dict[str, float] = field(default_factory=dict)
    confirm_seeds: int = setting(0, "fresh seeds with which the best and the baseline are trained at the end", at_least=0)
    report: bool = setting(True, "write the report and TensorBoard's board when the study ends or is interrupted")
    new_version: bool = setting(False, "begin a new study where the one of this name was asked something else")

    @property
    def objectives(self) -> list[str]:
        """The metrics, one or several."""
        return listed(self.objective)

    @property
    def directions(self) -> list[str]:
        """A direction for each objective."""
        given = listed(self.direction)
        return given * len(self.objectives) if len(given) == 1 else given

    def check_rules(self) -> None:
        """Lists that belong together, names from a closed list inside of free forms, and a name that becomes a folder."""
        if not re.fullmatch(NAME, self.name):
            rule = "must be 1 to 128 letters, digits, '_', '-', '.', '=' or '+', and not begin with '.', '-' or '+'"
            raise self.refuse("name", rule, "Set sweep.name=my_study")
        names, directions = listed(self.objective), listed(self.direction)
        if not names or not all(isinstance(name, str) and name for name in names):
            raise self.refuse("objective", "must be a metric's name, or several", "Set sweep.objective=val/cross_entropy")
        if len(set(names)) < len(names):
            raise self.refuse("objective", "names a metric twice")
        if len(directions) not in (1, len(names)) or not all(one in DIRECTIONS for one in directions):
            rule = f"must be minimize or maximize, one or as many as objectives: {len(names)}"
            raise self.refuse("direction", rule, "Set sweep.direction=minimize")
        for name, most in self.constraints.items():
            if name not in CONSTRAINTS or not isinstance(most, int | float) or not most > 0:
                rule = f"must give one of {', '.join(CONSTRAINTS)} a most above 0"
                raise self.refuse("constraints", rule, "Set 'sweep.constraints={seconds: 600}'")
        if not all(isinstance(point, dict) and point for point in self.enqueue):
            rule = "must be a list of points, each a mapping of keys of the space to values"
            raise self.refuse("enqueue", rule, "Set 'sweep.enqueue=[{optimizer.lr: 1e-3}]'")


def listed(value: Any) -> list[Any]:
    """The values of a list, or the one there is."""
    return list(value) if isinstance(value, list | tuple) else [value]
