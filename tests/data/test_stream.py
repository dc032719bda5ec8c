"""The stream uses every token once an epoch, in an order that only the seed and the position decide."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from gpt2_lightning.data.blocks import TextBlocks, validation_blocks
from gpt2_lightning.data.stream import IGNORED, DataConfig, StreamDataModule, TrainBatches
from gpt2_lightning.errors import DataError
from gpt2_lightning.settings.data import CorpusConfig

SHAKESPEARE = {"shakespeare": CorpusConfig(path="bundled:shakespeare.jsonl")}


def corpus(lengths: list[int]) -> list[np.ndarray]:
    """Documents of unique tokens, so that every one can be traced."""
    ids = iter(range(10_000))
    return [np.array([next(ids) for _ in range(n)], np.int32) for n in lengths]


def blocks(documents: list[np.ndarray], block_size: int = 8, seed: int = 0, window: int = 10**9) -> TextBlocks:
    return TextBlocks(lambda: iter(documents), block_size, seed, window)


@pytest.mark.parametrize("window", [10**9, 50, 7])
def test_every_token_is_a_target_once_an_epoch(window: int) -> None:
    documents = corpus([5, 30, 12, 1, 9, 40, 8])
    total = sum(map(len, documents))
    rows = blocks(documents, window=window).gather(0, 3 * total // 8)
    seen = np.bincount(rows[:, 1:].ravel(), minlength=total)
    assert abs(seen - 3).max() <= 1  # the stream's very first token, and what is not packed yet
    assert (seen == 3).mean() > 0.8


@pytest.mark.parametrize("window", [10**9, 60])
def test_a_row_is_a_function_of_seed_and_position(window: int) -> None:
    documents = corpus([20, 31, 12, 44, 9])
    straight = blocks(documents, window=window).gather(0, 60)
    stream = blocks(documents, window=window)
    for start in (40, 3, 3, 17, 59, 0):
        assert np.array_equal(stream.gather(start, 1)[0], straight[start])
    assert not np.array_equal(blocks(documents, seed=1, window=window).gather(0, 60), straight)


def test_epochs_differ() -> None:
    documents = corpus([20, 31, 12, 44, 9])
    rows = blocks(documents).gather(0, 28)
    assert not np.array_equal(rows[:14], rows[14:28])


def test_rows_are_runs_of_the_documents() -> None:
    documents = corpus([50, 60])
    for row in blocks(documents).gather(0, 12):
        assert (np.diff(row) == 1).sum() >= 7


def batches(workers: int, ranks: int, steps: int = 12, global_rows: int = 8) -> list[np.ndarray]:
    documents = corpus([50, 60, 30, 20])
    config = DataConfig(corpora=SHAKESPEARE)
    size = global_rows // ranks
    parts = []
    for rank in range(ranks):
        data = TrainBatches(blocks(documents), size, ranks, rank, steps, config)
        loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers)
        parts.append([x.numpy() for x, _ in loader])
    return [np.concatenate(rows) for rows in zip(*parts, strict=True)]


@pytest.mark.parametrize(("workers", "ranks"), [(1, 1), (2, 1), (3, 1), (0, 2), (0, 4), (2, 2)])
def test_workers_and_ranks_change_nothing(workers: int, ranks: int) -> None:
    expected, got = batches(0, 1), batches(workers, ranks)
    assert len(got) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))


def test_validation_predicts_every_token_once_in_order() -> None:
    documents = corpus([5, 9, 3])
    inputs, targets = validation_blocks(iter(documents), 8, 777)
    assert targets[targets >= 0].tolist() == list(range(17))
    assert inputs[0, 0] == 777
    assert (targets[-1, 1:] == -1).all()


def module(**options: object) -> StreamDataModule:
    data = StreamDataModule(DataConfig(**options), block_size=32, seed=0, micro_steps=5)
    data.setup()
    return data


def test_batches_are_inputs_and_the_tokens_after_them() -> None:
    data = module(corpora=SHAKESPEARE, tokenizer="bytes", batch_size=3)
    got = list(data.train_dataloader())
    assert len(got) == len(data.train_dataloader()) == 5
    for x, y in got:
        assert x.shape == y.shape == (3, 32)
        assert x.dtype == y.dtype == torch.int64
        assert torch.equal(x[:, 1:], y[:, :-1])


def test_validation_batches_are_whole_and_dealt_out() -> None:
    data = module(corpora=SHAKESPEARE, tokenizer="bytes", batch_size=3)
    whole = torch.cat([y for _, y in data.val_dataloader()[0]])
    inputs, targets = data.validation[0]
    parts = [data.deal(inputs, targets, 2, rank) for rank in (0, 1)]
    both = sum(int((y != IGNORED).sum()) for part in parts for _, y in part)
    assert both == int((whole != IGNORED).sum()) == int((targets >= 0).sum())
    assert abs(len(parts[0]) - len(parts[1])) <= 1


def test_recall_asks_for_the_digit_only() -> None:
    data = module(synthetic="recall", tokenizer="bytes", batch_size=4)
    x, y = next(iter(data.train_dataloader()))
    assert ((y != IGNORED).sum(1) == 1).all()
    for row, answer in zip(x, y[:, -1], strict=True):
        digits = [i for i, t in enumerate(row.tolist()) if chr(t).isdigit()]
        assert len(digits) == 1
        assert digits[0] < 8
        assert row[digits[0]] == answer
        assert row[-1] == ord("?")


def test_overfit_repeats_the_first_batch() -> None:
    data = module(corpora=SHAKESPEARE, tokenizer="bytes", overfit=True)
    xs = [x for x, _ in data.train_dataloader()]
    assert all(torch.equal(xs[0], x) for x in xs)


def nothing() -> Iterator[np.ndarray]:
    return iter(())


def test_too_little_text_is_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match="holds 5 tokens for training, and one block needs 9"):
        blocks(corpus([5])).gather(0, 1)
    with pytest.raises(DataError, match="holds 0 tokens"):
        TextBlocks(nothing, 8, 0, 10**9).gather(0, 1)
    with pytest.raises(DataError, match="no document is left for validation"):
        validation_blocks(iter(()), 8, 0)
