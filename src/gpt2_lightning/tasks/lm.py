"""Language modelling: a document is one text, and all of it is predicted; the measures are those of every validation."""

from gpt2_lightning.tasks.task import Task

__all__ = ["LanguageModelling"]


class LanguageModelling(Task):
    """Documents are no records: they go through the stream as plain text."""
