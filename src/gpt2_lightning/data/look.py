"""A look at the stream: what the corpora hold, what augmentation does to them, a block as the model sees it, how fast it comes.

In: a run's settings and how many steps to read, skip, with how many workers and ranks. Out: text, and as its last line a digest
of the steps' rows, the same whatever the ranks and workers. Ranks are real processes.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from difflib import SequenceMatcher
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gpt2_lightning.config import RunConfig
from gpt2_lightning.data.augment import Augmenter
from gpt2_lightning.data.source import mean_tokens, own_augmentation, used_documents
from gpt2_lightning.data.stream import Batch, StreamDataModule
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.loss import IGNORED
from gpt2_lightning.settings.augment import OPERATIONS, AugmentConfig
from gpt2_lightning.settings.data import DataConfig
from gpt2_lightning.tasks.catalogue import load_task

__all__ = ["First", "augmentation_examples", "first_documents", "look", "marked"]

SHOWN_WORDS, SHOWN_TOKENS = 40, 2048


class Seen(NamedTuple):
    """What one rank has read: a hash of each row, step by step; counts of what was begun; tokens by corpus; seconds."""

    hashes: list[list[bytes]]
    counts: Counter[str]
    tokens: list[int]
    seconds: float


class First(NamedTuple):
    """A document and the beginning of what becomes of it, in how many tokens, and by which operations."""

    corpus: str
    text: str
    after: str
    tokens: int
    applied: tuple[str, ...]


def look(config: RunConfig, n: int, skip: int, workers: int, ranks: int) -> None:
    """Print everything, of ``n`` steps behind ``skip`` others; raises ConfigError where ranks cannot share out the rows."""
    rows = config.trainer.step_rows(config.data.batch_size, config.model.block_size, config.trainer.ranks)
    if rows % ranks:
        rule = f"must divide the {rows} rows of a step"
        raise ConfigError("ranks", key="ranks", value=ranks, rule=rule, remedy="Choose another data.batch_size")
    portion = replace(config.data, batch_size=rows // ranks, workers=workers)
    data = open_stream(config, portion, skip + n)
    read = partial(read_rank, config, portion, n, skip, ranks)
    if ranks == 1:
        seen = [read(0)]
    else:
        with ProcessPoolExecutor(ranks, get_context("spawn")) as pool:
            seen = list(pool.map(read, range(ranks)))
    for warning in data.warnings:
        print(f"warning: {warning}")
    print_corpora(data, seen)
    for name, example in augmentation_examples(data):
        print(f"\n{name}\n  {example}")
    print_block(data, ranks)
    tokens, slowest = sum(sum(s.tokens) for s in seen), max(s.seconds for s in seen)
    print(f"\n{tokens / slowest:,.0f} tokens/s with ranks={ranks} workers={workers}")
    print(f"digest {digest(seen)}")


def open_stream(config: RunConfig, portion: DataConfig, steps: int) -> StreamDataModule:
    """The stream of one rank."""
    stream = StreamDataModule(
        portion, block_size=config.model.block_size, seed=config.seed, max_steps=steps, augment=config.augment,
        cache=Path(config.run.folder) / "cache", task=load_task(config.task),
    )  # fmt: skip
    stream.setup()
    return stream


def read_rank(config: RunConfig, portion: DataConfig, n: int, skip: int, ranks: int, rank: int) -> Seen:
    """Read one rank's rows of every step."""
    torch.set_num_threads(1)
    loader = open_stream(config, portion, skip + n).rank_loader(ranks, rank)
    batches = iter(loader)
    for _ in range(skip):
        next(batches)
    loader.counts.clear()
    began = time.perf_counter()
    hashes, tokens, hashing = [], np.zeros(max(1, len(portion.corpora)), np.int64), 0.0
    for batch in batches:
        started = time.perf_counter()
        hashes.append(row_hashes(batch))
        tokens += tokens_by_corpus(batch, len(tokens))
        hashing += time.perf_counter() - started
    return Seen(hashes, loader.counts, tokens.tolist(), time.perf_counter() - began - hashing)


def row_hashes(batch: Batch) -> list[bytes]:
    """A hash of each row's inputs, targets and corpora."""
    parts = [part.contiguous().numpy() for part in batch if part is not None]
    return [hashlib.blake2b(b"".join(part[j].tobytes() for part in parts)).digest() for j in range(len(parts[0]))]


def digest(seen: list[Seen]) -> str:
    """The hash of all rows, step by step in the order of the lanes."""
    whole = hashlib.blake2b(digest_size=16)
    for step in zip(*(s.hashes for s in seen), strict=True):
        for rows in step:
            whole.update(b"".join(rows))
    return whole.hexdigest()


