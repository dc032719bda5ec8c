"""What TensorBoard shows of a run: the numbers of metrics.jsonl and no others, text as it is, and no change to the training."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch import nn

from gpt2_lightning.board import Board, Histogram, escaped, events, open_board, preformatted
from gpt2_lightning.checkpoint import checkpoints, load_checkpoint
from gpt2_lightning.config import load_config
from gpt2_lightning.decoder import Decoder, DecoderConfig
from gpt2_lightning.inspection import BINS, MOST_VALUES, attention_entropy, histogram, histograms, thinned
from tests import lab

HOSTILE = (
    "<script>alert(1)</script>",
    "</pre><img src=x onerror=alert(1)>",
    "[a](javascript:alert(1)) `**b**`",
    "&lt;b&gt; \x02wzxhzdk:0\x03",
)
SMALL = DecoderConfig(n_layer=3, n_head=2, n_embd=16, block_size=32, vocab_size=50, dropout=0.5)


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance=STORE_EVERYTHING_SIZE_GUIDANCE).Reload()


def text(board: EventAccumulator, tag: str, n: int = 0) -> str:
    """The HTML that TensorBoard's page gets."""
    return markdown_to_safe_html(board.Tensors(tag)[n].tensor_proto.string_val[0])


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


numbers = st.floats(width=32, allow_nan=False)


# the file
@settings(max_examples=30, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b/c"]), st.floats(width=32, allow_nan=False), min_size=1), max_size=5))
def test_scalars_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, float]]
) -> None:
    folder = tmp_path_factory.mktemp("board")
    board = open_board(folder)
    for step, scalars in enumerate(written):
        board.scalars(scalars, step)
    found = read(folder)  # nothing waits for a close
    for tag in ("a", "b/c"):
        expected = [(step, scalars[tag]) for step, scalars in enumerate(written) if tag in scalars]
        assert not expected or [(e.step, e.value) for e in found.Scalars(tag)] == expected


def test_a_file_that_purges_takes_the_place_of_what_earlier_ones_have_from_its_step_on(tmp_path: Path) -> None:
    for purge_step, values in ((None, range(6)), (3, (30, 40)), (4, (400,))):
        board = open_board(tmp_path, purge_step)  # within a second, which names must tell apart
        for step, value in enumerate(values, purge_step or 0):
            board.scalars({"a": value}, step)
    assert [(e.step, e.value) for e in read(tmp_path).Scalars("a")] == [(0, 0), (1, 1), (2, 2), (3, 30), (4, 400)]


def test_a_full_disk_is_an_error_at_once() -> None:
    full = Path("/dev/full").open("wb")  # noqa: SIM115  closing fails too
    with pytest.raises(OSError, match="No space"):
        Board(full)
    with suppress(OSError):
        full.close()


@pytest.mark.parametrize("hostile", HOSTILE)
def test_text_is_shown_as_it_is_and_never_as_html(tmp_path: Path, hostile: str) -> None:
    board = open_board(tmp_path)
    board.text("t", preformatted(f"one\n\n{hostile}\n    two"), 0)
    html = text(read(tmp_path), "t")
    for tag in ("<script", "<img", "<a ", "<strong", "<code", "<b>"):
        assert tag not in html
    shown = html.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert "".join(c if c >= " " else "\ufffd" for c in hostile) in shown and "\n\n" in shown and "\n    two" in shown


def test_text_that_is_no_unicode_is_written_all_the_same(tmp_path: Path) -> None:
    open_board(tmp_path).text("t", preformatted("a\udcffb"), 0)
    assert "a?b" in text(read(tmp_path), "t")


def test_equal_events_are_equal_bytes() -> None:
    def write(board: Board) -> None:
        board.scalars({"a": 1.0}, 3)
        board.session("s/trial-000", {"lr": 0.1, "on": True, "by": "x"}, "complete", 1.0, 2.0)

    assert events(write, 5.0) == events(write, 5.0) != events(write, 6.0)


