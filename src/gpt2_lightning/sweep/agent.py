"""The agent of a study: slots in; trials claimed, started, watched, ended early, told, and their slots filled again, out.

Any number of agents on any machines share a study through its ledger; each looks at its own slots, and queues again what agents
that are gone were training. One number: a free slot is filled within 0.1 s, and its trial starts when Python has.
Choice not taken: asking for a batch and waiting for all of it, which leaves slots idle whenever trials end early.
"""

import json
import math
import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any

from optuna.trial import TrialState

from gpt2_lightning.config import RunConfig, load_config, to_yaml
from gpt2_lightning.errors import ConfigError, OutputError, StudyError, first_line
from gpt2_lightning.folder import write_whole
from gpt2_lightning.lock import job_id, living_holder, machine
from gpt2_lightning.report.ranking import Row
from gpt2_lightning.signals import Interrupted
from gpt2_lightning.sweep.ledger import Claim, Ledger, Lost, Root
from gpt2_lightning.sweep.outcome import Reports, broken_by, classify, for_optuna, log_tail
from gpt2_lightning.sweep.plan import Plan, fingerprint
from gpt2_lightning.sweep.pool import Child, Slot, Start, end_group
from gpt2_lightning.sweep.proposals import build_pruner, build_sampler, halve
from gpt2_lightning.sweep.space import Point
from gpt2_lightning.sweep.summary import rank, short, write_record, write_tables
from gpt2_lightning.sweep.view import View
from gpt2_lightning.sweep.work import Work

__all__ = ["Agent"]

TICK_SECONDS = 0.1
REAP_SECONDS = 2.0
REAPS = 10  # that would fit between two of them: at most a tenth of the time goes into looking at the whole study
FILL_SECONDS = 1.0  # of starting trials in a row
STOP_SECONDS = 120.0  # a child's time to save and end
WAIT_SECONDS = 5.0  # before what may pass is tried again: a folder held by a process elsewhere, a full disk
MOST_WAITS = 60
FULL_BYTES = 2**20
RECORD_SECONDS = 15.0  # between two looks of others at trials that run
LEAVE_SECONDS = 5.0  # for the storage to answer an agent that is ending


