"""The record of a study: its trainings in; ``study.json`` in its folder out, whole at any moment.

What shows a study (report, dashboards, lists) reads this and the trials' folders, never the storage: it may be far away, or
busy.
One number: 1 file is enough for 300 trials, about a kilobyte each. Choice not taken: opening the storage for reading, which
needs its password.
"""

import json
from typing import Any

from optuna.distributions import distribution_to_json

from gpt2_lightning.folder import write_whole
from gpt2_lightning.report.record import RECORD
from gpt2_lightning.sweep.ledger import Root
from gpt2_lightning.sweep.plan import Plan
from gpt2_lightning.sweep.storage import redacted
from gpt2_lightning.sweep.summary import row_of

__all__ = ["write_record"]


def write_record(roots: list[Root], plan: Plan) -> None:
    """Write all that a report needs."""
    s = plan.sweep
    record = {
        "study": s.name,
        "words": [redacted(word) for word in plan.words],
        "objectives": s.objectives,
        "directions": s.directions,
        "n_trials": plan.n_trials,
        "sampler": s.sampler,
        "pruner": s.pruner,
        "decode_objective": s.decode_objective,
        "decode_direction": s.decode_direction,
        "baseline": "trial-000" if plan.is_baseline(0) else None,
        "space": plan.space.as_asked(),
        "decode": plan.decode.as_asked(),
        "constraints": dict(s.constraints),
        "max_steps": plan.base.trainer.max_steps,
        "trials": [trial_record(root) for root in roots],
    }
    write_whole(plan.folder / RECORD, json.dumps(record, allow_nan=False) + "\n")


def trial_record(root: Root) -> dict[str, Any]:
    """One training: what is in trials.csv, and what Optuna's plots are made of."""
    row, trial = row_of(root), root.last
    return {
        "name": row.name,
        "place": row.place,
        "state": row.state,
        "class": row.why,
        "values": row.values,
        "point": row.point,
        "beside": row.beside,
        "steps": row.steps,
        "outcome": {key: value for key, value in row.outcome.items() if key not in ("log", "folder", "fingerprint")},
        "params": trial.params,
        "distributions": {name: distribution_to_json(d) for name, d in trial.distributions.items()},
        "reports": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
        "attempts": len(root.attempts),
        "agent": trial.user_attrs.get("agent"),
        "started": trial.datetime_start.isoformat() if trial.datetime_start else None,
        "ended": trial.datetime_complete.isoformat() if trial.datetime_complete else None,
    }
