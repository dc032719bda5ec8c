"""The stream: the one door from corpora to the trainer. A DataConfig in, batches ``(inputs, targets)`` out.

Each batch is int64 ``[batch_size, block_size]`` twice; IGNORED targets carry no loss. Row r of the global batch at
micro-step i is row ``i * global_rows + r`` of the order in ``blocks``, whatever the number of ranks and workers.
One number: 0, the workers by default: a row is gathered by its index in microseconds, less than a process hand-over costs.
"""

import time
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from gpt2_lightning.data.blocks import TextBlocks, read_documents, validation_blocks
from gpt2_lightning.data.corpus import read_corpus
from gpt2_lightning.data.recall import RecallBlocks, answers, recall_validation
from gpt2_lightning.data.tokens import Tokenizer, load_tokenizer
from gpt2_lightning.loss import IGNORED
from gpt2_lightning.metrics import bits_per_byte, unigram_nats
from gpt2_lightning.settings.data import DataConfig

__all__ = ["Batch", "DataConfig", "StreamDataModule"]

Batch = tuple[Tensor, Tensor]

UNIGRAM_ROWS = 4096  # training rows whose tokens are counted


@runtime_checkable
class Blocks(Protocol):
    """Anything that gives row n of a training order."""

    def gather(self, start: int, count: int) -> np.ndarray: ...


class TrainBatches(IterableDataset[Batch]):
    """This rank's batches from micro-step ``start`` to ``stop``; workers take turns, so their number changes nothing."""

    def __init__(self, blocks: Blocks, batch_size: int, ranks: int, rank: int, stop: int, config: DataConfig) -> None:
        self.blocks, self.batch_size, self.ranks, self.rank, self.stop = blocks, batch_size, ranks, rank, stop
        self.overfit, self.answers_only = config.overfit, config.synthetic is not None

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, turn = (worker.id, worker.num_workers) if worker else (0, 1)
        return (self.batch(i) for i in range(first, self.stop, turn))

    def __len__(self) -> int:
        return self.stop

    def batch(self, step: int) -> Batch:
        """The batch of one micro-step."""
        row = ((0 if self.overfit else step) * self.ranks + self.rank) * self.batch_size
        rows = self.blocks.gather(row, self.batch_size)
        return to_batch(rows[:, :-1], answers(rows) if self.answers_only else rows[:, 1:])


class TimedLoader:
    """A loader that adds up the seconds its consumer has waited for it."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.waited_seconds = loader, 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waited_seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch


class StreamDataModule(LightningDataModule):
    """Training and validation batches for one rank of a run.

    ``micro_steps`` is how many batches each rank trains on. After ``setup``: ``val_names`` names the validation loaders'
    corpora in order, ``bytes_per_token`` ``[vocab_size]`` serves bits per byte, ``warnings`` holds what the text gave rise to.
    """

    def __init__(self, config: DataConfig, *, block_size: int, seed: int, micro_steps: int) -> None:
        super().__init__()
        self.config, self.block_size, self.seed, self.micro_steps = config, block_size, seed, micro_steps
        self.tokenizer: Tokenizer = load_tokenizer(config.tokenizer)
        self.bytes_per_token = torch.from_numpy(self.tokenizer.token_bytes())
        self.val_names = [config.synthetic] if config.synthetic else list(config.corpora)
        self.warnings: list[str] = []
        self.loader: TimedLoader | None = None
        self.blocks: Blocks | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read what is needed to know that the data are fit to train on; raises DataError otherwise."""
        if self.blocks is None:
            self.blocks = self.train_blocks()
            self.blocks.gather(0, 1)
            self.validation = [self.validation_part(name) for name in self.val_names]

    def unigram_bits_per_byte(self) -> float:
        """What a model that knows only how often each token occurs would reach in validation: the figure to beat."""
        assert self.blocks is not None
        rows = self.blocks.gather(0, UNIGRAM_ROWS)
        targets = np.concatenate([targets[targets >= 0] for _, targets in self.validation])
        seen = answers(rows)[:, -1] if self.config.synthetic else rows[:, 1:]
        nats = unigram_nats(seen, targets, self.tokenizer.vocab_size)
        return bits_per_byte(nats, int(self.bytes_per_token[torch.from_numpy(targets)].sum()))

    def train_blocks(self) -> Blocks:
        """The training order."""
        if self.config.synthetic:
            return RecallBlocks(self.block_size, self.seed)
        return TextBlocks(self.read_train, self.block_size, self.seed, self.config.shuffle_tokens)

    def read_train(self) -> Iterator[np.ndarray]:
        """The training documents, once through."""
        (corpus,) = self.config.corpora.values()
        return read_documents(read_corpus(corpus, "train", self.warn), self.tokenizer)

    def warn(self, warning: str) -> None:
        """Keep a warning, once."""
        if warning not in self.warnings:
            self.warnings.append(warning)

    def validation_part(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """One corpus's validation rows, inputs and targets."""
        if self.config.synthetic:
            return recall_validation(self.block_size, self.seed)
        pieces = read_corpus(self.config.corpora[name], "validation", self.warn)
        return validation_blocks(read_documents(pieces, self.tokenizer), self.block_size, self.tokenizer.end_of_text)

    def train_dataloader(self) -> TimedLoader:
        """This rank's training batches, as many as it trains on."""
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        assert self.blocks is not None
        batches = TrainBatches(self.blocks, self.config.batch_size, ranks, rank, self.micro_steps, self.config)
        workers = self.config.workers
        loader = DataLoader(batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
        self.loader = TimedLoader(loader if workers else batches)
        return self.loader

    def val_dataloader(self) -> list[TimedLoader]:
        """This rank's share of every corpus's validation batches; dealt in turn, so shares differ by one batch at most."""
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return [TimedLoader(self.deal(*part, ranks, rank)) for part in self.validation]  # bare lists Lightning would unpack

    def deal(self, inputs: np.ndarray, targets: np.ndarray, ranks: int, rank: int) -> list[Batch]:
        """Every ``ranks``-th batch of one corpus."""
        size = self.config.batch_size
        starts = range(0, len(inputs), size)[: self.config.val_batches]
        return [to_batch(inputs[i : i + size], targets[i : i + size]) for i in starts[rank::ranks]]


def to_batch(inputs: np.ndarray, targets: np.ndarray) -> Batch:
    """Tensors the trainer takes; -1 becomes IGNORED."""
    y = torch.from_numpy(targets.astype(np.int64))
    return torch.from_numpy(inputs.astype(np.int64)), y.masked_fill_(y < 0, IGNORED)
