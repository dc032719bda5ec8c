"""The tasks there are, and that of a file of your own: a TaskConfig in, the Task out.

One number: 5, the tasks that come with the package. Choice not taken: a class named in YAML. A file of yours is run only where
the run's own configuration names it and it lies below the folder you are in; no checkpoint has it run.
"""

import hashlib
import importlib.util
import inspect
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt2_lightning.errors import first_line
from gpt2_lightning.settings.task import TaskConfig
from gpt2_lightning.tasks.classification import Classification
from gpt2_lightning.tasks.completion import Completion
from gpt2_lightning.tasks.dialogue import Dialogue
from gpt2_lightning.tasks.task import Task
from gpt2_lightning.tasks.translation import Translation

__all__ = ["TASKS", "identity", "load_task"]

TASKS: dict[str, type[Task]] = {
    "lm": Task,
    "classification": Classification,
    "dialogue": Dialogue,
    "translation": Translation,
    "completion": Completion,
}
OF_JUDGING = ("beams", "max_new_tokens", "eval_records", "shown", "head")  # no part in how a record is read


def load_task(config: TaskConfig) -> Task:
    """The task; raises ConfigError for a file that holds none."""
    return TASKS[config.name](config) if config.file is None else own_task(config)


def own_task(config: TaskConfig) -> Task:
    """The one task that a file of the current folder defines; raises ConfigError."""
    path = Path(str(config.file))
    if not path.is_file() or not path.resolve().is_relative_to(Path.cwd().resolve()):
        raise config.refuse("file", f"is no file below the current folder, '{Path.cwd()}'")
    name = f"gpt2_lightning_task_{config.name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise config.refuse("file", "is no Python file", "Give it a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise config.refuse("file", f"cannot be run: {type(error).__name__}: {first_line(error)}") from error
    found = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Task) and v.__module__ == name]
    if len(found) != 1:
        raise config.refuse("file", f"must define one class of Task, and defines {len(found)}")
    return found[0](config)


def identity(task: Task) -> dict[str, Any]:
    """All that a record's parts depend on beside the record: the settings, and the code that reads it."""
    settings = {key: value for key, value in asdict(task.config).items() if key not in OF_JUDGING}
    source = inspect.getsource(sys.modules[type(task).__module__])
    return settings | {"code": hashlib.sha256(source.encode()).hexdigest()}
