"""What proposes settings and what ends trials early: names in a study's settings in, Optuna's samplers and pruners out.

A sampler is made anew for each trial, seeded by the study's seed and the trial's place: a study that goes on proposes what it
would have proposed, and never the same twice. One number: 3, of as many trials at a rung of successive halving one goes on.
Choice not taken: one sampler for the whole study, whose random state is lost with its process.
"""

import warnings
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from gpt2_lightning.errors import ConfigError, first_line
from gpt2_lightning.settings.sweep import SweepConfig

__all__ = ["build_pruner", "build_sampler", "halve"]

REDUCTION = 3
SAMPLERS: dict[str, Any] = {
    "tpe": ("TPESampler", {"group": True, "n_startup_trials": 6}),  # group: a condition's parameters together
    "gp": ("GPSampler", {"n_startup_trials": 6}),
    "cmaes": ("CmaEsSampler", {"n_startup_trials": 1}),
    "qmc": ("QMCSampler", {"scramble": True, "warn_independent_sampling": False}),
    "nsga2": ("NSGAIISampler", {"population_size": 12}),
    "random": ("RandomSampler", {}),
    "grid": ("RandomSampler", {}),  # every point is given
}


def build_sampler(config: SweepConfig, number: int) -> BaseSampler:
    """The sampler for one trial; raises ConfigError for options it does not know."""
    name, options = SAMPLERS[config.sampler]
    own: dict[str, Any] = {"seed": (config.seed * 100_003 + number) % 2**31}
    if config.sampler == "qmc":  # one sequence for all trials, but for the first ones, which Optuna draws at random
        own = {"seed": config.seed, "independent_sampler": optuna.samplers.RandomSampler(**own)}
    return build("sampler", name, {**options, **own, **config.sampler_options})


def build_pruner(config: SweepConfig, first: int, last: int) -> BasePruner:
    """The pruner; rungs begin at the first report, ``last`` is the last one's mark. Raises ConfigError for unknown options."""
    rungs = {"min_resource": first, "reduction_factor": REDUCTION}
    pruners: dict[str, tuple[str, dict[str, Any]]] = {
        "halving": ("SuccessiveHalvingPruner", rungs),
        "hyperband": ("HyperbandPruner", {**rungs, "max_resource": max(first, last)}),
        "median": ("MedianPruner", {"n_startup_trials": 4}),
        "threshold": ("ThresholdPruner", {}),
        "none": ("NopPruner", {}),
    }
    name, options = pruners[config.pruner]
    return build("pruner", name, options | config.pruner_options)


def build(kind: str, name: str, options: dict[str, Any]) -> Any:
    """One of Optuna's samplers or pruners; raises ConfigError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return getattr(getattr(optuna, f"{kind}s"), name)(**options)
    except (TypeError, ValueError) as error:
        remedy = f"The options are those of optuna.{kind}s.{name}"
        raise ConfigError(f"{kind} options", key=f"sweep.{kind}_options", rule=first_line(error), remedy=remedy) from error


def halve(trial: FrozenTrial, others: list[FrozenTrial], direction: str, first: int, options: dict[str, Any]) -> bool:
    """Whether successive halving (Li et al. 2020, asynchronous) ends a trial of several objectives, by the first of them.

    ``intermediate_values`` hold it by step. The first report at or behind a rung, a power of the reduction times the first
    step, has to be among the best of its share of those that have come there. Optuna's own pruners refuse such studies.
    """
    steps = sorted(trial.intermediate_values)
    reduction, rung = options.get("reduction_factor", REDUCTION), options.get("min_resource", first)
    sign = 1 if direction == "minimize" else -1
    while steps and rung <= steps[-1]:
        there = sorted(v for v in (reached(t, rung, sign) for t in (*others, trial)) if v is not None)
        judged = len(steps) > 1 and steps[-2] >= rung  # at an earlier report
        if not judged and sign * trial.intermediate_values[steps[-1]] > there[max(1, len(there) // reduction) - 1]:
            return True
        rung *= reduction
    return False


def reached(trial: FrozenTrial, rung: int, sign: int) -> float | None:
    """A trial's first value at or behind a rung, smaller ones the better; None where it has not come there."""
    steps = [step for step in sorted(trial.intermediate_values) if step >= rung]
    return sign * trial.intermediate_values[steps[0]] if steps else None
