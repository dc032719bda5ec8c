"""The trials that an agent holds: a storage in; the same, not asked again for what this process has written, out.

Nobody changes a trial that another process holds, but to end it; that is seen at the next writing, which the storage refuses.
One number: 1 reading for each trial that is taken from the queue, none for one that is begun. Choice not taken: reading it
before it is judged or told, which were half of all operations on a database.
"""

import copy
import json
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

__all__ = ["Held"]

CHANGES: dict[str, Callable[..., dict[str, Any]]] = {  # of a trial, by what is written; attributes are read as JSON has them
    "set_trial_param": lambda name, inner, d: {"params": {name: d.to_external_repr(inner)}, "distributions": {name: d}},
    "set_trial_intermediate_value": lambda step, value: {"intermediate_values": {step: value}},
    "set_trial_user_attr": lambda key, value: {"user_attrs": {key: json.loads(json.dumps(value))}},
    "set_trial_system_attr": lambda key, value: {"system_attrs": {key: json.loads(json.dumps(value))}},
    "set_trial_state_values": lambda state, told=None: {"state": state, "values": told, "datetime_complete": datetime.now()},
}


class Held:
    """The storage ``beneath``, and the ``trials`` of this process as it left them, by the storage's ids; not to be changed."""

    def __init__(self, beneath: BaseStorage) -> None:
        self.beneath = beneath
        self.trials: dict[int, FrozenTrial] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.beneath, name)
        return partial(self.write, method, CHANGES[name]) if name in CHANGES else method

    def write(self, method: Callable[..., Any], changes: Callable[..., dict[str, Any]], trial_id: int, *asked: Any) -> Any:
        """Have what is written known, too. Where it may not have been written, nothing is known of the trial any more."""
        trial = copy.copy(self.trials.pop(trial_id, None))
        done = method(trial_id, *asked)
        if trial is not None and done is not False:
            for name, change in changes(*asked).items():
                setattr(trial, name, {**getattr(trial, name), **change} if isinstance(change, dict) else change)
            self.trials[trial_id] = trial
        return done

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """The trial as it is."""
        return self.trials.get(trial_id) or self.beneath.get_trial(trial_id)

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        """What samplers and pruners keep of it."""
        return self.get_trial(trial_id).system_attrs

    def create_new_trial(self, study_id: int, template: FrozenTrial) -> int:
        """Add a trial; a running one is this process's, and has no number yet."""
        trial = copy.copy(template)
        trial._trial_id = self.beneath.create_new_trial(study_id, template)
        if trial.state == TrialState.RUNNING:
            self.trials[trial._trial_id] = trial
        return trial._trial_id
