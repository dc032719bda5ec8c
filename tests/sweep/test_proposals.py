"""Proposals: every name proposes or prunes, a study that goes on proposes what it would have proposed, rungs judge once."""

import math
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from gpt2_lightning.errors import ConfigError
from gpt2_lightning.settings.sweep import PRUNERS, SAMPLERS, SweepConfig
from gpt2_lightning.sweep.proposals import build_pruner, build_sampler, halve
from gpt2_lightning.sweep.space import Point, Space, read_space

optuna.logging.set_verbosity(optuna.logging.WARNING)
SPACE = {"x": "interval(0, 1)", "y": "tag(log, interval(1e-3, 1))", "n": "range(1, 200)"}
CONDITIONAL = {"o": "a,b", "x": {"o=a": "interval(0, 1)", "o=b": "interval(2, 3)"}}


def bowl(point: Point) -> float:
    return sum((float(value) - 0.5) ** 2 for value in point.values() if not isinstance(value, str))


def propose(config: SweepConfig, space: Space, n: int, study: optuna.Study | None = None) -> list[Point]:
    """``n`` trials, each asked of a sampler of its own, as an agent does."""
    study = study or optuna.create_study(directions=config.directions)
    points = []
    for number in range(len(study.trials), len(study.trials) + n):
        study.sampler = build_sampler(config, number)
        trial = study.ask()
        points.append(space.ask(trial))
        study.tell(trial, [bowl(points[-1])] * len(config.objectives))
    return points


def unlike(points: list[Point]) -> int:
    return len({tuple(sorted(point.items())) for point in points})


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.filterwarnings("error::UserWarning")
def test_every_sampler_proposes_and_never_the_same_twice(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    config = SweepConfig(sampler=name, seed=3)
    points = propose(config, read_space(SPACE), 9)
    assert unlike(points) == 9
    assert propose(config, read_space(SPACE), 9) == points, "a study of this seed"
    assert propose(SweepConfig(sampler=name, seed=4), read_space(SPACE), 9) != points
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_study_that_goes_on_proposes_what_it_would_have_proposed(name: str) -> None:
    config = SweepConfig(sampler=name)
    study = optuna.create_study()
    parts = propose(config, read_space(SPACE), 5, study) + propose(config, read_space(SPACE), 5, study)
    assert parts == propose(config, read_space(SPACE), 10)


@pytest.mark.parametrize("name", SAMPLERS)
def test_slots_that_are_filled_at_once_get_points_of_their_own(name: str) -> None:
    study, trials = optuna.create_study(), []
    for number in range(5):
        study.sampler = build_sampler(SweepConfig(sampler=name), number)
        trials.append((study.sampler, study.ask()))
    points = []
    for study.sampler, trial in trials:
        points.append(read_space(SPACE).ask(trial))
    assert unlike(points) == 5


@pytest.mark.parametrize("name", SAMPLERS)
def test_first_trials_that_do_not_see_each_other_yet_are_unlike(name: str) -> None:
    points = []
    for number in range(5):
        study = optuna.create_study(sampler=build_sampler(SweepConfig(sampler=name), number))
        points.append(read_space(SPACE).ask(study.ask()))
    assert unlike(points) == 5


@pytest.mark.parametrize("name", ["tpe", "random", "nsga2"])
def test_conditions_are_proposed(name: str) -> None:
    points = propose(SweepConfig(sampler=name), read_space(CONDITIONAL), 16)
    assert {point["o"] for point in points} == {"a", "b"}
    assert all((point["x"] <= 1) == (point["o"] == "a") for point in points)


@pytest.mark.parametrize("name", ["tpe", "gp", "qmc", "random", "nsga2"])
def test_several_objectives_are_searched(name: str) -> None:
    config = SweepConfig(sampler=name, objective=["val/accuracy", "seconds"], direction=["maximize", "minimize"])
    assert unlike(propose(config, read_space(SPACE), 8)) == 8


def test_qmc_covers() -> None:
    points = propose(SweepConfig(sampler="qmc"), read_space({"x": "interval(0, 1)", "y": "interval(0, 1)"}), 17)[1:]
    assert len({(int(point["x"] * 4), int(point["y"] * 4)) for point in points}) == 16


def test_tpe_goes_where_it_is_good() -> None:
    points = propose(SweepConfig(), read_space({"x": "interval(-20, 20)"}), 40)
    assert sum(abs(point["x"] - 0.5) < 4 for point in points[20:]) > 7  # at random 4 of 20


def test_options_reach_the_sampler_and_the_pruner() -> None:
    assert build_sampler(SweepConfig(sampler_options={"n_startup_trials": 77}), 0)._n_startup_trials == 77  # type: ignore[attr-defined]
    pruner = build_pruner(SweepConfig(pruner_options={"reduction_factor": 2}), 10, 40)
    assert pruner._reduction_factor == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "names"), [("sampler", SAMPLERS), ("pruner", PRUNERS)])
