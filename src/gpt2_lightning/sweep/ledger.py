"""The ledger of a study: Optuna's storage in; trials that are claimed, leased, taken over and told, each once, out.

A *root* is one training of the study, its *place* the rank of its first trial among all roots: places 0 to n - 1 are the study,
and of agents that claim the last one at once the later ones find that they have a place behind it and let go. A trial whose
agent is gone is failed without an outcome, which only one can do, and the root is queued again with the same parameters; of
two successors the older one counts. A trial is over once it has an *outcome*. Every storage has what this takes: trials are
numbered in order, and a finished one never changes.
Reading all trials takes a database longer the more of them run, so it is done anew for decisions only, and otherwise for a
tenth of the time; between two readings an agent knows its own trials as they are, and others' as they were.
One number: an agent that is dead on this machine is known at once, one elsewhere after ``lease_seconds`` without a sign of
life.
Choice not taken: Optuna's heartbeat, which only some storages have, and only inside ``study.optimize``.
"""

import copy
import os
import socket
import time
import uuid
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from gpt2_lightning.lock import birth, machine, process_state, this_process
from gpt2_lightning.report.ranking import Row
from gpt2_lightning.sweep.held import Held
from gpt2_lightning.sweep.storage import Patience

__all__ = ["Claim", "Ledger", "Lost", "Root"]

T = TypeVar("T")

ASKED, AGENT, LEFT = "asked", "agent:", "left"
SETTLE_SECONDS = 5.0  # for the beginner of a study to say what it is held to
ORPHANED_SECONDS = 2.0  # between a trial's failing and its successor, unless an agent was killed there
READINGS = 10  # of all trials, that would fit between two of them
LONGEST_SECONDS = 1.0  # that a reading is taken to last: it may have waited for a storage that was away


Lost = UpdateFinishedTrialError  # the trial is another agent's now


@dataclass(slots=True)
class Root:
    """One training: its attempts in order, the ``last`` of which counts. ``place`` is None beside the study."""

    place: int | None
    attempts: list[FrozenTrial] = field(default_factory=list)

    @property
    def last(self) -> FrozenTrial:
        """The attempt that is over, or else the oldest that lives, or else the newest."""
        over = [t for t in self.attempts if "outcome" in t.user_attrs]
        alive = [t for t in self.attempts if not t.state.is_finished()]
        return (over or alive or self.attempts[-1:])[0]

    @property
    def outcome(self) -> dict[str, Any] | None:
        """What came of it; None while it is not over."""
        return self.last.user_attrs.get("outcome") if self.last.state.is_finished() else None

    @property
    def name(self) -> str:
        """What its folder is called."""
        return self.attempts[0].user_attrs.get("name") or f"trial-{self.place:03d}"

    @property
    def row(self) -> Row:
        """The training as people read of it."""
        trial, outcome = self.last, self.outcome or {}
        attrs = trial.user_attrs
        state = outcome.get("state", "running" if not trial.state.is_finished() else "queued")
        steps = int(outcome.get("steps", max(trial.intermediate_values, default=0)))
        of_trial = {"point": attrs.get("point", {}), "beside": attrs.get("beside", {})}
        of_outcome = {"why": outcome.get("class", ""), "values": outcome.get("values", {}), "outcome": outcome}
        return Row(name=self.name, place=self.place, state=state, steps=steps, **of_trial, **of_outcome)


@dataclass(slots=True)
class Claim:
    """A trial of this agent, its root's name and place, and its attributes."""

    trial: optuna.Trial
    name: str
    place: int | None
    attrs: dict[str, Any]