SESSION = """
from gpt2_lightning.board import events
settings = {f"key{i}": i / 3 for i in range(12)}
print(events(lambda board: board.session("trial", settings, "complete", 1.0, 2.0), 3.0).hex())
"""


def test_equal_rows_of_trials_are_equal_bytes_in_every_process() -> None:
    said = [subprocess.run([sys.executable, "-c", SESSION], capture_output=True, check=True).stdout for _ in range(2)]
    assert said[0] == said[1] and b"key11".hex().encode() in said[0]


def test_a_histogram_comes_back(tmp_path: Path) -> None:
    open_board(tmp_path).histograms({"h": Histogram(-1.0, [0.0, 2.0], [3.0, 1.0], 0.5, 4.0)}, 7)
    (found,) = read(tmp_path).Histograms("h")
    value = found.histogram_value
    assert (found.step, value.min, value.max, value.num) == (7, -1.0, 2.0, 4)
    assert (list(value.bucket_limit), list(value.bucket)) == ([0.0, 2.0], [3.0, 1.0])


# what a model looks like
@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=300))
def test_a_histogram_counts_every_value_once_in_its_place(values: list[float]) -> None:
    found = histogram([torch.tensor(values)])
    assert found is not None and len(found.counts) == len(found.edges) == BINS
    assert sum(found.counts) == len(values) and found.low == min(values)
    assert found.edges == sorted(found.edges) and found.edges[-1] >= max(values)
    assert found.total == pytest.approx(sum(values), abs=1e-3) and found.total_of_squares >= 0
    below = np.cumsum(found.counts)
    for edge, n in zip(found.edges[:-1], below, strict=False):
        assert abs(n - sum(v < edge for v in values)) <= sum(abs(v - edge) <= 1e-6 * (1 + abs(edge)) for v in values)


def test_a_histogram_leaves_out_what_is_not_finite_and_is_bounded() -> None:
    assert histogram([torch.tensor([math.nan, 1.0, math.inf, 2.0])]) == histogram([torch.tensor([1.0, 2.0])])
    assert histogram([torch.tensor([math.nan])]) is None and histogram([]) is None
    found = histogram([torch.randn(700, 768), torch.randn(768, 3072)])
    assert found is not None and MOST_VALUES / 2 < sum(found.counts) <= 1.1 * MOST_VALUES