def test_unknown_options_are_refused_with_where_to_look(kind: str, names: tuple[str, ...]) -> None:
    for name in names:
        with pytest.raises(ConfigError, match=rf"\(sweep.{kind}_options\).*The options are those of optuna.{kind}s."):
            config = SweepConfig(**{kind: name, f"{kind}_options": {"nonsense": 1}})
            build_sampler(config, 0) if kind == "sampler" else build_pruner(config, 10, 40)


def curves(n: int) -> list[list[float]]:
    return [[3 + 0.1 * i - 0.2 * step for step in range(1, 10)] for i in range(n)]


@pytest.mark.parametrize(
    ("name", "options"), [("halving", {}), ("hyperband", {}), ("median", {}), ("threshold", {"upper": 3.0}), ("none", {})]
)
def test_every_pruner_ends_the_worst_and_none_the_best(name: str, options: dict[str, Any]) -> None:
    study = optuna.create_study(pruner=build_pruner(SweepConfig(pruner=name, pruner_options=options), 10, 90), study_name="s")
    lengths = []
    for curve in curves(12):
        trial = study.ask()
        for i, value in enumerate(curve):
            trial.report(value, 10 * (i + 1))
            if study.pruner.prune(study, study._storage.get_trial(trial._trial_id)):
                break
        lengths.append(i)
        study.tell(trial, value if i == 8 else None, TrialState.COMPLETE if i == 8 else TrialState.PRUNED)
    assert lengths[0] == 8
    assert (lengths[-1] < 8) == (name != "none")


def frozen(number: int, reports: dict[int, float]) -> FrozenTrial:
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, intermediate_values=reports)
    trial.number = number
    return trial


few = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=14), min_size=1, max_size=9)


@given(few, st.sampled_from(["minimize", "maximize"]), st.integers(2, 4), st.integers(1, 7))
@settings(deadline=None, max_examples=80)
def test_halving_of_several_objectives_is_optuna_s_of_one(
    runs: list[list[int]], direction: str, reduction: int, every: int
) -> None:
    first = 5
    study = optuna.create_study(
        direction=direction, pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=reduction)
    )
    others: list[FrozenTrial] = []
    for number, run in enumerate(runs):
        trial, reports = study.ask(), {}
        for i, value in enumerate(run):
            reports[every * (i + 1)] = float(value)
            trial.report(float(value), every * (i + 1))
            theirs = trial.should_prune()
            assert halve(frozen(number, reports), others, direction, first, {"reduction_factor": reduction}) == theirs
            if theirs:
                break
        others.append(frozen(number, reports))
        study.tell(trial, float(value))


def test_a_trial_that_passed_its_rung_is_not_judged_again_until_the_next() -> None:
    others = [frozen(i, {10: 1.0, 20: 1.0}) for i in range(1, 6)]
    assert halve(frozen(0, {10: 2.0}), others, "minimize", 10, {})
    assert not halve(frozen(0, {10: 2.0, 20: 2.0}), others, "minimize", 10, {})
    assert not halve(frozen(0, {}), others, "minimize", 10, {})
    assert not halve(frozen(0, {5: math.inf}), others, "minimize", 10, {})
