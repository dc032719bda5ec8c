"""The command that begins, goes on with and joins a study: a plan in; a study run to its end out.

One number: 1 command for all three: a study that is there, asked the same, goes on to its total.
"""

import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gpt2_lightning.errors import ConfigError, StudyError, first_line
from gpt2_lightning.settings.pretrained import require_there
from gpt2_lightning.signals import Interrupted, requeue
from gpt2_lightning.sweep.agent import Agent
from gpt2_lightning.sweep.ledger import Ledger
from gpt2_lightning.sweep.plan import Plan
from gpt2_lightning.sweep.pool import Child, Slot, Start, make_slots
from gpt2_lightning.sweep.storage import Patience, asked_storage, open_storage
from gpt2_lightning.sweep.summary import shown, summary, write_record
from gpt2_lightning.sweep.view import View

__all__ = ["begin", "best_file", "study"]

PATIENCE_SECONDS = 600.0
OWN_FILE = {"journal": "journal.log", "sqlite": "study.db"}  # in the study's folder


def study(plan: Plan, slots: list[Slot] | None = None, start: Start = Child) -> None:
    """Run a study to its end, in this machine's slots or those given, of which ``start`` fills one; raises PlatformError."""
    if not plan.folder.exists():
        require_there(plan.base.init)
    slots = make_slots(plan.sweep, plan.base.trainer) if slots is None else slots
    plan.folder.parent.mkdir(parents=True, exist_ok=True)
    patience = Patience(seconds=PATIENCE_SECONDS)
    plan, ledger = open_study(plan, patience)
    done = ledger.finished(ledger.roots())
    if done < plan.n_trials:
        require_there(plan.base.init)
    view = View()
    view.note(headline(plan, ledger.new, done, len(slots)))
    agent = Agent(plan, ledger, slots, view, start)
    try:
        agent.run()
    except Interrupted as error:
        conclude(plan, ledger)
        if error.number == signal.SIGUSR1:
            view.note(requeue())
        raise
    conclude(plan, ledger)


def begin(plan: Plan) -> Plan:
    """Begin a study that others will run, or find it there, as the plan it has; raises PlatformError."""
    require_there(plan.base.init)
    plan.folder.parent.mkdir(parents=True, exist_ok=True)
    return open_study(plan, Patience(seconds=0.0))[0]


def conclude(plan: Plan, ledger: Ledger) -> None:
    """Print the summary, and write TensorBoard's board and the report; what cannot be written costs a line, and no study."""
    roots = ledger.roots()
    print(summary([root.row for root in roots], plan), flush=True)
    if not plan.sweep.report:
        return
    try:
        from gpt2_lightning.report.command import report_study
        from gpt2_lightning.report.record import read_record
        from gpt2_lightning.study_board import write_board

        write_record(roots, plan)
        write_board(read_record(plan.folder), plan.folder)
        print(f"  report  {shown(report_study(plan.folder)[0])}")
    except Exception as error:
        print(f"warning: the report is not written: {first_line(error)}", file=sys.stderr)


def headline(plan: Plan, new: bool, done: int, slots: int) -> str:
    """What begins, goes on, or is finished."""
    searched = ", ".join(p.name for p in (*plan.space.parameters, *plan.decode.parameters))
    if done == plan.n_trials:
        return f"study {plan.sweep.name} is finished: {done} trials over {searched}"
    begun = "begins" if new else f"goes on, {done} done"
    return f"study {plan.sweep.name} {begun}: {plan.n_trials} trials on {slots} slot{'s' * (slots > 1)}, over {searched}"


def open_study(plan: Plan, patience: Patience) -> tuple[Plan, Ledger]:
    """The study of that name that was asked the same, or a new one; raises StudyError where it was asked something else."""
    name, version = plan.sweep.name, 1
    while True:
        candidate = named(plan, name if version == 1 else f"{name}-v{version}")
        ledger = open_ledger(candidate, patience)
        asked = candidate.asked()
        differ = differences(ledger.agree(asked, partial(warm_up, candidate, ledger)), asked)
        if not differ:
            candidate.folder.mkdir(parents=True, exist_ok=True)
            return candidate, ledger
        version += 1
        if not plan.sweep.new_version and not is_there(named(plan, f"{name}-v{version}"), ledger):
            listed = "; ".join(differ[:4]) + (f"; and {len(differ) - 4} more" if len(differ) > 4 else "")
            rule = f"was asked something else: {listed}"
            remedy = "Set sweep.new_version=true to begin a new study beside it, or sweep.name to give this one another name"
            raise StudyError("study", key="sweep.name", value=candidate.sweep.name, rule=rule, remedy=remedy)


def named(plan: Plan, name: str) -> Plan:
    """The plan of a study of another name."""
    return replace(plan, sweep=replace(plan.sweep, name=name))


def open_ledger(plan: Plan, patience: Patience) -> Ledger:
    """The ledger of the plan's study, which is begun where there is none."""
    storage = open_storage(asked_storage(plan.sweep.storage), plan.folder)
    return Ledger(plan.sweep.name, storage, patience, plan.sweep.lease_seconds, plan.sweep.directions, plan.n_trials)


def is_there(plan: Plan, other: Ledger) -> bool:
    """Whether the plan's study was begun: in its own folder, or in the storage it shares with another."""
    if asked_storage(plan.sweep.storage) in OWN_FILE:
        return (plan.folder / OWN_FILE[asked_storage(plan.sweep.storage)]).exists()
    return plan.sweep.name in [study.study_name for study in other.call(other.storage.get_all_studies)]


def warm_up(plan: Plan, ledger: Ledger) -> None:
    """Have the sampler know the complete trials of ``sweep.warm_start``, as far as they fit; raises StudyError."""
    name = plan.sweep.warm_start
    if not name:
        return
    source = named(plan, name)
    if name == plan.sweep.name or not is_there(source, ledger):
        raise StudyError("study to start from", key="sweep.warm_start", value=name, rule="is not there")
    there = open_ledger(source, ledger.patience)
    asked, now = there.asked() or {}, plan.asked()
    differ = [text for text in differences(asked, now) if text.startswith(("objective", "direction"))]
    if differ:
        rule = f"was judged by something else: {'; '.join(differ)}"
        raise StudyError("study to start from", key="sweep.warm_start", value=name, rule=rule)
    for row in (root.row for root in there.roots()):
        params = plan.space.told(row.point)
        if row.fit and params:
            distributions = {p.name: p.distribution for p in plan.space.parameters if p.name in params}
            values = [row.values[key] for key in plan.sweep.objectives]
            ledger.learn(f"{name}/{row.name}", params=params, distributions=distributions, values=values)


def differences(there: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """What a study was asked and is asked now, where they differ."""
    found = []
    for key in sorted({*there, *now}):
        a, b = there.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}: ")
        elif a != b:
            found.append(f"{prefix}{key} ({a if a is not None else 'none'} there, {b if b is not None else 'none'} now)")
    return found


def best_file(name: str, outputs: str = "outputs") -> Path:
    """The best.yaml of a study, by its name or folder; raises ConfigError."""
    for folder in (Path(name), Path(outputs) / "sweeps" / name):
        if (folder / "best.yaml").is_file():
            return folder / "best.yaml"
    there = sorted(path.parent.name for path in (Path(outputs) / "sweeps").glob("*/best.yaml"))
    remedy = f"There are {', '.join(there)}" if there else f"There are no studies in '{outputs}' yet"
    raise ConfigError("study", key="best", value=name, rule="has no best.yaml", remedy=remedy)