class Ledger:
    """The study of a name as one agent sees it, begun or joined. ``new`` says whether this agent began it."""

    def __init__(
        self, name: str, storage: BaseStorage, patience: Patience, lease_seconds: float, directions: list[str], n_trials: int
    ) -> None:
        def begin() -> tuple[optuna.Study, bool]:
            try:
                given = [StudyDirection[d.upper()] for d in directions]
                return optuna.create_study(storage=storage, study_name=name, directions=given), True
            except DuplicatedStudyError:
                return optuna.load_study(storage=storage, study_name=name), False

        study, self.new = patience.call(begin)
        self.study, self.storage, self.patience = study, Held(study._storage), patience
        study._storage = self.storage  # type: ignore[assignment]
        self.call, self.lease_seconds, self.n_trials = patience.call, lease_seconds, n_trials
        self.id = study._study_id
        self.me = f"{socket.gethostname()}.{os.getpid()}.{time.time_ns() % 10**9:09d}"
        self.seen: dict[str, tuple[Any, float]] = {}
        self.orphans: dict[int, float] = {}
        self.beats = 0
        self.last_beat = self.looked = 0.0
        self.known: list[FrozenTrial] = []
        self.read_at = self.read_seconds = 0.0
        study.get_trials = self.shown  # type: ignore[method-assign]  # what pruners ask
        self.prepare: Callable[[int], Any] = lambda number: None

    def asked(self) -> dict[str, Any] | None:
        """What the study was begun with; None where its beginner has not said it yet."""
        return self.call(lambda: self.storage.get_study_user_attrs(self.id)).get(ASKED)

    def agree(self, asked: dict[str, Any], prepare: Callable[[], None]) -> dict[str, Any]:
        """What the study is held to: what its beginner has said, or what this agent asks if that one is not heard of.

        Who says it has had the study prepared.
        """
        end = time.monotonic() + (0 if self.new else SETTLE_SECONDS)
        while (there := self.asked()) is None and time.monotonic() < end:
            time.sleep(0.1)
        if there is None:
            prepare()
            self.call(lambda: self.storage.set_study_user_attr(self.id, ASKED, asked))
        return there or asked

    def learn(self, origin: str, **known: Any) -> None:
        """Add a trial of another study, its params, distributions and values; it takes no place here. Once for an origin."""
        if not any(t.user_attrs.get("from") == origin for t in self.trials()):
            self.add(TrialState.COMPLETE, {"from": origin}, **known)

    def trials(self) -> list[FrozenTrial]:
        """All trials as they are, oldest first, each at the place of its number; not to be changed."""
        began = time.monotonic()
        self.known = sorted(self.call(lambda: self.storage.get_all_trials(self.id, deepcopy=False)), key=lambda t: t.number)
        self.read_at = time.monotonic()
        self.read_seconds = min(self.read_at - began, LONGEST_SECONDS)
        return self.known

    def recent(self) -> list[FrozenTrial]:
        """All trials: this agent's as it left them, others' as they were some readings ago."""
        return self.trials() if time.monotonic() - self.read_at > READINGS * self.read_seconds else self.known

    def shown(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """The same, as Optuna asks for them."""
        found = [t for t in self.recent() if states is None or t.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def renew(self, trial_id: int) -> FrozenTrial:
        """Know one trial as it is: one of this agent as it left it, another's read anew."""
        trial = self.call(lambda: self.storage.get_trial(trial_id))
        if trial.number < len(self.known) and not self.known[trial.number].state.is_finished():
            self.known[trial.number] = trial
        return trial

    def up_to(self, trial_id: int) -> list[FrozenTrial]:
        """All trials: those that came since the last reading up to this one, others as they were then.

        They are read one by one for as long as reading all of them takes: of many agents' trials a few are new, and most run.
        """
        created, end = self.storage.trials.get(trial_id), time.monotonic() + self.read_seconds
        if not created and self.renew(trial_id).number < len(self.known):
            return self.known
        while created and time.monotonic() < end:
            number = len(self.known)
            try:
                other = self.call(partial(self.storage.get_trial_id_from_study_id_trial_number, self.id, number))
            except KeyError:
                break
            if other == trial_id:
                created.number = number
                self.known.append(created)
                return self.known
            self.known.append(self.call(partial(self.storage.get_trial, other)))
        return self.trials()

    def roots(self, trials: list[FrozenTrial] | None = None) -> list[Root]:
        """The study's trainings in order of their places, any behind its last that began, then those beside it."""
        return [r for r in self.all_roots(trials) if self.counts(r) or any("point" in t.user_attrs for t in r.attempts)]

    def counts(self, root: Root) -> bool:
        """Whether the root is one that this agent is to see done."""
        return root.place is None or root.place < self.n_trials

    def finished(self, roots: list[Root]) -> int:
        """How many of the study's trainings are over."""
        return sum(root.outcome is not None for root in roots if root.place is not None and self.counts(root))

    def all_roots(self, trials: list[FrozenTrial] | None = None) -> list[Root]:
        """The same, and places behind the study's last that were claimed at the same time as it."""
        roots: dict[Any, Root] = {}
        beside: dict[str, Root] = {}
        for trial in self.trials() if trials is None else trials:
            attrs = trial.user_attrs
            if "root" not in attrs:
                continue
            if "name" in attrs:
                beside.setdefault(attrs["name"], Root(None)).attempts.append(trial)
            elif attrs["root"] is None:
                roots[trial.number] = Root(len(roots), [trial])
            elif attrs["root"] in roots:
                roots[attrs["root"]].attempts.append(trial)
        return [*roots.values(), *beside.values()]

    def beat(self) -> None:
        """A sign of life, four in a lease."""
        if time.monotonic() - self.last_beat < self.lease_seconds / 4 and self.beats:
            return
        self.beats += 1
        life = asdict(this_process()) | {"beat": self.beats}
        self.call(lambda: self.storage.set_study_user_attr(self.id, AGENT + self.me, life))
        self.last_beat = time.monotonic()

    def leave(self) -> None:
        """The last sign of life."""
        self.call(lambda: self.storage.set_study_user_attr(self.id, AGENT + self.me, LEFT))

    def gone(self, trial: FrozenTrial, lives: dict[str, Any]) -> bool:
        """Whether a trial's agent is known to be dead, or gives no sign of life for the time of a lease by this one's clock."""
        agent = trial.user_attrs.get("agent")
        if agent == self.me:
            return False
        life = lives.get(AGENT + str(agent))
        if life == LEFT:
            return True
        here = life if isinstance(life, dict) and life["machine"] == machine() else None
        if here and (process_state(here["pid"]) is None or birth(here["pid"]) != here["born"]):
            return True
        agent = agent or f"of {trial.number}"
        before, since = self.seen.get(agent, (None, 0.0))
        if before != (life,):
            self.seen[agent] = ((life,), time.monotonic())
            return False
        return time.monotonic() - since > self.lease_seconds

    def reap(self) -> list[str]:
        """Queue again what agents that are gone were training; returns what was done, in words."""
        roots = self.all_roots()
        lives = self.call(lambda: self.storage.get_study_user_attrs(self.id))
        if time.monotonic() - self.looked > self.lease_seconds / 2:
            self.seen.clear()  # paused, or the storage away: nobody else's sign could be seen either
        self.looked = time.monotonic()
        return [text for root in roots if (text := self.reap_one(root, lives))]

    def reap_one(self, root: Root, lives: dict[str, Any]) -> str:
        """What was done for a root: nothing, mostly."""
        last = root.last
        for trial in root.attempts:
            if trial.state == TrialState.RUNNING and self.gone(trial, lives):
                if "outcome" in trial.user_attrs:
                    self.conclude(trial._trial_id, trial.user_attrs["outcome"])
                elif trial is not last:
                    self.conclude(trial._trial_id, {})
                elif self.hand_back(trial, root) and self.counts(root):
                    return f"{root.name} is taken over from {trial.user_attrs.get('agent')}"
        if last.state.is_finished() and root.outcome is None and self.counts(root):
            since = self.orphans.setdefault(last.number, time.monotonic())
            if time.monotonic() - since > ORPHANED_SECONDS:
                self.queue_again(last, root)
                return f"{root.name} is queued again"
        return ""

    def hand_back(self, trial: FrozenTrial, root: Root) -> bool:
        """Fail a trial without an outcome, and queue its root again; False where another agent was quicker."""
        failed = self.conclude(trial._trial_id, {})
        if failed and self.counts(root):
            self.queue_again(trial, root)
        return failed

    def queue_again(self, trial: FrozenTrial, root: Root) -> None:
        """A successor with the parameters the root has, to be claimed by whoever is free."""
        attrs = {k: v for k, v in trial.user_attrs.items() if k in ("name", "beside")}
        attrs |= {"root": root.attempts[0].number}
        self.add(TrialState.WAITING, attrs, {**trial.system_attrs.get("fixed_params", {}), **trial.params})

    def add(self, state: TrialState, attrs: dict[str, Any], fixed: dict[str, Any] | None = None, **more: Any) -> int:
        """A new trial, whole in one step, and one even where the storage's answer was lost; returns the storage's id of it."""
        mark = uuid.uuid4().hex
        template = create_trial(state=state, user_attrs=attrs | {"mark": mark},
                                system_attrs={"fixed_params": fixed} if fixed else {}, **more)  # fmt: skip
        tried = False

        def create() -> int:
            nonlocal tried
            there = self.storage.get_all_trials(self.id, deepcopy=False) if tried else []
            tried = True
            made = [t._trial_id for t in there if t.user_attrs.get("mark") == mark]
            return made[0] if made else self.storage.create_new_trial(self.id, template)

        if state == TrialState.WAITING:
            self.read_at = 0.0
        return self.call(create)

    def claim(self, fixed: Callable[[int], dict[str, Any] | None]) -> Claim | None:
        """A trial that is queued, or the next place's; None while all are taken. ``fixed``: what a place has from the start."""
        roots = [root for root in self.all_roots(self.recent()) if self.counts(root)]
        for trial in (t for root in roots for t in root.attempts if t.state == TrialState.WAITING):
            if self.win(trial) and (found := self.mine(trial._trial_id, fixed)):
                return found
        if sum(root.place is not None for root in roots) >= self.n_trials:
            return None
        return self.mine(self.add(TrialState.RUNNING, {"root": None, "agent": self.me}), fixed)

    def win(self, trial: FrozenTrial) -> bool:
        """Take a queued trial; False where another agent was quicker."""
        try:
            if not self.call(lambda: self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)):
                return False
            self.call(lambda: self.storage.set_trial_user_attr(trial._trial_id, "agent", self.me))
            return True
        except Lost:
            return False

    def mine(self, trial_id: int, fixed: Callable[[int], dict[str, Any] | None]) -> Claim | None:
        """The claim on a running trial; None where the study is full or its root has an older one, and it is let go."""
        roots = self.all_roots(self.up_to(trial_id))
        root, trial = next((r, t) for r in roots for t in r.attempts if t._trial_id == trial_id)
        older = [
            t for t in root.attempts if t.number < trial.number and (not t.state.is_finished() or "outcome" in t.user_attrs)
        ]
        if older or not self.counts(root):
            self.conclude(trial_id, {})
            return None
        self.storage.trials[trial_id] = trial
        given = fixed(root.place) if root.place is not None else None
        if given and "fixed_params" not in trial.system_attrs:
            self.call(lambda: self.storage.set_trial_system_attr(trial_id, "fixed_params", given))
        self.study.sampler = self.prepare(trial.number if root.place is None else root.place) or self.study.sampler
        self.study._thread_local.cached_all_trials = self.known  # where samplers look; study.ask has them read all anew
        made = self.call(lambda: optuna.Trial(self.study, trial_id))
        return Claim(made, root.name, root.place, {**trial.user_attrs})

    def ask(self, claim: Claim, what: Callable[[optuna.Trial], T]) -> T:
        """What a sampler or pruner has of a trial by all that is known, the trials that this agent has told among it."""
        asked = self.call(lambda: what(claim.trial))
        self.renew(claim.trial._trial_id)
        return asked

    def prunes(self, claim: Claim) -> bool:
        """What the pruner says of a trial's last report."""
        trial = self.renew(claim.trial._trial_id)
        return self.ask(claim, lambda _: self.study.pruner.prune(self.study, trial))

    def enqueue(self, name: str, attrs: dict[str, Any]) -> None:
        """Queue a training beside the study, once for a name."""
        self.add(TrialState.WAITING, {"root": None, "name": name, "beside": attrs})

    def holds(self, claim: Claim) -> bool:
        """Whether the trial is still this agent's, as the storage has it."""
        trial = self.call(lambda: self.storage.beneath.get_trial(claim.trial._trial_id))
        return trial.state == TrialState.RUNNING and trial.user_attrs.get("agent") == self.me

    def note(self, claim: Claim, name: str, value: Any) -> None:
        """Set an attribute of a trial; raises Lost."""
        self.call(lambda: self.storage.set_trial_user_attr(claim.trial._trial_id, name, value))

    def report(self, claim: Claim, step: int, value: float) -> None:
        """What a trial has reached at a step; raises Lost."""
        self.call(lambda: self.storage.set_trial_intermediate_value(claim.trial._trial_id, step, value))

    def tell(self, claim: Claim, outcome: dict[str, Any]) -> None:
        """What came of a trial; raises Lost: another agent may have ended it, and none can have claimed it."""
        if not self.end(claim.trial._trial_id, outcome):
            trial = self.call(lambda: self.storage.get_trial(claim.trial._trial_id))
            if trial.user_attrs.get("outcome") != outcome:
                raise Lost
        self.renew(claim.trial._trial_id)
        self.forget(claim)

    def forget(self, claim: Claim) -> None:
        """It is not this agent's any more: what is asked of it is asked of the storage."""
        self.storage.trials.pop(claim.trial._trial_id, None)

    def end(self, trial_id: int, outcome: dict[str, Any]) -> bool:
        """Write the outcome down, then finish the trial; False where it was finished."""
        try:
            self.call(lambda: self.storage.set_trial_user_attr(trial_id, "outcome", outcome))
        except Lost:
            return False
        return self.conclude(trial_id, outcome)

    def conclude(self, trial_id: int, outcome: dict[str, Any]) -> bool:
        """Finish a trial as its outcome, if any, says: what Optuna's samplers are to see of it; False where it was finished."""
        state, values = TrialState[outcome.get("optuna", "FAIL")], outcome.get("told")
        try:
            if state != TrialState.FAIL:
                trial = self.call(lambda: self.storage.get_trial(trial_id))
                self.call(lambda: self.study.sampler.after_trial(self.study, trial, state, values))
            return self.call(lambda: self.storage.set_trial_state_values(trial_id, state, values))
        except Lost:
            return False
