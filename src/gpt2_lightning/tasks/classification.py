"""Classification: a text and its label, as text; the label is the one of the set that is likeliest behind the text.

One number: 1, the pass of the decoder a record with ``task.head=last_token``, against one a label with ``likelihood``.
Choice not taken: a matrix of its own as the head, which the decoder, its checkpoints and the released weights do not have.
The head on the last token is the tied one, restricted to the labels' first tokens.
"""

from collections import Counter
from statistics import fmean
from typing import Any

import numpy as np

from gpt2_lightning.tasks.task import (
    BadRecord,
    Judgement,
    Model,
    Record,
    Records,
    Task,
    answer,
    cue,
    field_of,
    text_of,
    with_answer,
    x,
    y,
)

__all__ = ["Classification", "confusion", "macro_f1"]


class Classification(Task):
    """X, the cue, and the label behind a blank."""

    measures = ("accuracy", "macro_f1", "baseline_accuracy", "label_nats")

    def read(self, record: dict[str, Any]) -> Record:
        """The text and its label's name."""
        label = self.label(field_of(record, self.config.y))
        return [x(text_of(record, self.config.x).strip()), cue(self.config.cue), y(f" {label}")]

    def label(self, value: Any) -> str:
        """The name of a label: itself, or that of its number where the names are given; raises BadRecord."""
        names, of = self.config.labels, f"the field '{self.config.y}'"
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise BadRecord(f"holds no label in {of} but {value!r}")
        if names and isinstance(value, str) and value not in names and value.isdecimal():
            value = int(value)  # in CSV, numbers are text
        if names and isinstance(value, int) and not 0 <= value < len(names):
            raise BadRecord(f"holds the label {value} in {of}, and task.labels names {len(names)}")
        name = names[value] if names and isinstance(value, int) else str(value)
        if names and name not in names:
            raise BadRecord(f"holds the label '{name}' in {of}, which is none of {', '.join(names)}")
        return name

    def judge(self, records: Records, model: Model) -> Judgement:
        """Accuracy, macro F1, what the commonest label (of training, if known) would reach, the confusion matrix."""
        trained = Counter(answer(r)[1:] for r in records.trained)
        there = [answer(r)[1:] for r in records.held_out]
        labels = self.config.labels or sorted({*trained, *there})
        scores = self.scores(records, model, labels)
        chosen = [labels[max(range(len(labels)), key=row.__getitem__)] for row in scores]
        own = [row[labels.index(label)] - float(np.logaddexp.reduce(row)) for row, label in zip(scores, there, strict=True)]
        table = confusion(labels, there, chosen)
        common = (trained or Counter(there)).most_common(1)[0][0]
        measures = {
            "accuracy": fmean(a == b for a, b in zip(there, chosen, strict=True)),
            "macro_f1": macro_f1(table),
            "baseline_accuracy": fmean(label == common for label in there),
            "label_nats": -sum(own) / len(own),
        }
        return Judgement(measures=measures, text=as_text(labels, table), details={"labels": labels, "confusion": table})

    def scores(self, records: Records, model: Model, labels: list[str]) -> list[list[float]]:
        """The log-likelihood of each label for each record."""
        if self.config.head == "last_token":
            return model.next_word(records.held_out, [f" {label}" for label in labels])
        variants = [with_answer(record, f" {label}") for record in records.held_out for label in labels]
        found = [-nats for nats, _ in model.nats(variants)]
        return [found[i : i + len(labels)] for i in range(0, len(found), len(labels))]


def confusion(labels: list[str], there: list[str], chosen: list[str]) -> list[list[int]]:
    """How often each label, by row, was taken for each, by column."""
    pairs = Counter(zip(there, chosen, strict=True))
    return [[pairs[a, b] for b in labels] for a in labels]


def macro_f1(table: list[list[int]]) -> float:
    """The mean over labels of 2 * right / (there + chosen); a label that is neither there nor chosen does not count."""
    there, chosen = [sum(row) for row in table], [sum(column) for column in zip(*table, strict=True)]
    found = [2 * table[i][i] / (there[i] + chosen[i]) for i in range(len(table)) if there[i] + chosen[i]]
    return sum(found) / len(found)


def as_text(labels: list[str], table: list[list[int]]) -> str:
    """The confusion matrix: what is there by row, what was chosen by column."""
    width = max(map(len, [*labels, "000000"])) + 2
    lines = ["".join(word.rjust(width) for word in ["", *labels])]
    lines += ["".join(str(word).rjust(width) for word in [label, *row]) for label, row in zip(labels, table, strict=True)]
    return "\n".join(lines)
