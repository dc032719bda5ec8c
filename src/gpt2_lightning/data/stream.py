"""The stream: the one door from corpora to the trainer. A DataConfig in, training and validation batches out.

The rows of a step are those of its lanes, whatever the number of ranks and workers, and the state is the lanes' places.
One number: 0, the workers by default: tokenising takes a fraction of a small model's step, and a process more takes a core.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from gpt2_lightning.data.blocks import record_blocks, sample_tokens, validation_blocks, validation_tokens
from gpt2_lightning.data.chance import keyed_permutation
from gpt2_lightning.data.lanes import Read
from gpt2_lightning.data.loader import Batch, RankRows, TrainLoader
from gpt2_lightning.data.recall import recall_passage, recall_validation
from gpt2_lightning.data.record import RecordDocuments
from gpt2_lightning.data.source import Corpora, Source, close_corpora, open_corpora, own_augmentation, used_documents
from gpt2_lightning.data.store import Store
from gpt2_lightning.data.tokens import Tokenizer, load_tokenizer
from gpt2_lightning.errors import CheckpointError, DataError, PlatformError
from gpt2_lightning.loss import IGNORED
from gpt2_lightning.metrics import bits_per_byte, unigram_nats
from gpt2_lightning.settings.augment import AugmentConfig
from gpt2_lightning.settings.data import DataConfig
from gpt2_lightning.settings.setting import flat
from gpt2_lightning.settings.task import TaskConfig
from gpt2_lightning.tasks.task import Record, Records, Task

__all__ = ["Batch", "DataConfig", "StreamDataModule"]

UNIGRAM_TOKENS = 2**19  # training tokens that are counted
TRAINED = 1000  # records trained on that a task may look at, as for the labels there are


class StreamDataModule(LightningDataModule):
    """Training and validation batches for one rank of a run of ``max_steps`` steps of ``accumulate`` batches a rank.

    After ``setup``: ``names`` names the corpora, which are the validation loaders in order; ``bytes_per_token``
    ``[vocab_size]`` serves bits per byte; ``warnings`` holds what the text gave rise to.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        block_size: int,
        seed: int,
        max_steps: int,
        accumulate: int = 1,
        augment: AugmentConfig | None = None,
        cache: Path = Path("outputs/cache"),
        task: Task | None = None,
    ) -> None:
        super().__init__()
        self.task = task or Task(TaskConfig())
        self.config, self.block_size, self.seed = config, block_size, seed
        self.max_steps, self.accumulate = max_steps, accumulate
        self.augment, self.cache = augment or AugmentConfig(), cache
        self.tokenizer: Tokenizer = load_tokenizer(config.tokenizer)
        self.bytes_per_token = torch.from_numpy(self.tokenizer.token_bytes())
        self.names = [config.synthetic] if config.synthetic else list(config.corpora)
        self.loss_weights = [1.0] if config.synthetic else [corpus.loss_weight for corpus in config.corpora.values()]
        self.corpora: Corpora = {}
        self.validation: list[tuple[np.ndarray, np.ndarray]] = []
        self.loader: TrainLoader | None = None
        self.resumed: dict[str, Any] | None = None
        self.rewound: dict[str, Any] | None = None
        self.skipped = 0  # steps whose batches rewinds have left out

    @property
    def warnings(self) -> list[str]:
        """What was odd about the text, and which workers have nothing to do."""
        of_text = [warning for parts in self.corpora.values() for warning in parts["train"].warnings]
        idle = self.config.workers - self.config.batch_size
        left_out = f"{idle} of {self.config.workers} workers are left out: a batch has {self.config.batch_size} rows to fill"
        return [*of_text, left_out] if idle > 0 else of_text

    @property
    def finite(self) -> bool:
        """Whether the stream ends: every corpus that is trained on is read a number of times."""
        trained = [corpus for corpus in self.config.corpora.values() if corpus.weight]
        return bool(trained) and all(corpus.epochs is not None for corpus in trained)

    def setup(self, stage: str | None = None) -> None:
        """Open the corpora and read what is needed to know that they are fit to train on; raises DataError otherwise."""
        if self.validation:
            return
        if self.config.synthetic:
            self.read: Read = partial(recall_passage, self.block_size, self.seed)
            self.validation = [recall_validation(self.block_size, self.seed)]
            return
        self.corpora = open_corpora(self.config, self.cache, self.task, self.block_size)
        try:
            self.require_text()
            self.read = Source(self.config, self.augment, self.corpora, self.seed)
            self.validation = [self.validation_part(name) for name in self.names]
        except PlatformError:
            close_corpora(self.corpora)
            raise

    def require_text(self) -> None:
        """Raise DataError where the corpora together do not fill one row."""
        there = 0
        for part in (parts["train"] for name, parts in self.corpora.items() if self.config.corpora[name].weight):
            for i in range(len(part)):
                there += len(part.tokens(i, self.tokenizer))
                if there > self.block_size:
                    return
        rule = f"holds {there} tokens for training, and one block needs {self.block_size + 1}"
        raise DataError("corpus", key="data", value="train", rule=rule, remedy="Give it more text, or lower model.block_size")

    def validation_part(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """One corpus's validation rows, inputs and targets."""
        most = self.config.val_batches and self.config.val_batches * self.config.batch_size
        held_out = self.corpora[name]["validation"]
        if isinstance(held_out, RecordDocuments):
            passages = (held_out.passage(i, self.tokenizer) for i in range(len(held_out)))
            return record_blocks(name, passages, self.block_size, self.tokenizer.end_of_text, most)
        documents = validation_tokens(held_out, self.tokenizer, most and most * self.block_size)
        return validation_blocks(name, documents, self.block_size, self.tokenizer.end_of_text)

    def records(self, held_out: int, trained: int = TRAINED) -> Records:
        """So many of the records held out and trained on, drawn from all, always the same for a seed; none of plain text."""
        return Records(self.drawn_records("validation", held_out), self.drawn_records("train", trained))

    def drawn_records(self, part: str, n: int) -> list[Record]:
        """``n`` records of one part, as many of each corpus; of a hub data set the first, since others are far away."""
        found: list[Record] = []
        for name, parts in self.corpora.items():
            documents = parts[part]
            there = used_documents(documents, self.config.corpora[name]) if part == "train" else len(documents)
            if isinstance(documents, RecordDocuments) and there:
                near = isinstance(documents.stored, Store)
                places = keyed_permutation(there, self.seed) if near else range(there)
                found += [documents.record(int(i)) for i in places[: -(-n // len(self.corpora))]]
        return found[:n]

    def unigram_bits_per_byte(self) -> float:
        """What a model that knows only how often each token occurs would reach in validation: the figure to beat."""
        targets = np.concatenate([targets[targets >= 0] for _, targets in self.validation])
        nats = unigram_nats(sample_tokens(self.read, UNIGRAM_TOKENS), targets, self.tokenizer.vocab_size)
        return bits_per_byte(nats, int(self.bytes_per_token[torch.from_numpy(targets)].sum()))

    def train_dataloader(self) -> TrainLoader:
        """This rank's training batches, from the place that was loaded."""
        self.loader = self.rank_loader(*self.world())
        return self.loader

    def rank_loader(self, ranks: int, rank: int) -> TrainLoader:
        """The training batches of any rank."""
        own = self.config.batch_size * self.accumulate
        step, places = 0, np.zeros((own * ranks, 2), np.int32)
        stood = self.rewound or self.resumed
        if stood is not None:
            step, places = stood["step"], stood["places"].numpy()
        rows = RankRows(
            read=self.read,
            config=self.config,
            block_size=self.block_size,
            end_of_text=self.tokenizer.end_of_text,
            lanes=own * ranks,
            first=own * rank,
            places=places[own * rank : own * (rank + 1)],
        )
        start, skipped = (step + self.skipped) * self.accumulate, self.skipped * self.accumulate
        return TrainLoader(rows, start, self.max_steps * self.accumulate + skipped, skipped)

    def val_dataloader(self) -> list["Batches"]:
        """This rank's share of every corpus's validation batches; dealt in turn, so shares differ by one batch at most."""
        return [self.deal(*part, *self.world()) for part in self.validation]

    def world(self) -> tuple[int, int]:
        """Ranks, and which of them this is."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def deal(self, inputs: np.ndarray, targets: np.ndarray, ranks: int, rank: int) -> "Batches":
        """Every ``ranks``-th batch of one corpus; a rank that gets none takes part with one that predicts nothing."""
        size = self.config.batch_size
        starts = range(0, len(inputs), size)[: self.config.val_batches]
        if rank >= len(starts):
            return Batches(inputs[:1], np.full_like(targets[:1], IGNORED), range(1), size)
        return Batches(inputs, targets, starts[rank::ranks], size)

    def state_dict(self) -> dict[str, Any]:
        """Where every lane of every rank stands behind the last step that was trained; to be called by all ranks together."""
        if self.loader is None or self.trainer is None:
            return {}
        step = self.trainer.global_step
        place = {"step": step, "skipped": self.skipped, "places": self.places(step)}
        return place | {"order": self.order(), "corpora": self.fingerprints()}

    def places(self, step: int) -> Tensor:
        """The places ``[lanes, 2]`` of all ranks behind step ``step``, one of the last; called by all ranks together."""
        assert self.loader and self.trainer
        own = torch.from_numpy(self.loader.kept[(step + self.skipped) * self.accumulate])
        strategy = self.trainer.strategy
        return strategy.all_gather(own.to(strategy.root_device)).reshape(-1, 2).cpu()

    def rewind(self, entry: dict[str, Any]) -> None:
        """Stand, at the step it says, behind the batches that are left out, whatever a checkpoint says."""
        self.rewound = {"step": entry["step"], "places": torch.tensor(entry["places"], dtype=torch.int32)}
        self.skipped = entry["skipped"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Stand where the state says; raises CheckpointError where data or rows are others than those it was saved with."""
        lanes = self.config.batch_size * self.accumulate * self.world()[0]
        then: dict[str, Any] = {"rows a step": len(state_dict["places"]), **state_dict["order"]}
        now: dict[str, Any] = {"rows a step": lanes, **self.order()}
        if not self.config.accept_changes:
            then |= {f"text of {name}": print_ for name, print_ in state_dict["corpora"].items()}
            now |= {f"text of {name}": print_ for name, print_ in self.fingerprints().items()}
        for key in {**then, **now}:
            if then.get(key) != now.get(key):
                remedy = "Restore the corpus, or set data.accept_changes=true" if key.startswith("text") else ""
                if key == "rows a step":
                    remedy = (
                        "Choose data.batch_size, trainer.accumulate, trainer.devices and trainer.nodes with the same product"
                    )
                rule = f"was {then.get(key, 'none')} when the checkpoint was saved and is {now.get(key, 'none')} now"
                raise CheckpointError(key, rule=rule, remedy=remedy)
        self.resumed = state_dict
        if self.rewound is None:
            self.skipped = state_dict["skipped"]

    def order(self) -> dict[str, Any]:
        """The settings that the order and the content of the rows depend on, by their keys."""
        config = {"seed": self.seed, "model.block_size": self.block_size, "data.corpora": ", ".join(self.names)}
        config |= {f"data.{key}": getattr(self.config, key) for key in ("tokenizer", "weigh", "shuffle_documents", "records")}
        for name, corpus in self.config.corpora.items():
            own = {key: getattr(corpus, key) for key in ("weight", "epochs", "documents")}
            augment = flat(asdict(own_augmentation(corpus, self.augment)), "augment.")
            config |= {f"data.corpora.{name}.{key}": value for key, value in (own | augment).items()}
        return config

    def fingerprints(self) -> dict[str, str]:
        """What tells each corpus's text apart from any other."""
        return {name: parts["train"].fingerprint for name, parts in self.corpora.items()}


class Batches:
    """The batches of ``size`` rows from each of ``starts`` on, made as they are asked for."""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, starts: range, size: int) -> None:
        self.inputs, self.targets, self.starts, self.size = inputs, targets, starts, size

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Batch]:
        for rows in (slice(i, i + self.size) for i in self.starts):
            inputs, targets = (torch.from_numpy(part[rows].astype(np.int64)) for part in (self.inputs, self.targets))
            yield Batch(inputs.clamp_(min=0), targets)  # behind the last document inputs are IGNORED too
