"""Records in the stream: X carries no loss, rows hold whole records, the order is that of the seed, and formats read alike."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch.nn import functional as F

from gpt2_lightning.data.corpus import Reading, read_corpus
from gpt2_lightning.data.hub import RowGroups
from gpt2_lightning.data.record import record_passage
from gpt2_lightning.data.rows import Rows, stored_record, stored_text
from gpt2_lightning.data.stream import StreamDataModule
from gpt2_lightning.data.tokens import load_tokenizer
from gpt2_lightning.decoder import Decoder, DecoderConfig
from gpt2_lightning.errors import DataError
from gpt2_lightning.loss import IGNORED, cross_entropy
from gpt2_lightning.settings.augment import AugmentConfig, NoiseConfig, SwapConfig
from gpt2_lightning.settings.data import CorpusConfig, DataConfig
from gpt2_lightning.settings.task import TaskConfig
from gpt2_lightning.tasks.catalogue import load_task
from gpt2_lightning.tasks.task import Record, Task, cue, x, y

BYTES = load_tokenizer("bytes")
ROWS = [{"text": f"Mail {i} says so, and more {'of it ' * (i % 5)}", "label": ["ham", "spam"][i % 2]} for i in range(60)]


def classification(**changes: Any) -> Task:
    return load_task(TaskConfig(name="classification", cue="\n=", **changes))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stream(path: Path, task: Task, rows: int = 4, steps: int = 6, **options: Any) -> StreamDataModule:
    corpora = {"mails": CorpusConfig(path=str(path))}
    data = DataConfig(corpora=corpora, tokenizer="bytes", batch_size=rows, records=True)
    opened = StreamDataModule(data, block_size=64, seed=3, max_steps=steps, cache=path.parent / "cache", task=task, **options)
    opened.setup()
    return opened


def decoder(block_size: int = 96) -> Decoder:
    torch.manual_seed(0)
    size = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 257, "init_std": 0.2}
    return Decoder(DecoderConfig(block_size=block_size, document_mask=True, **size))


def mean_loss(model: Decoder, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, int]:
    loss, _ = cross_entropy(model.hidden(inputs), model.wte.weight, targets)
    return float(loss), int((targets != IGNORED).sum())


def test_the_loss_of_y_given_x_is_that_worked_out_by_hand() -> None:
    model = decoder()
    passage = record_passage([x("2+2"), cue("="), y("4")], BYTES, 96, "end")
    assert passage.tokens.tolist() == [*b"2+2=4", 256]
    assert passage.labels is not None and passage.labels.tolist() == [IGNORED] * 4 + [ord("4"), 256]
    labels = torch.tensor(passage.labels.tolist()[1:])
    tokens = torch.tensor([[*b"2+2=4", 256]])
    found, n = mean_loss(model, tokens[:, :-1], labels[None])
    logits = model(tokens[:, :-1])[0]
    four, end = (F.log_softmax(logits[place], -1)[token] for place, token in ((3, ord("4")), (4, 256)))
    assert n == 2 and found == pytest.approx(-float(four + end) / 2, abs=1e-6)


def test_packed_records_cost_what_each_costs_alone(tmp_path: Path) -> None:
    model, records = decoder(), [[x(f"{i}+{i}"), cue("="), y(str(2 * i))] for i in range(8)] + [[y("no X")], [x("b"), y("B")]]
    passages = [record_passage(record, BYTES, 96, "end") for record in records]
    tokens, labels = [256], [IGNORED]
    for passage in passages:
        tokens += passage.tokens.tolist()
        assert passage.labels is not None
        labels += passage.labels.tolist()
    assert len(tokens) <= 97
    aims = torch.tensor([labels[1:]])
    packed, n = mean_loss(model, torch.tensor([tokens[:-1]]), aims)
    total = 0.0
    for passage in passages:
        alone = torch.tensor([[256, *passage.tokens.tolist()]])
        of_it = torch.tensor([passage.labels.tolist()])  # type: ignore[union-attr]
        loss, k = mean_loss(model, alone[:, :-1], of_it)
        total += loss * k
    assert packed == pytest.approx(total / n, abs=1e-6)


def test_rows_hold_whole_records_and_labels_are_those_of_y(tmp_path: Path) -> None:
    data = stream(write_jsonl(tmp_path / "a.jsonl", ROWS), classification())
    for batch in data.rank_loader(1, 0):
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            assert inputs[0] == 256
            seen = bytes(t for t in targets if t not in (IGNORED, 256)).decode()
            assert seen and set(seen.split()) <= {"ham", "spam"}
            starts = [i for i, t in enumerate(inputs) if t == ord("=")]
            for start in starts:
                label = bytes(t for t in targets[start : start + 5] if t not in (IGNORED, 256))
                assert label.startswith((b" ham", b" spam"))


def test_validation_rows_hold_every_held_out_record_once(tmp_path: Path) -> None:
    data = stream(write_jsonl(tmp_path / "a.jsonl", ROWS), classification())
    ((inputs, targets),) = data.validation
    text = bytes(t for t in targets.flatten().tolist() if 0 <= t < 256).decode()
    assert text.split() == [row["label"] for row in ROWS[9::10]]
    assert (inputs[:, 0] == 256).all()


def test_the_rows_of_a_step_are_the_same_for_any_ranks_and_workers_and_after_a_resume(tmp_path: Path) -> None:
    path, task = write_jsonl(tmp_path / "a.jsonl", ROWS), classification()
    whole = list(stream(path, task).rank_loader(1, 0))
    for ranks, workers in ((2, 0), (1, 2), (4, 1)):
        data = stream(path, task, rows=4 // ranks)
        data.config = replace(data.config, workers=workers)
        parts = [list(data.rank_loader(ranks, rank)) for rank in range(ranks)]
        for step, batch in enumerate(whole):
            assert torch.equal(torch.cat([part[step].targets for part in parts]), batch.targets)
            assert torch.equal(torch.cat([part[step].inputs for part in parts]), batch.inputs)
    data = stream(path, task)
    loader = data.rank_loader(1, 0)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    data = stream(path, task)
    data.rewound = {"step": 3, "places": torch.from_numpy(loader.kept[3])}
    for before, after in zip(whole[3:], data.rank_loader(1, 0), strict=True):
        assert torch.equal(before.inputs, after.inputs) and torch.equal(before.targets, after.targets)


def test_augmentation_changes_x_and_no_label(tmp_path: Path) -> None:
    path, task = write_jsonl(tmp_path / "a.jsonl", ROWS), classification()
    augment = AugmentConfig(noise=NoiseConfig(p=1.0, strength=0.5), swap=SwapConfig(p=1.0, strength=1.0))
    plain, changed = (stream(path, task, augment=a).corpora["mails"]["train"] for a in (AugmentConfig(), augment))
    noisy = stream(path, task, augment=augment)
    differ = 0
    for g in range(20):
        passage = noisy.read(g)
        assert passage is not None and passage.labels is not None
        assert passage.applied == ("swap", "noise")
        text = BYTES.decode(passage.tokens.tolist())
        label = BYTES.decode([t for t in passage.labels.tolist() if t >= 0])
        assert label in (" ham", " spam") and text.endswith(f"\n={label}")
        differ += text not in {plain.text(i) for i in range(len(plain))}
    assert differ >= 18 and len(changed) == len(plain)


@pytest.mark.parametrize(("cut", "left"), [("end", "abcdef=Y"), ("start", "ijklmn=Y")])
def test_a_record_longer_than_a_row_loses_an_end_of_x(cut: str, left: str) -> None:
    passage = record_passage([x("abcdefghijklmn"), cue("="), y("Y")], BYTES, 9, cut)
    assert BYTES.decode(passage.tokens.tolist()) == left and passage.tokens[-1] == 256
    assert passage.labels is not None and (passage.labels >= 0).sum() == 2


def test_a_record_without_x_stands_behind_end_of_text_of_its_own() -> None:
    for record in ([y("ab")], [x(""), y("ab")]):
        passage = record_passage(record, BYTES, 9, "end")
        assert passage.tokens.tolist() == [256, *b"ab", 256]
        assert passage.labels is not None and passage.labels.tolist() == [IGNORED, *b"ab", 256]


def test_judged_records_are_drawn_from_all_held_out_ones_always_the_same(tmp_path: Path) -> None:
    path, task = write_jsonl(tmp_path / "a.jsonl", ROWS), classification()
    held = [task.read(row) for row in ROWS[9::10]]
    once, again = (stream(path, task).records(4, 10) for _ in range(2))
    assert once == again and len(once.held_out) == 4 and len(once.trained) == 10
    assert all(record in held for record in once.held_out) and list(once.held_out) != held[:4]
    assert not any(record in held for record in once.trained)
    assert len(stream(path, task).records(99, 0).held_out) == len(held)


def test_what_is_stored_is_the_record() -> None:
    record: Record = [x('a "quoted"\nline\u2028 é'), cue("\x00"), y(' ["y"]')]
    assert stored_record(stored_text(record)) == record


def in_format(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        return write_jsonl(path, rows)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet"])
def test_formats_read_alike(tmp_path: Path, name: str) -> None:
    rows = [{"text": 'two\nlines, "quoted"\t', "label": 1, "more": "no"}, {"text": "é one", "label": 0, "more": "x"}]
    task = classification(labels=["ham", "spam"])
    pieces = list(read_corpus(CorpusConfig(path=str(in_format(tmp_path / name, rows))), 16384, Reading(), task))
    assert [stored_record(piece.text) for piece in pieces] == [
        [x('two\nlines, "quoted"'), cue("\n="), y(" spam")],
        [x("é one"), cue("\n="), y(" ham")],
    ]


def test_a_hub_data_set_reads_like_its_file(tmp_path: Path) -> None:
    rows = [{"translation": {"en": en, "es": es}} for en, es in (("One", "Uno"), ("Two", "Dos"))]
    path = in_format(tmp_path / "a.parquet", rows)
    task = load_task(TaskConfig(name="translation", x="translation.en", y="translation.es", cue="\n"))
    groups = RowGroups([str(path)], Rows(CorpusConfig(hub="some/set"), task))
    assert [stored_record(groups.row(i)) for i in range(2)] == [
        [x("One"), cue("\n"), y("Uno")],
        [x("Two"), cue("\n"), y("Dos")],
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "a", "label": "b"}\n{"text": "a"}\n', r"a.jsonl:2\): has no field 'label'; it has text"),
        ("a.jsonl", '\n{"text": 3, "label": "b"}\n', r"a.jsonl:2\): holds no text in the field 'text' but int"),
        ("a.jsonl", '{"text": " ", "label": "b"}\n', r"a.jsonl:1\): is empty in the field 'text'"),
        ("a.jsonl", '{"text": "a", "label": null}\n', r"a.jsonl:1\): holds no label in the field 'label' but None"),
        ("a.jsonl", "[1]\n", r"a.jsonl:1\): is no JSON object"),
        ("a.csv", 'text,label\n"two\nlines",b\nthree,b,c\n', r"a.csv:4\): has 3 fields, and the first line names 2"),
        ("a.csv", "text,kind\na,b\n", r"a.csv:2\): has no field 'label'; it has text, kind"),
        ("a.csv", 'text,label\n"a,b\n', r"a.csv:2\): is not CSV"),
        ("a.txt", "a\n", r"holds no records: they are read from .jsonl, .csv, .tsv and .parquet"),
    ],
)
def test_a_bad_record_is_refused_with_its_place_and_field(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        list(read_corpus(CorpusConfig(path=str(tmp_path / name)), 16384, Reading(), classification()))


def test_other_settings_of_a_task_are_another_store(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    prints = {stream(path, classification(**c)).fingerprints()["mails"] for c in ({}, {"labels": ["spam", "ham"]})}
    assert len(prints) == 1 and len(list((tmp_path / "cache").iterdir())) == 2
    assert stream(path, load_task(TaskConfig(name="completion", y="label"))).fingerprints()["mails"] not in prints
