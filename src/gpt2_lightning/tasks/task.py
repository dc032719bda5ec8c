"""A task: a record in, the parts of its text out, of which some are to be predicted; and the measures of what was learnt.

X is read and carries no loss, Y carries it, and a cue is X that stands as it is: neither cut off nor augmented.
One number: 1, the decoder and the loss that all tasks share; a task only says what it wants predicted.
Choice not taken: a module, a head and a data module a task, of which lightning-transformers died.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from gpt2_lightning.settings.task import TaskConfig

__all__ = ["BadRecord", "Judgement", "Model", "Part", "Record", "Records", "Task", "TaskConfig", "cue", "x", "y"]


class Part(NamedTuple):
    """A stretch of a record's text: ``kind`` is ``x``, ``cue`` or ``y``."""

    kind: str
    text: str


Record = list[Part]


def x(text: str) -> Part:
    """Text that is read: it may be augmented, and cut off where the record is longer than a row."""
    return Part("x", text)


def cue(text: str) -> Part:
    """Text that is read and stands as it is: a separator, a speaker's name."""
    return Part("cue", text)


def y(text: str) -> Part:
    """Text that is predicted; behind the last part of a record its end is predicted too."""
    return Part("y", text)


class BadRecord(ValueError):
    """A record is not what the task reads; its place is added where it is read."""


class Records(NamedTuple):
    """Held-out records that are judged, and some of those that were trained on."""

    held_out: Sequence[Record]
    trained: Sequence[Record]


@runtime_checkable
class Model(Protocol):
    """What a task may ask of the decoder as it is by now; it reads records as in training, cut where they are too long."""

    def nats(self, records: Sequence[Record]) -> list[tuple[float, int]]:
        """-log P(Y | X) of each record, and how many tokens that is of, its end among them where that is predicted."""
        ...

    def next_word(self, records: Sequence[Record], words: Sequence[str]) -> list[list[float]]:
        """For each record the log-probabilities of the first tokens of these words where its last Y begins."""
        ...

    def write(
        self, records: Sequence[Record], max_new_tokens: int, beams: int = 1, sample: bool = False, stop: Sequence[str] = ()
    ) -> list[str]:
        """What stands in place of each record's last Y: greedy, by beam search, or drawn by top-k."""
        ...


@dataclass(kw_only=True, slots=True)
class Judgement:
    """Measures by name, a text to look at, and what else is to be kept as JSON."""

    measures: dict[str, float] = field(default_factory=dict)
    text: str = ""
    details: dict[str, Any] = field(default_factory=dict)


class Task:
    """The base of all tasks, and language modelling itself: plain text all of which is predicted, with nothing to judge.

    ``measures`` names what ``judge`` measures, for a sweep.
    """

    measures: tuple[str, ...] = ()

    def __init__(self, config: TaskConfig) -> None:
        self.config = config

    def read(self, record: dict[str, Any]) -> Record:
        """The parts of a record's text; raises BadRecord."""
        raise NotImplementedError

    def judge(self, records: Records, model: Model) -> Judgement:
        """What was learnt, on held-out records."""
        return Judgement()

    def examples(self, records: Sequence[Record], written: Sequence[str]) -> str:
        """The first ``config.shown`` records, each with what was written."""
        return "\n\n".join(show(r, w) for r, w in zip(records[: self.config.shown], written, strict=False))


def field_of(record: dict[str, Any], name: str) -> Any:
    """The value of a field, OUTER.INNER that of an object in it; raises BadRecord naming the fields there are."""
    if name in record:
        return record[name]
    outer, _, inner = name.partition(".")
    if inner and isinstance(record.get(outer), dict):
        return field_of(record[outer], inner)
    raise BadRecord(f"has no field '{name}'; it has {', '.join(map(str, record)) or 'none'}")


def text_of(record: dict[str, Any], name: str) -> str:
    """The text of a field; raises BadRecord where there is none."""
    value = field_of(record, name)
    if not isinstance(value, str):
        raise BadRecord(f"holds no text in the field '{name}' but {type(value).__name__}")
    if not value.strip():
        raise BadRecord(f"is empty in the field '{name}'")
    return value


def answer(record: Record) -> str:
    """The text of the last Y."""
    return next((part.text for part in reversed(record) if part.kind == "y"), "")


def with_answer(record: Record, text: str) -> Record:
    """The record up to its last Y, all of it only read, and this text in that Y's place."""
    return [*(part._replace(kind="x") if part.kind == "y" else part for part in question(record)), y(text)]


def question(record: Record) -> Record:
    """What stands before a record's last Y."""
    last = max(i for i, part in enumerate(record) if part.kind == "y")
    return record[:last]


def show(record: Record, written: str) -> str:
    """A record's question, what was written, and what stands there."""
    before = "".join(part.text for part in question(record))
    return f"{before}\n  written: {written.strip()}\n  there:   {answer(record).strip()}"


def nats_per_token(costs: list[tuple[float, int]]) -> float:
    """The mean over all tokens of what each record's tokens cost together."""
    return sum(nats for nats, _ in costs) / max(1, sum(tokens for _, tokens in costs))
