"""The ledger alone: who holds a trial, and what is left when nobody does."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from gpt2_lightning.sweep.ledger import LEFT, Ledger, Lost
from gpt2_lightning.sweep.storage import Patience, open_storage

KINDS = ["journal", "sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(params=KINDS)
def asked(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue("postgres").fresh_database() if request.param == "postgres" else request.param


def ledger(asked: str, folder: Path, n_trials: int = 3, lease: float = 60.0) -> Ledger:
    """An agent's view of the study, under a name of its own."""
    found = Ledger("study", open_storage(asked, folder), Patience(seconds=5.0), lease, ["minimize"], n_trials)
    found.me = f"agent-{time.monotonic_ns()}"
    return found


def nothing(place: int) -> None:
    return None


def claim(of: Ledger, point: bool = True) -> Any:
    found = of.claim(nothing)
    if found and point:
        of.note(found, "point", {"x": found.trial.suggest_float("x", 0, 1)})
    return found


def test_places_do_not_shift_when_claims_behind_the_last_are_let_go(asked: str, tmp_path: Path) -> None:
    small, large = ledger(asked, tmp_path, 2), ledger(asked, tmp_path, 4)
    names = [claim(small).name, claim(small).name]
    behind = small.add(TrialState.RUNNING, {"root": None, "agent": small.me})  # as if claimed at the same time
    other = claim(large)
    assert small.mine(behind, nothing) is None
    assert [*names, other.name] == ["trial-000", "trial-001", "trial-003"]
    assert [root.name for root in small.roots()] == ["trial-000", "trial-001", "trial-003"]
    assert claim(small) is None
    large.orphans = {t.number: time.monotonic() - 60 for t in large.trials()}
    large.reap()
    assert claim(large).name == "trial-002"
    assert claim(large) is None


def test_an_older_claim_of_a_root_counts(asked: str, tmp_path: Path) -> None:
    one, other = ledger(asked, tmp_path, 1), ledger(asked, tmp_path, 1)
    first = claim(one)
    root = one.roots()[0]
    assert one.hand_back(root.last, root)
    other.queue_again(other.roots()[0].last, other.roots()[0])  # as if two had found it orphaned
    second = claim(other)
    assert second.trial.params == first.trial.params
    assert claim(one) is None
    other.tell(second, {"state": "complete", "optuna": "COMPLETE", "told": [1.0]})
    assert claim(one) is None and one.roots()[0].outcome == {"state": "complete", "optuna": "COMPLETE", "told": [1.0]}
    assert [t.state for t in one.trials() if not t.state.is_finished()] == []


def test_who_has_lost_a_trial_can_tell_nothing_of_it(asked: str, tmp_path: Path) -> None:
    one, other = ledger(asked, tmp_path), ledger(asked, tmp_path)
    lost = claim(one)
    root = other.roots()[0]
    assert other.hand_back(root.last, root)
    assert not one.hand_back(root.last, root)
    for say in (lambda: one.tell(lost, {}), lambda: one.note(lost, "a", 1), lambda: one.report(lost, 1, 1.0)):
        with pytest.raises(Lost):
            say()
    assert not one.holds(lost)


def test_a_successor_has_every_parameter_however_far_its_predecessors_came(asked: str, tmp_path: Path) -> None:
    one = ledger(asked, tmp_path, 1)
    first = one.claim(lambda place: {"y": 0.25})
    x, y = first.trial.suggest_float("x", 0, 1), first.trial.suggest_float("y", 0, 1)
    assert y == 0.25
    for _ in range(2):
        root = one.roots()[0]
        assert one.hand_back(root.last, root)
        again = one.claim(lambda place: {"y": 0.75})
        assert again.trial.suggest_float("y", 0, 1) == y  # and is handed back before the other was asked for
    assert again.trial.suggest_float("x", 0, 1) == x


def test_what_a_place_has_from_the_start_outlives_an_agent_that_dies_before_noting_it(asked: str, tmp_path: Path) -> None:
    one = ledger(asked, tmp_path, 1)
    one.add(TrialState.RUNNING, {"root": None, "agent": "dead"})
    root = one.all_roots()[0]
    assert one.hand_back(root.last, root)
    assert one.claim(lambda place: {"y": 0.25}).trial.suggest_float("y", 0, 1) == 0.25


def test_a_silent_agent_is_gone_after_a_lease_of_watching(asked: str, tmp_path: Path) -> None:
    one, other = ledger(asked, tmp_path, lease=1.0), ledger(asked, tmp_path, lease=1.0)
    one.beat()
    held = claim(one)
    began = time.monotonic()
    while not other.reap():
        assert one.holds(held)
        time.sleep(0.1)
    assert time.monotonic() - began > 1.0
    assert not one.holds(held)


def test_who_was_away_itself_takes_nobody_for_dead(asked: str, tmp_path: Path) -> None:
    one, other = ledger(asked, tmp_path, lease=0.4), ledger(asked, tmp_path, lease=0.4)
    one.beat()
    claim(one)
    assert other.reap() == []
    time.sleep(0.6)
    assert other.reap() == []  # paused, or without its storage


def test_a_dead_agent_and_one_that_has_left_are_gone_at_once(asked: str, tmp_path: Path) -> None:
    one, other = ledger(asked, tmp_path), ledger(asked, tmp_path)
    one.beat()
    claim(one)
    assert other.reap() == []
    one.leave()
    assert other.storage.get_study_user_attrs(other.id)[f"agent:{one.me}"] == LEFT
    assert len(other.reap()) == 1


