"""A task's own measures on any decoder: the task and records in, its judgement out, as at a validation of a run of that task.

One number: 1 name, that of the task: the run's own settings of it go before its option's.
Choice not taken: to run the file of a task of your own because a checkpoint names it; it has to be named in the command.
"""

from pathlib import Path

from gpt2_lightning.config import RunConfig, changed, compose_config
from gpt2_lightning.data.stream import StreamDataModule
from gpt2_lightning.data.tokens import Tokenizer
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.evaluation.records import task_records
from gpt2_lightning.generation.records import RecordModel
from gpt2_lightning.pretrained import Opened
from gpt2_lightning.settings.evaluate import EvaluateConfig
from gpt2_lightning.tasks.catalogue import load_task
from gpt2_lightning.tasks.task import Judgement, Records, Task

__all__ = ["judge_task"]


def judge_task(config: EvaluateConfig, words: list[str], opened: Opened, tokenizer: Tokenizer) -> tuple[Judgement, int]:
    """What the task measures, and of how many records; ``words`` change its settings. Raises ConfigError, DataError."""
    run = settings(config, words, opened, tokenizer)
    task = load_task(run.task)
    records = held_out(config, run, task)
    model = RecordModel(opened.decoder.eval(), tokenizer, run.task.cut, run.seed)
    return task.judge(records, model), len(records.held_out)


def settings(config: EvaluateConfig, words: list[str], opened: Opened, tokenizer: Tokenizer) -> RunConfig:
    """The task as the run was trained on it, where it was and no other data are asked for; else as its option has it."""
    own = opened.config and opened.config["task"]
    if own and own["name"] == config.task and config.data is None:
        if own["file"] and not any(word.startswith("task.file=") for word in words):
            rule = f"'{own['file']}' is a file of your own, which is run only where the command names it"
            raise ConfigError("task", key="task", value=config.task, rule=rule, remedy=f"Add task.file={own['file']}")
        return changed(opened.config, words)
    if config.path is None and config.data is None:
        rule = f"'{config.run}' was not trained on task={config.task}"
        raise ConfigError("records", key="path", value="", rule=rule, remedy="Set path=FILE or data=NAME")
    data = [f"data={config.data}"] if config.data else []
    asked = [f"task={config.task}", *data, f"model.block_size={opened.decoder.config.block_size}"]
    return compose_config([*asked, f"data.tokenizer={tokenizer.name}", f"model.vocab_size={tokenizer.vocab_size}", *words])


def held_out(config: EvaluateConfig, run: RunConfig, task: Task) -> Records:
    """All records of the files that are given, or those that a validation of the run judges; raises PlatformError."""
    if not run.task.of_records:
        remedy = "Leave task out: protocol=perplexity"
        raise ConfigError("task", key="task", value=run.task.name, rule="has no records to be judged", remedy=remedy)
    if config.path is not None:
        return Records(task_records(config.path, config.limit, task), [])
    cache = Path(config.outputs) / "cache"
    data = StreamDataModule(run.data, block_size=run.model.block_size, seed=run.seed, max_steps=1, cache=cache, task=task)
    data.setup()
    return data.records(config.limit or run.task.eval_records)