@pytest.mark.parametrize("columns", [768, 2304, 1, 64])
def test_what_is_looked_at_comes_from_all_columns(columns: int) -> None:
    grid = torch.arange(columns).repeat(4_000_000 // columns, 1)
    assert len(thinned(grid, 2**15).unique()) == columns


def test_histograms_are_of_every_layer_and_of_gradients_where_there_are_any() -> None:
    decoder = Decoder(SMALL)
    names = {"wte", "wpe", *(f"h.{i:02d}.{part}" for i in range(3) for part in ("attn", "mlp"))}
    assert set(histograms(decoder)) == {f"weights/{name}" for name in names}
    decoder(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    assert set(histograms(decoder)) == {f"{what}/{name}" for name in names for what in ("weights", "gradients")}


def uniform(**changes: Any) -> Decoder:
    """A decoder whose heads look at all they see alike."""
    decoder = Decoder(DecoderConfig(**{**{f: getattr(SMALL, f) for f in SMALL.__slots__}, **changes}))
    for block in decoder.h:
        nn.init.zeros_(block.attn.c_attn.weight)
    return decoder


@pytest.mark.parametrize(
    ("changes", "seen"),
    [({}, range(1, 21)), ({"attention_window": 4}, [min(t, 4) for t in range(1, 21)]),
     ({"document_mask": True}, [*range(1, 8), *range(1, 14)])],
)  # fmt: skip
def test_the_entropy_of_even_attention_is_that_of_what_is_seen(changes: dict[str, Any], seen: Any) -> None:
    tokens = torch.ones(2, 20, dtype=torch.long)
    tokens[:, 6] = SMALL.vocab_size - 1  # end of text
    found = attention_entropy(uniform(**changes), tokens)
    assert found.shape == (3, 2)
    assert found.flatten().tolist() == pytest.approx([np.mean(np.log(list(seen)))] * 6, rel=1e-5)


def test_the_entropy_of_attention_is_that_of_its_softmax_and_leaves_no_trace() -> None:
    decoder = Decoder(SMALL)
    for block in decoder.h:
        nn.init.normal_(block.attn.c_attn.weight, std=0.5)
    tokens = torch.randint(49, (6, 32))
    random, was = torch.get_rng_state(), [len(m._forward_hooks) for m in decoder.modules()]
    found = attention_entropy(decoder, tokens)
    assert torch.equal(random, torch.get_rng_state()) and decoder.training
    assert was == [len(m._forward_hooks) for m in decoder.modules()]
    decoder.eval().requires_grad_(False)
    x = decoder.wte(tokens[:4]) + decoder.wpe.weight[:32]
    qkv = decoder.h[0].attn.c_attn(decoder.h[0].ln_1(x))
    for head in range(2):
        q, k = (qkv[..., i * 16 + head * 8 : i * 16 + head * 8 + 8] for i in (0, 1))
        nats = []
        for b in range(4):
            for t in range(32):
                p = torch.softmax(k[b, : t + 1] @ q[b, t] / math.sqrt(8), 0)
                nats.append(-float((p * p.log()).sum()))
        assert float(found[0, head]) == pytest.approx(np.mean(nats), rel=1e-4)


# a run
WORDS = (*lab.NANO, "model.dropout=0.1", "trainer.max_steps=6", "trainer.val_every=3", "trainer.log_every=2",
         "checkpoint.every=1", "checkpoint.keep=6", "loss.beta=0.01")  # fmt: skip
LOOKED_AT = ("board.histograms_every=3", "board.attention_entropy=true", "samples.at_validation=true",
             "samples.max_new_tokens=4", "board.stream_examples=3", "augment=all")  # fmt: skip


def with_words(*words: str) -> Any:
    return lambda: setattr(sys, "argv", ["gpt2", *words])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that is looked at with all options, under hostile prompts."""
    prompts = f"samples.prompts={json.dumps(HOSTILE[:2])}"
    typed = (*WORDS, *LOOKED_AT, prompts, "sweep.storage=postgresql://me:hunter2@host/db")
    yield lab.train([*WORDS, *LOOKED_AT, prompts], tmp_path_factory.mktemp("run"), with_words(*typed))


def test_looking_changes_nothing(run: Path, tmp_path: Path) -> None:
    plain = lab.train([*WORDS, "augment=all", "board.stream_examples=0"], tmp_path)
    lab.assert_same_run(run, plain)


def test_every_number_is_that_of_metrics_jsonl_and_every_one_of_those_is_there(run: Path) -> None:
    board = read(run / "tensorboard")
    names = [tag for tag in board.Tags()["scalars"] if not tag.startswith("attention/")]
    assert sorted(names) == sorted({name for row in rows(run) for name in row} - {"step"})
    for name in names:
        expected = [(row["step"], np.float32(row[name])) for row in rows(run) if name in row]
        assert [(e.step, np.float32(e.value)) for e in board.Scalars(name)] == expected


def test_the_charts_hold_tags_that_are_there(run: Path) -> None:
    board = read(run / "tensorboard")
    (event,) = board.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    tags = board.Tags()["scalars"]
    found = {title: [tag for p in patterns for tag in tags if re.match(p, tag)] for title, patterns in charts.items()}
    assert all(found.values())
    assert found["cross-entropy: training and validation"] == ["train/cross_entropy", "val/cross_entropy"]
    corpora = found["cross-entropy of each corpus: training and validation"]
    assert sorted(corpora) == ["train/shakespeare/cross_entropy", "val/shakespeare/cross_entropy"]
    assert len(found["nats of each head, layer 01"]) == load_config(str(run / "config.yaml"), []).model.n_head


def test_the_options_show_what_they_promise(run: Path) -> None:
    board = read(run / "tensorboard")
    of_steps = [tag for tag in board.Tags()["histograms"] if not tag.startswith("stream/")]
    assert len(of_steps) == 2 * (2 + 2 * 2)
    assert all([e.step for e in board.Histograms(tag)] == [3, 6] for tag in of_steps)
    (lengths,) = board.Histograms("stream/shakespeare/tokens_per_document")
    assert 0 < lengths.histogram_value.num <= 256
    heads = [tag for tag in board.Tags()["scalars"] if tag.startswith("attention/")]
    assert all([e.step for e in board.Scalars(tag)] == [3, 6] for tag in heads)
    shown = text(board, "stream")
    assert shown.count("shakespeare, document") == 3 and "swap, strength" in shown and "[-" in shown


def test_the_texts_are_the_settings_the_command_and_the_samples_escaped_and_without_a_password(run: Path) -> None:
    board = read(run / "tensorboard")
    assert escaped((run / "config.yaml").read_text().rstrip()) in text(board, "config")
    command = text(board, "command")
    assert "python -m gpt2_lightning model=nano" in command and "storage" not in command
    assert b"hunter2" not in b"".join(path.read_bytes() for path in (run / "tensorboard").iterdir())
    assert [e.step for e in board.Tensors("samples")] == [3, 6, 6]
    samples = text(board, "samples", 1)
    assert "<strong>&lt;script&gt;alert(1)&lt;/script&gt;</strong>" in samples
    assert "<img" not in samples and "<script" not in samples
    last = next(row for row in reversed(rows(run)) if "val/cross_entropy" in row)
    assert f"val/cross_entropy  {last['val/cross_entropy']:.4g}" in samples


def test_the_update_norm_is_that_of_the_step_that_is_logged(run: Path) -> None:
    saved = {path.name: load_checkpoint(path)[1] for path in checkpoints(run / "checkpoints")}
    logged = [row for row in rows(run) if "optimizer/update_norm" in row]
    assert [row["step"] for row in logged] == [2, 4, 6]
    for row in logged:
        before, after = (saved[f"step-{step:08d}"] for step in (int(row["step"]) - 1, int(row["step"])))
        norm = math.sqrt(sum(float((after[n].double() - before[n].double()).square().sum()) for n in after))
        assert row["optimizer/update_norm"] == pytest.approx(norm, rel=1e-5)


def test_a_run_that_goes_on_may_be_looked_at_otherwise(tmp_path: Path) -> None:
    words = [*WORDS, "run.id=one"]
    folder = lab.train(words, tmp_path)
    longer = ["trainer.max_steps=9", "board.histograms_every=2", "resume_allow=[trainer.max_steps,board]"]
    assert lab.train([*words, *longer], tmp_path) == folder
    board = read(folder / "tensorboard")
    assert [e.step for e in board.Histograms("weights/wte")] == [8]
    assert [e.step for e in board.Tensors("config")] == [0, 6]
    assert [e.step for e in board.Scalars("train/loss")] == [row["step"] for row in rows(folder) if "train/loss" in row]


def test_a_sharded_model_shows_the_histograms_of_a_whole_one(tmp_path: Path) -> None:
    words = [*WORDS, "board.histograms_every=3", "model.dropout=0", "trainer.batch_tokens=256", "data.batch_size=2"]
    shares = ("trainer.devices=1", "trainer.devices=2 trainer.strategy=fsdp")
    one, two = (read(lab.train([*words, *share.split()], tmp_path / str(i)) / "tensorboard") for i, share in enumerate(shares))
    assert one.Tags()["histograms"] == two.Tags()["histograms"]
    for tag in (tag for tag in one.Tags()["histograms"] if not tag.startswith("stream/")):
        for a, b in zip(one.Histograms(tag), two.Histograms(tag), strict=True):
            assert (a.step, a.histogram_value.num) == (b.step, b.histogram_value.num)
            assert a.histogram_value.sum_squares == pytest.approx(b.histogram_value.sum_squares, rel=1e-4)