def tokens_by_corpus(batch: Batch, corpora: int) -> np.ndarray:
    """How many targets that count came from each corpus."""
    counted = batch.targets != IGNORED
    if batch.corpora is None:
        return np.array([int(counted.sum())])
    return torch.bincount(batch.corpora[counted].int(), minlength=corpora).numpy()


def print_corpora(data: StreamDataModule, seen: list[Seen]) -> None:
    """A table: what each corpus holds, the share asked for and the share drawn."""
    if not data.corpora:
        print(f"a made-up task, {data.names[0]}: no corpora")
        return
    counts = sum((s.counts for s in seen), Counter[str]())
    tokens = [sum(of) for of in zip(*(s.tokens for s in seen), strict=True)]
    print(f"{'corpus':20} {'documents':>11} {'held out':>9} {'tokens':>15} {'asked':>7} {'documents':>10} {'tokens':>7}")
    total = sum(corpus.weight for corpus in data.config.corpora.values())
    for i, (name, parts) in enumerate(data.corpora.items()):
        held, exact = used_documents(parts["train"], data.config.corpora[name]), parts["train"].tokenizer is not None
        there = f"{'' if exact else '~'}{held * mean_tokens(parts['train'], held, data.tokenizer):,.0f}"
        asked = data.config.corpora[name].weight / total
        drawn = counts[f"corpus/{i}"] / max(1, counts["documents"])
        print(f"{name:20} {held:11,} {len(parts['validation']):9,} {there:>15} {asked:7.1%} {drawn:10.1%} "
              f"{tokens[i] / max(1, sum(tokens)):7.1%}")  # fmt: skip
    print(f"the weights are shares of the {data.config.weigh}; the last two columns are what {sum(tokens):,} tokens held")
    for name in (key for key in counts if key.startswith("augment/")):
        print(f"{name} was applied to {counts[name] / max(1, counts['documents']):.1%} of {counts['documents']:,} documents")


def augmentation_examples(data: StreamDataModule) -> Iterator[tuple[str, str]]:
    """For each operation that is on, what it does and one document before and after it alone."""
    documents = next((parts["train"] for parts in data.corpora.values() if len(parts["train"])), None)
    for name in OPERATIONS:
        operation = getattr(data.augment, name)
        if documents is None or not operation.active:
            continue
        only = AugmentConfig(**{name: replace(operation, p=1.0)})
        text, augmenter = documents.text(0), Augmenter(only, data.tokenizer, data.seed)
        after = documents.passage(0, data.tokenizer, augmenter, augmenter.draw(0, 0, 0))
        said = f"{name}, strength {operation.strength}, to {operation.p:.0%} of the documents: [-gone-] {{+come+}}"
        yield said, marked(text, data.tokenizer.decode(after.tokens.tolist()))


def first_documents(data: StreamDataModule, n: int, characters: int) -> Iterator[First]:
    """The first n documents of each corpus as they come in its first epoch, fewer where those have more characters, but one."""
    for corpus, (name, parts) in enumerate(data.corpora.items()):
        documents, left = parts["train"], characters
        augmenter = Augmenter(own_augmentation(data.config.corpora[name], data.augment), data.tokenizer, data.seed)
        for i in range(min(n, used_documents(documents, data.config.corpora[name]))):
            text = documents.text(i)
            left -= len(text)
            if left < 0 and i:
                break
            after = documents.passage(i, data.tokenizer, augmenter, augmenter.draw(0, corpus, i))
            tokens = after.tokens[:-1]  # without end-of-text
            yield First(name, text, data.tokenizer.decode(tokens[:SHOWN_TOKENS].tolist()), len(tokens), after.applied)


def marked(before: str, after: str) -> str:
    """The first words of the text, with those that are gone and those that have come."""
    a, b = before.split()[:SHOWN_WORDS], after.split()[:SHOWN_WORDS]
    shown: list[str] = []
    for kind, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            shown += a[i:j]
        else:
            shown += [f"[-{' '.join(a[i:j])}-]"] * (j > i) + [f"{{+{' '.join(b[k:m])}+}}"] * (m > k)
    return " ".join(shown)


def print_block(data: StreamDataModule, ranks: int) -> None:
    """The first row: what goes in, and how many of its targets count."""
    batch = next(iter(data.rank_loader(ranks, 0)))
    row, counted = batch.inputs[0].numpy(), int((batch.targets[0] >= 0).sum())
    print(f"\none row, {len(row)} tokens, of which {counted} targets count, | where end-of-text stands:")
    documents = np.split(row, np.flatnonzero(row == data.tokenizer.end_of_text))
    print("  " + " ".join(" | ".join(data.tokenizer.decode(tokens.tolist()) for tokens in documents).split()))
