"""The command that begins, goes on with and joins a study: words in; a study run to its end out.

One number: 1 command for all three: a study that is there, asked the same, goes on to its total.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2_lightning.errors import ConfigError, StudyError
from gpt2_lightning.signals import Interrupted
from gpt2_lightning.sweep.agent import Agent
from gpt2_lightning.sweep.ledger import Ledger
from gpt2_lightning.sweep.plan import Plan, read_plan
from gpt2_lightning.sweep.pool import make_slots
from gpt2_lightning.sweep.proposals import build_pruner, build_sampler
from gpt2_lightning.sweep.storage import Patience, asked_storage, open_storage
from gpt2_lightning.sweep.summary import rows_of, summary
from gpt2_lightning.sweep.view import View

__all__ = ["best_file", "study"]

PATIENCE_SECONDS = 600.0


def study(words: list[str]) -> None:
    """Run the study that the words ask for; raises PlatformError."""
    plan = read_plan(words)
    build_sampler(plan.sweep, 0)
    build_pruner(plan.sweep, plan.base.trainer.val_every, plan.base.trainer.max_steps)
    slots = make_slots(plan.sweep, plan.base.trainer)
    plan.folder.parent.mkdir(parents=True, exist_ok=True)
    patience = Patience(seconds=PATIENCE_SECONDS)
    plan, ledger = open_study(plan, patience)
    view = View()
    view.note(headline(plan, ledger, len(slots)))
    agent = Agent(plan, ledger, slots, view)
    try:
        agent.run()
    except Interrupted:
        print(summary(rows_of(ledger.roots()), plan))
        raise
    print(summary(rows_of(ledger.roots()), plan))


def headline(plan: Plan, ledger: Ledger, slots: int) -> str:
    """What begins, or goes on."""
    searched = ", ".join(p.name for p in (*plan.space.parameters, *plan.decode.parameters))
    begun = "begins" if ledger.new else "goes on"
    return f"study {plan.sweep.name} {begun}: {plan.n_trials} trials on {slots} slot{'s' * (slots > 1)}, over {searched}"


def open_study(plan: Plan, patience: Patience) -> tuple[Plan, Ledger]:
    """The study of that name that was asked the same, or a new one; raises StudyError where it was asked something else."""
    name, version = plan.sweep.name, 1
    storage = None
    while True:
        named = f"{name}-v{version}" if version > 1 else name
        candidate = replace(plan, sweep=replace(plan.sweep, name=named))
        candidate.folder.mkdir(parents=True, exist_ok=True)
        if storage is None or asked_storage(plan.sweep.storage) in ("journal", "sqlite"):
            storage = open_storage(asked_storage(plan.sweep.storage), candidate.folder)
        ledger = Ledger.open(named, storage, patience, plan.sweep.lease_seconds, plan.sweep.directions)
        there = ledger.asked()
        if there is None:
            ledger.ask_for(candidate.asked())
            return candidate, ledger
        differ = differences(there, candidate.asked())
        if not differ:
            return candidate, ledger
        newer = (candidate.folder.parent / f"{name}-v{version + 1}").is_dir()
        if not plan.sweep.new_version and not newer:
            raise was_asked(named, differ)
        version += 1


def was_asked(name: str, differ: list[str]) -> StudyError:
    """The error for a study that is there and was asked something else."""
    shown = "; ".join(differ[:4]) + (f"; and {len(differ) - 4} more" if len(differ) > 4 else "")
    remedy = "Set sweep.new_version=true to begin a new study beside it, or sweep.name to give this one another name"
    return StudyError("study", key="sweep.name", value=name, rule=f"was asked something else: {shown}", remedy=remedy)


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
