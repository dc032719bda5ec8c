"""What judges: each measure against one made by hand or by its own library, the decoder's answers against its logits."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import sacrebleu
import torch
from torch.nn import functional as F

from gpt2_lightning.data.tokens import load_tokenizer
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.generation.records import RecordModel
from gpt2_lightning.settings.task import NAMES, TaskConfig
from gpt2_lightning.tasks.catalogue import TASKS, load_task
from gpt2_lightning.tasks.classification import confusion, macro_f1
from gpt2_lightning.tasks.task import BadRecord, Record, Records, answer, cue, x, y
from tests.tasks.test_records import decoder

BYTES = load_tokenizer("bytes")


class Told:
    """A model that answers as it is told."""

    def __init__(self, costs: dict[str, float] | None = None, written: Sequence[str] = ()) -> None:
        self.costs, self.written, self.asked = costs or {}, list(written), []

    def nats(self, records: Sequence[Record]) -> list[tuple[float, int]]:
        return [(self.costs.get("".join(p.text for p in r), 1.0), len(answer(r))) for r in records]

    def next_word(self, records: Sequence[Record], words: Sequence[str]) -> list[list[float]]:
        return [[-self.costs.get(r[0].text + word, 1.0) for word in words] for r in records]

    def write(self, records: Sequence[Record], max_new_tokens: int, **how: Any) -> list[str]:
        self.asked.append(how)
        return self.written


def test_the_catalogue_holds_the_names_of_the_settings() -> None:
    assert tuple(TASKS) == NAMES


@pytest.mark.parametrize("head", ["likelihood", "last_token"])
def test_classification_is_judged_by_accuracy_and_macro_f1(head: str) -> None:
    task = load_task(TaskConfig(name="classification", cue="=", head=head))
    there, chosen = list("aabbccaab"), list("abbbcaaac")
    records = [task.read({"text": f"t{i}", "label": label}) for i, label in enumerate(there)]
    costs = {f"t{i}{'=' if head == 'likelihood' else ''} {label}": 0.1 for i, label in enumerate(chosen)}
    found = task.judge(Records(records, records), Told(costs))
    assert found.measures["accuracy"] == pytest.approx(6 / 9)
    assert found.measures["macro_f1"] == pytest.approx((3 / 4 + 2 / 3 + 1 / 2) / 3)
    assert found.measures["baseline_accuracy"] == pytest.approx(4 / 9)
    assert found.details["confusion"] == [[3, 1, 0], [0, 2, 1], [1, 0, 1]]
    p = math.exp(-0.1) / (math.exp(-0.1) + 2 * math.exp(-1))
    other = math.exp(-1) / (math.exp(-0.1) + 2 * math.exp(-1))
    nats = [-math.log(p if a == b else other) for a, b in zip(there, chosen, strict=True)]
    assert found.measures["label_nats"] == pytest.approx(sum(nats) / 9)


def test_a_label_that_is_neither_there_nor_chosen_does_not_count() -> None:
    assert macro_f1(confusion(["a", "b", "c"], ["a", "b"], ["a", "a"])) == pytest.approx((2 / 3 + 0) / 2)


def test_translation_has_sacrebleus_own_figures() -> None:
    task = load_task(TaskConfig(name="translation", x="en", y="es", cue="\n", beams=4))
    pairs = [("In the beginning", "En el principio"), ("And God said it", "Y dijo Dios"), ("Let there be light", "Sea la luz")]
    records = [task.read({"en": en, "es": es}) for en, es in pairs]
    written = ["En el principio", "Y Dios dijo", "Sea luz"]
    model = Told(written=written)
    found = task.judge(Records(records, []), model).measures
    references = [es for _, es in pairs]
    assert found["bleu"] == sacrebleu.metrics.BLEU().corpus_score(written, [references]).score
    assert found["chrf"] == sacrebleu.metrics.CHRF().corpus_score(written, [references]).score
    assert found["copy_chrf"] == sacrebleu.metrics.CHRF().corpus_score([en for en, _ in pairs], [references]).score
    assert 0 < found["copy_chrf"] < found["chrf"] and load_task(task.config).config.beams == 4


def test_completion_counts_what_is_written_as_it_stands_there() -> None:
    task = load_task(TaskConfig(name="completion", x="q", y="a", cue=" = "))
    records = [task.read({"q": f"{i}+1", "a": str(i + 1)}) for i in range(4)]
    found = task.judge(Records(records, []), Told(written=["1", " 2\n", "4", ""])).measures
    assert found == {"exact_match": 0.5, "nats_per_token": 1.0}


def test_dialogue_measures_replies_with_and_without_what_was_said_before() -> None:
    task = load_task(TaskConfig(name="dialogue", x="turns", speakers=["You", "Me"]))
    record = task.read({"turns": [{"speaker": "ANNE", "text": "Hi\nyou"}, {"from": "BOB", "value": "Oh"}]})
    assert record == [x("You: Hi you\n"), cue("Me:"), y(" Oh\n")]
    model = Told({"You: Hi you\nMe: Oh\n": 4 * math.log(3), "Me: Oh\n": 4 * math.log(5)}, ["a b a b"])
    found = task.judge(Records([record], []), model).measures
    assert found == pytest.approx({"reply_perplexity": 3, "alone_perplexity": 5, "distinct_1": 2 / 4, "distinct_2": 2 / 3})


def test_of_a_dialogue_all_turns_or_the_last_are_replies() -> None:
    said = {"turns": ["a", "b", "c"]}
    last, two, every = (
        load_task(TaskConfig(name="dialogue", x="turns", **how)).read(said)  # type: ignore[arg-type]
        for how in ({}, {"turns": 1}, {"replies": "all"})
    )
    assert last == [x("A: a\nB: b\n"), cue("A:"), y(" c\n")]
    assert two == [x("B: b\n"), cue("A:"), y(" c\n")]
    assert every == [x("A: a\n"), cue("B:"), y(" b\n"), cue("A:"), y(" c\n")]


@pytest.mark.parametrize(
    ("settings", "record", "said"),
    [
        ({"name": "classification", "labels": ["a", "b"]}, {"text": "t", "label": 2}, "label 2 in the field 'label', and task"),
        ({"name": "classification", "labels": ["a", "b"]}, {"text": "t", "label": "c"}, "'c' .* none of a, b"),
        ({"name": "dialogue", "x": "turns"}, {"turns": ["alone"]}, "no list of two turns"),
        ({"name": "dialogue", "x": "turns"}, {"turns": ["a", {"text": "b"}]}, "no speaker and text in turn 2"),
        ({"name": "translation", "x": "t.en", "y": "t.es"}, {"t": {"en": "a"}}, "no field 'es'; it has en"),
    ],
)
def test_a_bad_record_is_told_by_its_field(settings: dict[str, Any], record: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRecord, match=said):
        load_task(TaskConfig(**settings)).read(record)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "clasification"}, "must be one of lm, classification"),
        ({"name": "mine", "file": "../mine.py"}, "must lie below the current folder"),
        ({"name": "lm", "file": "mine.py"}, "is a task of the package"),
        ({"labels": ["a", "a"]}, "must differ"),
        ({"speakers": ["Me"]}, "must be none, or two"),
        ({"eval_records": -1}, "at least 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TaskConfig(**settings)


RECORDS: list[Record] = [
    [x("a long question of some words"), cue("="), y(" ham")],
    [x("b"), cue("="), y(" spam")],
    [x("c d"), cue("="), y(" yes"), cue("|"), y(" ham")],
]


def test_what_y_costs_is_the_sum_over_its_tokens() -> None:
    model = decoder()
    found = RecordModel(model, BYTES, "end", 0).nats(RECORDS)
    for (nats, n), record in zip(found, RECORDS, strict=True):
        tokens, at, by_hand, count = [256], 0, 0.0, 0
        for part in (*record, y("")):
            tokens += [*part.text.encode()]
        tokens.append(256)
        logs = F.log_softmax(model(torch.tensor([tokens[:-1]]))[0], -1)
        for part in record:
            for _ in part.text.encode():
                at += 1
                if part.kind == "y":
                    by_hand, count = by_hand - float(logs[at - 1, tokens[at]]), count + 1
        by_hand, count = by_hand - float(logs[-1, 256]), count + 1
        assert n == count and nats == pytest.approx(by_hand, abs=1e-4)
    assert model.training


def test_the_head_on_the_last_token_is_the_tied_one_where_the_labels_differ() -> None:
    model = decoder()
    (row, *_) = RecordModel(model, BYTES, "end", 0).next_word(RECORDS, [" ham", " spam"])
    logs = F.log_softmax(model(torch.tensor([[256, *b"a long question of some words= "]]))[0, -1], -1)
    assert row == pytest.approx([float(logs[ord("h")]), float(logs[ord("s")])], abs=1e-4)
    with pytest.raises(ConfigError, match="differ in their first tokens"):
        RecordModel(model, BYTES, "end", 0).next_word(RECORDS, [" ham", " hat", " s"])


def test_what_is_written_goes_on_from_the_question() -> None:
    model = decoder().eval()
    (greedy, *_), (beams, *_) = (RecordModel(model, BYTES, "end", 0).write(RECORDS, 3, beams=b) for b in (1, 2))
    tokens = [*b"a long question of some words="]
    for _ in range(3):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert greedy == BYTES.decode(tokens[-3:]) and isinstance(beams, str)