def test_a_claim_without_its_agents_name_lapses(asked: str, tmp_path: Path) -> None:
    one = ledger(asked, tmp_path, 1, lease=0.5)
    one.add(TrialState.WAITING, {"root": None})
    one.storage.set_trial_state_values(one.trials()[0]._trial_id, TrialState.RUNNING)  # and its agent is killed
    assert one.reap() == []
    end = time.monotonic() + 5
    while not one.reap():
        assert time.monotonic() < end
        time.sleep(0.1)
    assert claim(one).name == "trial-000"


def test_places_are_right_however_old_the_last_reading_is(asked: str, tmp_path: Path) -> None:
    agents = [ledger(asked, tmp_path, 30) for _ in range(2)]
    names = []
    for of in [0, 1, 1, 0, *[1] * 12, 0, 0, 1]:
        agents[of].read_at = math.inf
        names.append(claim(agents[of]).name)
    assert names == [f"trial-{i:03d}" for i in range(len(names))]


def test_between_two_readings_an_agent_knows_what_it_did_itself(asked: str, tmp_path: Path) -> None:
    one, other = ledger(asked, tmp_path), ledger(asked, tmp_path)
    one.trials()
    one.read_at = math.inf
    mine = one.claim(nothing)
    one.ask(mine, lambda trial: trial.suggest_float("x", 0, 1))
    assert list(one.recent()[0].params) == ["x"]
    one.report(mine, 1, 0.5)
    assert not one.prunes(mine)
    assert one.recent()[0].intermediate_values == {1: 0.5}
    claim(other)
    one.tell(mine, {"state": "complete", "optuna": "COMPLETE", "told": [1.0]})
    assert [t.values for t in one.study.get_trials(states=(TrialState.COMPLETE,))] == [[1.0]]
    one.read_at = 0.0
    assert len(one.recent()) == 2


def test_a_claim_reads_no_more_than_its_trial(asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = ledger(asked, tmp_path)
    one.enqueue("beside", {"seed": 1})
    one.trials()
    one.read_at, one.read_seconds = math.inf, 60.0
    monkeypatch.setattr(one.storage.beneath, "get_all_trials", None)
    assert [claim(one).name for _ in range(3)] == ["beside", "trial-000", "trial-001"]


@pytest.mark.parametrize("queued", [False, True])
def test_what_an_agent_knows_of_its_trials_is_what_the_storage_has(asked: str, queued: bool, tmp_path: Path) -> None:
    one, there = ledger(asked, tmp_path), open_storage(asked, tmp_path)
    if queued:
        one.enqueue("beside", {"seed": 1})
    held = one.claim(lambda place: {"y": 0.25})
    outcome = {"state": "complete", "optuna": "COMPLETE", "told": [0.5], "broken": (), "a": {1: math.inf}}
    steps: list[Callable[[], Any]] = [
        lambda: None,
        lambda: one.ask(held, lambda t: (t.suggest_float("y", 0, 1), t.suggest_categorical("z", ["1", None]))),
        lambda: one.ask(held, lambda t: t.suggest_int("n", 1, 64, log=True)),
        lambda: one.note(held, "point", {"y": (1, 2), "z": None}),
        lambda: one.report(held, 10, 0.1),
        lambda: one.report(held, 20, 1e-300),
        lambda: one.prunes(held),
        lambda: held.trial.set_constraint("seconds", 1.5),
        lambda: one.end(held.trial._trial_id, outcome),
    ]
    for number, step in enumerate(steps):
        step()
        assert held.trial._trial_id in one.storage.trials, "it is not asked for"
        known, read = (vars(where.get_trial(held.trial._trial_id)) for where in (one.storage, there))
        assert {**known, "datetime_complete": 0} == {**read, "datetime_complete": 0}, number
        assert (known["datetime_complete"] is None) == (read["datetime_complete"] is None)


def test_a_trial_taken_away_is_read_again_once_that_is_noticed(asked: str, tmp_path: Path) -> None:
    one, other = ledger(asked, tmp_path), ledger(asked, tmp_path)
    lost = claim(one)
    root = other.roots()[0]
    assert other.hand_back(root.last, root)
    with pytest.raises(Lost):
        one.report(lost, 1, 1.0)
    assert one.storage.get_trial(lost.trial._trial_id).state == TrialState.FAIL
    assert one.storage.get_trial(lost.trial._trial_id).intermediate_values == {}


def test_what_the_storage_refuses_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = ledger("journal", tmp_path)
    held = claim(one)
    monkeypatch.setattr(one.storage.beneath, "set_trial_state_values", lambda *asked: False)
    assert not one.conclude(held.trial._trial_id, {})
    assert one.storage.get_trial(held.trial._trial_id).state == TrialState.RUNNING


def test_a_reading_is_taken_again_once_ten_would_have_fitted(tmp_path: Path) -> None:
    one, other = ledger("journal", tmp_path), ledger("journal", tmp_path)
    one.trials()
    one.read_seconds = 0.05
    claim(other)
    assert one.recent() == []
    time.sleep(0.6)
    assert len(one.recent()) == 1


def test_a_trial_whose_making_was_not_answered_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = ledger("journal", tmp_path)
    create = one.storage.beneath.create_new_trial

    def made(*asked: Any) -> None:
        create(*asked)
        raise OSError("its answer is lost")

    monkeypatch.setattr(one.storage.beneath, "create_new_trial", made)
    assert one.add(TrialState.WAITING, {"root": None}) == one.trials()[0]._trial_id == 0
    assert len(one.trials()) == 1