class Agent:
    """Runs a study to its end. ``command`` makes a trial's command line from its settings' file and its candidates' file."""

    def __init__(self, plan: Plan, ledger: Ledger, slots: list[Slot], view: View, child: Start = Child) -> None:
        self.plan, self.ledger, self.slots, self.view, self.child = plan, ledger, slots, view, child
        self.work: dict[int, Work] = {}
        self.rows: list[Row] = []
        self.twins: dict[str, str] = {}
        self.reaped = self.reap_took = self.tried = self.recorded = 0.0
        self.signal = 0
        self.dirty = True
        self.sampler = cache(lambda candidate: asdict(plan.variants.at(json.loads(candidate)).sampler))  # its whole settings
        ledger.prepare = lambda place: build_sampler(plan.sweep, place)
        ledger.study.pruner = build_pruner(plan.sweep, *plan.marks)

    def run(self) -> list[Row]:
        """Work until every trial of the study has its outcome; raises Interrupted at a signal, after handing back."""
        for number in (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if job_id() else [])):
            signal.signal(number, self.note_signal)
        self.ledger.patience.while_waiting = self.heed
        try:
            self.ledger.beat()
            self.reap()
            while not self.turn():
                time.sleep(TICK_SECONDS)
        except Interrupted:
            self.hand_back()
            raise
        except BaseException:
            self.end_children()
            raise
        self.ledger.leave()
        return self.rows

    def note_signal(self, number: int, frame: FrameType | None) -> None:
        """The first signal is heeded at the next turn; the second ends everything at once."""
        if self.signal:
            self.end_children()
            os._exit(Interrupted(number, "").status)
        self.signal = number

    def heed(self) -> None:
        """Raise Interrupted after a signal."""
        if self.signal:
            raise Interrupted(self.signal, "its trials are queued again; the same command goes on")

    def turn(self) -> bool:
        """One look at everything; returns whether the study is over."""
        self.heed()
        self.ledger.beat()
        for work in list(self.work.values()):
            try:
                self.look(work)
            except Lost:
                self.let_go(work)
        self.refill()
        looked = self.reap()
        self.draw()
        return looked and not self.work and self.over()

    def let_go(self, work: Work) -> None:
        """End a trial that another agent has taken over."""
        self.ledger.forget(work.claim)
        if work.child:
            work.child.kill()
        self.free(work, f"{work.claim.name} is another agent's now")

    def reap(self) -> bool:
        """Now and then: queue again what is left behind, and look at the whole study; returns whether it was time."""
        last, most = self.dirty and not self.work, self.ledger.lease_seconds / 4
        if time.monotonic() - self.reaped < min(max(REAP_SECONDS, REAPS * self.reap_took), most) and not last:
            return False
        began = time.monotonic()
        for text in self.ledger.reap():
            self.view.note(text)
        roots = self.ledger.roots(self.ledger.recent())
        running = {t.number for root in roots for t in root.attempts if t.state == TrialState.RUNNING}
        for work in [work for work in self.work.values() if work.claim.trial.number not in running]:
            self.let_go(work)  # as after a long pause
        self.rows = [root.row for root in roots]
        self.twins = {row.outcome.get("fingerprint", ""): row.name for row in reversed(self.rows) if row.state == "complete"}
        if self.dirty or time.monotonic() - self.recorded > RECORD_SECONDS:
            self.write_tables(roots)
        self.reaped, self.dirty = time.monotonic(), False
        self.reap_took = self.reaped - began
        return True

    def write_tables(self, roots: list[Root]) -> None:
        """What people look at; a full disk costs no trial."""
        self.recorded = time.monotonic()
        try:
            write_tables(self.rows, self.plan)
            write_record(roots, self.plan)
        except OutputError as error:
            self.view.note(f"warning: {error}")

    def over(self) -> bool:
        """Whether every trial has an outcome, those on fresh seeds too, which are queued when the study's own are done."""
        roots = self.ledger.roots()
        if self.ledger.finished(roots) < self.plan.n_trials or self.confirm(roots):
            return False
        self.rows = [root.row for root in roots]
        if any(root.outcome is None for root in roots if self.ledger.counts(root)):
            return False
        write_tables(self.rows, self.plan)
        write_record(roots, self.plan)
        return True

    def confirm(self, roots: list[Root]) -> bool:
        """Queue the best and the baseline on fresh seeds, once; returns whether any was missing."""
        ranked = rank([root.row for root in roots], self.plan)
        if not self.plan.sweep.confirm_seeds or not ranked or len(self.plan.sweep.objectives) > 1:
            return False
        best, there, missing = ranked[0], {root.name for root in roots}, False
        for i in range(1, self.plan.sweep.confirm_seeds + 1):
            seed = (self.plan.base.seed + 1000 + i) % 2**32
            for side, point in (("best", best.point), ("baseline", {})):
                trained = "baseline" if side == "baseline" or self.plan.is_baseline(best.place) else best.name
                if (name := f"confirm-{trained}-{i}") not in there:
                    self.ledger.enqueue(name, {"side": side, "seed": seed, "point": point})
                    missing = True
        return missing

    def refill(self) -> None:
        """A trial for every free slot, as long as there are any; of many slots a part, so that running trials are looked at."""
        end = time.monotonic() + FILL_SECONDS
        for slot in [slot for slot in self.slots if slot.index not in self.work]:
            if not self.tried <= time.monotonic() < end:
                return
            claim = self.ledger.claim(self.plan.fixed)
            if claim is None:
                self.tried = time.monotonic() + 1.0
                return
            try:
                self.begin(claim, slot)
            except Lost:
                self.view.note(f"{claim.name} is another agent's now")
            except OutputError as error:
                self.view.note(f"warning: {claim.name} waits: {error}")
                self.release(claim.trial.number)
                self.tried = time.monotonic() + WAIT_SECONDS

    def release(self, *numbers: int) -> None:
        """Queue trials of this agent again."""
        for root in self.ledger.roots():
            if root.last.number in numbers and root.last.state == TrialState.RUNNING:
                self.ledger.hand_back(root.last, root)

    def begin(self, claim: Claim, slot: Slot) -> None:
        """Ask for the trial's settings, write them down, and start it."""
        beside = claim.attrs.get("beside")
        point: Point = beside["point"] if beside else {}
        if not beside and not self.plan.outside(claim.place):
            point = self.ledger.ask(claim, self.plan.space.ask)
        self.ledger.note(claim, "point", point)
        try:
            config = self.settings(claim, slot, point)
        except ConfigError as error:  # values that are fit one by one, and not together
            self.ledger.tell(claim, {"state": "failed", "class": "error", "reason": str(error), "values": {}, "steps": 0})
            self.view.note(f"{claim.name} failed (error): {error}")
            self.dirty = True
            return
        work = Work(claim, slot, config, point, self.plan.folder)
        work.trained = None if beside else self.twin(work.mark)
        self.start(work)
        self.recorded = 0.0
        asked = ", ".join(f"{key}={short(value)}" for key, value in point.items()) or "the experiment as it is"
        self.view.note(f"{claim.name} starts: {asked}{f' (trained by {work.trained.name})' if work.trained else ''}")

    def settings(self, claim: Claim, slot: Slot, point: Point) -> RunConfig:
        """The trial's settings: those its file has where it was begun before, on whatever machine."""
        file = self.plan.folder / "configs" / f"{claim.name}.yaml"
        if file.exists():
            return load_config(str(file), [])
        seed = {"seed": claim.attrs["beside"]["seed"]} if "beside" in claim.attrs else {}
        config = self.plan.variants.at(point | self.plan.of_trial(claim.name, slot.threads) | seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, to_yaml(config))
        return config

    def twin(self, mark: str) -> Path | None:
        """The folder of a finished trial that trained the same; of any finished run where nothing but decoding is searched."""
        if mark in self.twins and ((folder := self.plan.folder / self.twins[mark]) / "result.json").exists():
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
        if holder is not None and not self.ledger.holds(work.claim):
            raise Lost
        if holder is not None and holder.machine == machine():
            end_group(holder.pid)
        candidates = self.plan.candidates(work.point)
        words = self.words(work, candidates)
        self.work[work.slot.index] = work
        work.reports, work.step_at_start, work.asked, work.again = Reports(work.reports.path), work.step, 0.0, 0.0
        work.heard = work.log.stat().st_size if work.log.exists() else 0
        if work.trained is not None and not candidates:
            self.conclude(work)
            return
        try:
            work.child = self.child(words, work.slot, work.log, self.plan.sweep.devices_per_trial)
        except OSError as error:
            self.wait(work, first_line(error))

    def words(self, work: Work, candidates: list[Point]) -> list[str]:
        """The trial's command; the decode-time settings to score are written down for it."""
        words = ["trial", f"config={self.plan.folder / 'configs' / f'{work.claim.name}.yaml'}"]
        if candidates:
            asked = {"candidates": candidates, "samplers": [self.sampler(json.dumps(one)) for one in candidates],
                     "rows": self.plan.sweep.decode_rows, "tokens": self.plan.sweep.decode_tokens}  # fmt: skip
            write_whole(work.asked_file, json.dumps(asked))
            words.append(f"score={work.asked_file}")
        return words + ([f"trained={work.trained}"] if work.trained is not None else [])

    def look(self, work: Work) -> None:
        """What a trial has written, whether it is to end early, whether it has ended."""
        if work.child is None:
            if time.monotonic() > work.again:
                self.start(work)
            return
        status = work.child.poll()
        if status is not None or work.due(len(self.work)):
            self.read(work)
        limit = self.plan.sweep.trial_seconds
        if status is None and limit and time.monotonic() - work.begun > limit and not work.stopping:
            self.stop(work, "time")
        if status is None and work.asked and time.monotonic() - work.asked > STOP_SECONDS:
            work.child.kill()
        if status is not None:
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
        if len(sweep.objectives) == 1:
            return self.ledger.prunes(work.claim)
        trial = self.ledger.renew(work.claim.trial._trial_id)
        others = [t for t in self.ledger.recent() if t.number != trial.number]
        return halve(trial, others, sweep.directions[0], self.plan.marks[0], dict(sweep.pruner_options))

    def stop(self, work: Work, why: str) -> None:
        """Ask a trial to end."""
        assert work.child
        work.stopping, work.asked = why, time.monotonic()
        work.child.stop()

    def ended(self, work: Work, status: int) -> None:
        """A trial's process has ended: tell what came of it, or start it again; raises Lost."""
        assert work.child
        work.child.kill()  # what it may have left behind
        kind, reason = classify(status, log_tail(work.log, work.heard))
        if kind == "error" and shutil.disk_usage(self.plan.folder).free < FULL_BYTES:
            kind = "disk"
        if work.step > work.step_at_start:
            work.failures = work.waits = 0
        if status == 0:
            self.conclude(work)
        elif kind == "killed" and work.stopping == "pruned":
            self.tell(work, "pruned")
        elif kind == "killed" and work.stopping:
            self.tell(work, "failed", "time", f"took longer than sweep.trial_seconds = {self.plan.sweep.trial_seconds:g}")
        elif kind in ("held", "disk", "lost") and work.waits < MOST_WAITS:
            self.wait(work, reason)
        elif kind == "killed" and work.failures < self.plan.sweep.retries:
            if not self.ledger.holds(work.claim):
                raise Lost
            work.failures += 1
            self.view.note(f"{work.claim.name} was killed ({reason}) at step {work.step}, and goes on from its checkpoint")
            self.start(work)
        else:
            self.tell(work, "failed", "error" if kind in ("held", "disk") else kind, reason)

    def wait(self, work: Work, reason: str) -> None:
        """Leave a trial in its slot, to be started again in a while."""
        self.view.note(f"{work.claim.name} waits: {reason}")
        work.waits += 1
        work.child, work.stopping, work.again = None, "", time.monotonic() + WAIT_SECONDS

    def conclude(self, work: Work) -> None:
        """A trial that has trained to its end, or whose training was there."""
        values, decode = work.values(self.plan)
        if missing := [name for name in self.plan.sweep.objectives if name not in values]:
            self.tell(work, "failed", "error", f"it has no finite {missing[0]}")
        else:
            self.tell(work, "complete", values=values, decode=decode)

    def tell(self, work: Work, state: str, kind: str = "", reason: str = "", **more: Any) -> None:
        """Have the outcome in the ledger, and the slot free."""
        outcome = {"values": {}, **work.outcome(state, kind, reason), **more}
        if state == "complete":
            over = broken_by(work.source, self.plan.sweep.constraints)
            for name, excess in over.items():
                self.ledger.call(partial(work.claim.trial.set_constraint, name, excess))
            outcome["broken"] = [name for name, excess in over.items() if excess > 0]
        beside = work.claim.place is None or self.plan.outside(work.claim.place)
        outcome |= {"optuna": "FAIL"} if beside else for_optuna(outcome, self.plan.sweep, work.value, self.ledger.recent())
        self.ledger.tell(work.claim, outcome)
        if state == "complete":
            self.twins.setdefault(outcome["fingerprint"], work.claim.name)
        reached = {self.plan.sweep.objectives[0]: work.value} if state == "pruned" and work.value is not None else {}
        shown = ", ".join(f"{name} {value:.4f}" for name, value in (outcome["values"] or reached).items()) or reason
        self.free(work, f"{work.claim.name} {state if state != 'failed' else f'failed ({kind})'} at step {work.step}: {shown}")

    def free(self, work: Work, text: str) -> None:
        """The slot has no trial any more."""
        self.work.pop(work.slot.index, None)
        self.view.note(text)
        self.dirty, self.tried = True, 0.0

    def draw(self) -> None:
        """Show where everything is."""
        if not self.view.due():
            return
        lines = [str(work) for work in self.work.values()]
        ranked = rank(self.rows, self.plan)
        name = self.plan.sweep.objectives[0]
        done = sum(row.state not in ("running", "queued") for row in self.rows if row.place is not None)
        best = f"  best {ranked[0].values[name]:.4f} ({ranked[0].name})" if ranked else ""
        self.view.show(f"{self.plan.sweep.name}: {done}/{self.plan.n_trials} done, {len(self.work)} running{best}", lines)

    def hand_back(self) -> None:
        """Have all trials save and end, and queue them again; without the storage, others see this agent gone."""
        self.view.note("ending: each trial saves a checkpoint")
        for work in self.work.values():
            if work.child:
                work.child.stop()
        self.end_children(STOP_SECONDS)
        patience = self.ledger.patience
        patience.seconds, patience.while_waiting = LEAVE_SECONDS, lambda: None
        try:
            self.release(*(work.claim.trial.number for work in self.work.values()))
            self.ledger.leave()
        except StudyError as error:
            self.view.note(f"warning: {error}")

    def end_children(self, seconds: float = 0.0) -> None:
        """Wait for the children to end, and end those that do not."""
        end = time.monotonic() + seconds
        for work in self.work.values():
            while work.child and work.child.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            if work.child:
                work.child.kill()
