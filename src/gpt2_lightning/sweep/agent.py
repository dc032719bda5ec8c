"""The agent of a study: slots in; trials claimed, started, watched, ended early, told, and their slots filled again, out.

Any number of agents on any machines share a study through its ledger; each looks at its own slots, and queues again what agents
that are gone were training. One number: a free slot is filled within 0.1 s, and its trial starts when Python has.
Choice not taken: asking for a batch and waiting for all of it, which leaves slots idle whenever trials end early.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from gpt2_lightning.config import RunConfig, load_config, to_yaml
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.folder import write_whole
from gpt2_lightning.lock import living_holder, machine, process_state
from gpt2_lightning.signals import Interrupted
from gpt2_lightning.sweep.ledger import Claim, Ledger, Lost, Root, finished
from gpt2_lightning.sweep.outcome import Reports, classify, log_tail, read_scores, training_values
from gpt2_lightning.sweep.plan import Plan, fingerprint
from gpt2_lightning.sweep.pool import Child, Slot
from gpt2_lightning.sweep.proposals import build_pruner, build_sampler, halve
from gpt2_lightning.sweep.record import write_record
from gpt2_lightning.sweep.space import Point
from gpt2_lightning.sweep.summary import Row, rank, rows_of, short, write_tables
from gpt2_lightning.sweep.view import SlotLine, View

__all__ = ["Agent"]

TICK_SECONDS = 0.1
REAP_SECONDS = 2.0
STOP_SECONDS = 120.0  # a child's time to save and end
HELD_SECONDS = 300.0  # to wait for a folder that a process elsewhere holds
WORST = 1e3  # told of a diverged trial where no other value is known


@dataclass(slots=True)
class Work:
    """A trial in its slot. ``stopping``: why it was asked to end; ``trained``: the folder of a run of the same training."""

    claim: Claim
    slot: Slot
    config: RunConfig
    point: Point
    folder: Path
    log: Path
    reports: Reports
    words: list[str] = field(default_factory=list)
    trained: Path | None = None
    child: Child | None = None
    heard: int = 0
    begun: float = field(default_factory=time.monotonic)
    asked: float = 0.0
    again: float = 0.0
    starts: int = 0
    step: int = 0
    step_at_start: int = 0
    first: tuple[float, int] | None = None
    value: float | None = None
    stopping: str = ""
    told: set[int] = field(default_factory=set)


class Agent:
    """Runs a study to its end. ``command`` makes a trial's command line from its settings' file and its candidates' file."""

    def __init__(self, plan: Plan, ledger: Ledger, slots: list[Slot], view: View) -> None:
        self.plan, self.ledger, self.slots, self.view = plan, ledger, slots, view
        self.work: dict[int, Work] = {}
        self.rows: list[Row] = []
        self.reaped = self.tried = 0.0
        self.signal = 0
        self.dirty = True
        self.samplers: dict[str, list[dict[str, Any]]] = {}
        c = plan.base.trainer
        ledger.prepare = lambda number: build_sampler(plan.sweep, number)
        ledger.study.pruner = build_pruner(plan.sweep, c.val_every, c.max_steps)

    def run(self) -> list[Row]:
        """Work until every trial of the study has its outcome; raises Interrupted at a signal, after handing back."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.note_signal)
        try:
            while not self.turn():
                time.sleep(TICK_SECONDS)
        except BaseException:
            self.end_children()
            raise
        self.ledger.leave()
        return self.rows

    def note_signal(self, number: int, frame: FrameType | None) -> None:
        """The second signal ends the children at once."""
        if self.signal:
            for work in self.work.values():
                if work.child:
                    work.child.kill()
        self.signal = self.signal or number

    def turn(self) -> bool:
        """One look at everything; returns whether the study is over."""
        if self.signal:
            self.hand_back()
            raise Interrupted(self.signal, "its trials are queued again; the same command goes on")
        self.ledger.beat()
        for work in list(self.work.values()):
            self.guarded(work, self.look)
        self.reap()
        self.refill()
        self.draw()
        return not self.work and self.over()

    def guarded(self, work: Work, look: Callable[[Work], None]) -> None:
        """A trial that another agent has taken over is let go."""
        try:
            look(work)
        except (Lost, UpdateFinishedTrialError):
            if work.child:
                work.child.kill()
            self.free(work, f"{work.claim.name} is another agent's now")

    def reap(self) -> None:
        """Now and then: queue again what is left behind, and look at the whole study."""
        if time.monotonic() - self.reaped < REAP_SECONDS and not self.dirty:
            return
        for text in self.ledger.reap():
            self.view.note(text)
        roots = self.ledger.roots()
        self.rows = rows_of(roots)
        if self.dirty:
            write_tables(self.rows, self.plan)
            write_record(roots, self.plan)
        self.reaped, self.dirty = time.monotonic(), False

    def over(self) -> bool:
        """Whether every trial has an outcome, those on fresh seeds too, which are queued when the study's own are done."""
        roots = self.ledger.roots()
        if finished(roots, self.plan.n_trials) < self.plan.n_trials:
            return False
        self.confirm(roots)
        roots = self.ledger.roots()
        self.rows = rows_of(roots)
        write_tables(self.rows, self.plan)
        write_record(roots, self.plan)
        return all(root.outcome is not None for root in roots)

    def confirm(self, roots: list[Root]) -> None:
        """Queue the best and the baseline on fresh seeds, once."""
        ranked = rank(rows_of(roots), self.plan)
        if not self.plan.sweep.confirm_seeds or not ranked or len(self.plan.sweep.objectives) > 1:
            return
        there = {root.name for root in roots}
        for i in range(1, self.plan.sweep.confirm_seeds + 1):
            seed = (self.plan.base.seed + 1000 + i) % 2**32
            for side, point in (("best", ranked[0].point), ("baseline", self.plan.base_point)):
                if f"confirm-{side}-{i}" not in there:
                    attrs = {"side": side, "seed": seed, "point": {k: v for k, v in point.items()} if side == "best" else {}}
                    self.ledger.enqueue(f"confirm-{side}-{i}", attrs)

    def refill(self) -> None:
        """A trial for every free slot, as long as there are any."""
        free = [slot for slot in self.slots if slot.index not in self.work]
        for slot in free:
            if time.monotonic() < self.tried:
                return
            claim = self.ledger.claim(self.plan.n_trials, self.plan.fixed)
            if claim is None:
                self.tried = time.monotonic() + 1.0
                return
            try:
                self.begin(claim, slot)
            except (Lost, UpdateFinishedTrialError):
                self.view.note(f"{claim.name} is another agent's now")

    def begin(self, claim: Claim, slot: Slot) -> None:
        """Ask for the trial's settings, write them down, and start it."""
        beside = claim.attrs.get("beside")
        outside = self.plan.is_baseline(claim.place)
        point = beside["point"] if beside else {} if outside and self.fixed_none(claim) else self.ledger.call(
            lambda: self.plan.space.ask(claim.trial)
        )  # fmt: skip
        self.ledger.note(claim, "point", point)
        seed = [f"seed={beside['seed']}"] if beside else []
        try:
            config = self.settings(claim, slot, point, seed)
        except ConfigError as error:  # values that are fit one by one, and not together
            self.ledger.tell(claim, {"state": "failed", "class": "error", "reason": str(error), "values": {}, "steps": 0})
            self.dirty = True
            return
        folder = self.plan.folder / claim.name
        log = self.plan.folder / "logs" / f"{claim.name}.txt"
        work = Work(claim, slot, config, point, folder, log, Reports(folder / "metrics.jsonl"))
        work.trained = None if beside else self.twin(config)
        self.work[slot.index] = work
        self.start(work)

    def fixed_none(self, claim: Claim) -> bool:
        """Whether the baseline lies outside the space, so that nothing is asked of the sampler."""
        return self.plan.outside(claim.place) or not len(self.plan.space)

    def settings(self, claim: Claim, slot: Slot, point: Point, more: list[str]) -> RunConfig:
        """The trial's settings: those its file has where it was begun before, on whatever machine."""
        file = self.plan.folder / "configs" / f"{claim.name}.yaml"
        if file.exists():
            return load_config(str(file), [])
        config = self.plan.config(point, *self.plan.trial_words(claim.name, slot.threads), *more)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, to_yaml(config))
        return config

    def twin(self, config: RunConfig) -> Path | None:
        """The folder of a finished trial that trained the same; of any finished run where nothing but decoding is searched."""
        mark = fingerprint(config)
        for row in self.rows:
            folder = self.plan.folder / row.name
            if row.state == "complete" and row.outcome.get("fingerprint") == mark and (folder / "result.json").exists():
                return folder
        if not len(self.plan.space):
            for result in sorted(self.plan.folder.parents[1].glob("runs/*/*/result.json"), reverse=True):
                with suppress(ConfigError):
                    if fingerprint(load_config(str(result.parent / "config.yaml"), [])) == mark:
                        return result.parent
        return None

    def start(self, work: Work) -> None:
        """Start the trial's process, or start it again. What a process of this machine still holds in its folder is ended."""
        holder = living_holder(work.folder)
        if holder is not None and holder.machine == machine():
            end_group(holder.pid)
        words = ["trial", f"config={self.plan.folder / 'configs' / f'{work.claim.name}.yaml'}"]
        candidates = self.plan.candidates(work.point)
        if candidates:
            words.append(f"score={self.candidates_file(work, candidates)}")
        if work.trained is not None:
            words.append(f"trained={work.trained}")
        work.starts += 1
        work.step_at_start, work.asked, work.again = work.step, 0.0, 0.0
        work.heard = work.log.stat().st_size if work.log.exists() else 0
        if work.trained is not None and not candidates:
            self.conclude(work)
            return
        work.child = Child(words, work.slot, work.log, self.plan.sweep.devices_per_trial)
        if work.starts == 1:
            settings = ", ".join(f"{key}={short(value)}" for key, value in work.point.items()) or "the experiment as it is"
            self.view.note(
                f"{work.claim.name} starts: {settings}" + (f" (trained by {work.trained.name})" if work.trained else "")
            )

    def candidates_file(self, work: Work, candidates: list[Point]) -> Path:
        """The decode-time settings to score, written down for the trial."""
        asked = {"candidates": candidates, "samplers": self.all_samplers(candidates), "rows": self.plan.sweep.decode_rows,
                 "tokens": self.plan.sweep.decode_tokens}  # fmt: skip
        path = self.plan.folder / "configs" / f"{work.claim.name}.score.json"
        write_whole(path, json.dumps(asked))
        return path

    def all_samplers(self, candidates: list[Point]) -> list[dict[str, Any]]:
        """The whole settings of each candidate's sampler."""
        key = json.dumps(candidates)
        if key not in self.samplers:
            self.samplers = {key: [asdict(self.plan.config(candidate).sampler) for candidate in candidates]}
        return self.samplers[key]

    def look(self, work: Work) -> None:
        """What a trial has written, whether it is to end early, whether it has ended."""
        if work.child is None:
            if work.again and time.monotonic() > work.again:
                self.start(work)
            return
        self.read(work)
        status = work.child.poll()
        limit = self.plan.sweep.trial_seconds
        if status is None and limit and time.monotonic() - work.begun > limit and not work.stopping:
            self.stop(work, "time")
        if status is None and work.asked and time.monotonic() - work.asked > STOP_SECONDS:
            work.child.kill()
        if status is not None:
            self.read(work)
            self.ended(work, status)

    def read(self, work: Work) -> None:
        """Report the new validations, and have the pruner judge each."""
        name = self.plan.sweep.objectives[0]
        for line in work.reports.new():
            work.step = max(work.step, int(line["step"]))
            work.first = work.first or (time.monotonic(), work.step)
            if name not in line or not name.startswith("val/"):
                continue
            mark, value = int(line["tokens" if self.plan.sweep.report_by == "tokens" else "step"]), float(line[name])
            if mark in work.told or not math.isfinite(value):
                continue
            work.told.add(mark)
            work.value = value
            self.ledger.report(work.claim, mark, value)
            if line["step"] < work.config.trainer.max_steps and not work.stopping and self.should_prune(work):
                self.stop(work, "pruned")

    def should_prune(self, work: Work) -> bool:
        """What the pruner says; the baseline and what is trained beside the study are never ended."""
        sweep = self.plan.sweep
        if work.claim.place is None or self.plan.is_baseline(work.claim.place) or sweep.pruner == "none":
            return False
        trial = self.ledger.call(lambda: self.ledger.storage.get_trial(work.claim.trial._trial_id))
        if len(sweep.objectives) == 1:
            return self.ledger.call(lambda: self.ledger.study.pruner.prune(self.ledger.study, trial))
        others = [t for t in self.ledger.trials() if t.number != trial.number]
        first = self.plan.base.trainer.val_every
        return halve(trial, others, sweep.directions[0], first, dict(sweep.pruner_options))

    def stop(self, work: Work, why: str) -> None:
        """Ask a trial to end."""
        assert work.child
        work.stopping, work.asked = why, time.monotonic()
        work.child.stop()

    def ended(self, work: Work, status: int) -> None:
        """A trial's process has ended: tell what came of it, or start it again."""
        assert work.child
        work.child.kill()  # what it may have left behind
        kind, reason = classify(status, log_tail(work.log, work.heard))
        if status == 0:
            self.conclude(work)
        elif work.stopping == "pruned" and status in (143, -signal.SIGTERM):
            self.tell(work, "pruned")
        elif work.stopping == "time" and status in (143, -signal.SIGTERM, -signal.SIGKILL):
            self.tell(work, "failed", "time", f"took longer than sweep.trial_seconds = {self.plan.sweep.trial_seconds:g}")
        elif kind == "held" and time.monotonic() - work.begun < HELD_SECONDS:
            work.child, work.again = None, time.monotonic() + 5
        elif kind == "killed" and self.may_restart(work):
            self.view.note(f"{work.claim.name} was killed ({reason}) at step {work.step}, and goes on from its checkpoint")
            self.start(work)
        else:
            self.tell(work, "failed", kind, reason)

    def may_restart(self, work: Work) -> bool:
        """Whether a killed trial is this agent's still, and has come further since its start or has starts left."""
        if not self.ledger.holds(work.claim):
            raise Lost
        work.stopping = ""
        if work.step > work.step_at_start:
            work.starts = 1
        return work.starts <= self.plan.sweep.retries

    def conclude(self, work: Work) -> None:
        """A trial that has trained to its end, or whose training was there."""
        source = work.trained or work.folder
        values = training_values(source, self.plan.sweep.objectives, self.plan.sweep.directions)
        decode = self.best_candidate(work)
        values |= {name: v for name, v in decode.get("measures", {}).items() if name in self.plan.sweep.objectives}
        missing = [name for name in self.plan.sweep.objectives if name not in values]
        if missing:
            self.tell(work, "failed", "error", f"it has no finite {missing[0]}")
            return
        self.tell(work, "complete", values=values, decode=decode)

    def best_candidate(self, work: Work) -> dict[str, Any]:
        """The best of the decode-time candidates by their own measure, with the whole sampler; of equals the first."""
        by, sign = self.plan.sweep.decode_objective, -1 if self.plan.sweep.decode_direction == "maximize" else 1
        scores = read_scores(work.folder)
        fit = [(sign * s["measures"][by], i) for i, s in enumerate(scores) if by in s["measures"]]
        if not fit:
            return {}
        i = min(fit)[1]
        sampler = self.all_samplers(self.plan.candidates(work.point))[i]
        return {**scores[i], "sampler": sampler}

    def tell(self, work: Work, state: str, kind: str = "", reason: str = "", **more: Any) -> None:
        """Have the outcome in the ledger, and the slot free."""
        values = more.pop("values", {})
        outcome = {"state": state, "class": kind, "reason": reason, "values": values, "steps": work.step, **more}
        outcome |= {"seconds": round(time.monotonic() - work.begun, 1), "folder": str(work.trained or work.folder)}
        outcome |= {"fingerprint": fingerprint(work.config), "slot": work.slot.index}
        outcome |= self.constraints(work, state)
        outcome |= self.to_optuna(work, outcome)
        if kind:
            outcome["log"] = log_tail(work.log)
        self.ledger.tell(work.claim, outcome)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items()) or reason
        self.free(work, f"{work.claim.name} {state if state != 'failed' else f'failed ({kind})'} at step {work.step}: {shown}")

    def constraints(self, work: Work, state: str) -> dict[str, Any]:
        """By how much each constraint is broken (above 0), and whether any is; noted for the samplers that heed them."""
        if not self.plan.sweep.constraints or state != "complete":
            return {}
        names = {"peak_memory": "speed/peak_memory", "seconds": "seconds", "parameters": "parameters"}
        asked = [names[name] for name in self.plan.sweep.constraints]
        found = training_values(work.trained or work.folder, asked, ["minimize"] * len(asked))
        over = {name: found.get(names[name], math.inf) - most for name, most in self.plan.sweep.constraints.items()}
        for name, excess in over.items():
            self.ledger.call(partial(work.claim.trial.set_constraint, name, excess))
        return {"broken": [name for name, excess in over.items() if excess > 0]}

    def to_optuna(self, work: Work, outcome: dict[str, Any]) -> dict[str, Any]:
        """What the sampler is to see: a value, or nothing of what lies outside the space or beside the study."""
        many = len(self.plan.sweep.objectives) > 1
        if work.claim.place is None or self.plan.outside(work.claim.place):
            return {"optuna": "FAIL"}
        if outcome["state"] == "complete":
            return {"optuna": "COMPLETE", "told": [outcome["values"][name] for name in self.plan.sweep.objectives]}
        if outcome["state"] == "pruned" and not many and work.value is not None:
            return {"optuna": "PRUNED", "told": [work.value]}
        if outcome["class"] == "diverged":
            return {"optuna": "COMPLETE", "told": self.worst()}
        return {"optuna": "FAIL"}

    def worst(self) -> list[float]:
        """For a diverged trial: worse than every value of the study so far, and finite."""
        trials = [t for t in self.ledger.trials() if t.state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)]
        found = []
        for i, direction in enumerate(self.plan.sweep.directions):
            known = [v for t in trials for v in known_values(t, i) if abs(v) < WORST]
            low, high = (min(known), max(known)) if known else (0.0, WORST)
            found.append(high + (high - low) * 0.1 if direction == "minimize" else low - (high - low) * 0.1)
        return found

    def free(self, work: Work, text: str) -> None:
        """The slot has no trial any more."""
        self.work.pop(work.slot.index, None)
        self.view.note(text)
        self.dirty, self.tried = True, 0.0

    def draw(self) -> None:
        """Show where everything is."""
        lines = [self.line(work) for work in self.work.values()]
        ranked = rank(self.rows, self.plan)
        name = self.plan.sweep.objectives[0]
        done = sum(row.state not in ("running", "queued") for row in self.rows if row.place is not None)
        best = f"  best {ranked[0].values[name]:.4f} ({ranked[0].name})" if ranked else ""
        self.view.show(f"{self.plan.sweep.name}: {done}/{self.plan.n_trials} done, {len(self.work)} running{best}", lines)

    def line(self, work: Work) -> SlotLine:
        """One slot's line."""
        max_steps = work.config.trainer.max_steps
        left = None
        if work.first and work.step > work.first[1]:
            left = (time.monotonic() - work.first[0]) / (work.step - work.first[1]) * (max_steps - work.step)
        state = (work.stopping and f"ending ({work.stopping})") or ("training" if work.step < max_steps else "scoring")
        point = ", ".join(f"{key}={short(value)}" for key, value in work.point.items())
        return SlotLine(work.claim.name, point, state, work.step, max_steps, work.value, left)

    def hand_back(self) -> None:
        """Have all trials save and end, and queue them again."""
        self.view.note("ending: each trial saves a checkpoint")
        for work in self.work.values():
            if work.child:
                work.child.stop()
        self.end_children(STOP_SECONDS)
        for root in self.ledger.roots():
            if root.last.state == TrialState.RUNNING and root.last.user_attrs.get("agent") == self.ledger.me:
                self.ledger.hand_back(root.last, root)
        self.ledger.leave()

    def end_children(self, seconds: float = 0.0) -> None:
        """Wait for the children to end, and end those that do not."""
        end = time.monotonic() + seconds
        for work in self.work.values():
            while work.child and work.child.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            if work.child:
                work.child.kill()


def known_values(trial: FrozenTrial, i: int) -> list[float]:
    """The finite values of one objective that a trial has reached, those on its way too where there is one objective."""
    values = [trial.values[i]] if trial.values and len(trial.values) > i else []
    values += list(trial.intermediate_values.values()) if i == 0 else []
    return [v for v in values if math.isfinite(v)]


def end_group(pid: int) -> None:
    """Kill a trial that its agent has left, and wait until it is gone."""

    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while process_state(pid) is not None and time.monotonic() < end:
        time.sleep(0.02)
    if process_state(pid) is not None:
        print(f"warning: process {pid} does not end", file=sys.stderr)
