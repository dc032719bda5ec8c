"""The loader: lanes in, this rank's batches out, made by workers or here, and the place of the batch that was used last.

A rank of R owns every lane from ``first`` to ``first + lanes / R``; a micro-batch takes ``batch_size`` of them in turn, and a
worker fills some rows of every micro-batch, so that each lane stays where it is and no row depends on how many there are.
One number: 3, the steps whose places are kept, since Lightning may have asked for a batch more than it has trained on.
"""

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from gpt2_lightning.data.lanes import NOTHING, Lane, Read, Rows
from gpt2_lightning.errors import MachineError, PlatformError
from gpt2_lightning.loss import IGNORED
from gpt2_lightning.signals import ignore_signals

__all__ = ["Batch", "RankRows", "TrainLoader"]

KEPT_STEPS = 3
DEATH = "DataLoader worker (pid"  # in what torch says of it


class Batch(NamedTuple):
    """int64 ``[batch_size, block_size]`` twice; IGNORED targets carry no loss. ``corpora``: whose a target is, if several."""

    inputs: Tensor
    targets: Tensor
    corpora: Tensor | None = None


class Part(NamedTuple):
    """A worker's rows of one micro-batch, the places of their lanes behind them, and what was begun in them."""

    tokens: Tensor
    labels: Tensor | None
    corpora: Tensor | None
    places: Tensor
    counts: dict[str, int]


@dataclass(kw_only=True, slots=True)
class RankRows:
    """Which rows a rank trains on: ``lanes`` in all, its own from ``first`` on, as many as ``places`` ``[n, 2]`` says."""

    read: Read
    block_size: int
    batch_size: int
    lanes: int
    first: int
    places: np.ndarray
    end_of_text: int
    several: bool
    records: bool = False
    overfit: bool = False


class PartStream(IterableDataset[Part | PlatformError]):
    """The parts of one worker from micro-step ``start`` to ``stop``; an error comes as the last item, as it is."""

    def __init__(self, rows: RankRows, start: int, stop: int) -> None:
        self.rows, self.start, self.stop = rows, start, stop

    def __iter__(self) -> Iterator[Part | PlatformError]:
        worker = get_worker_info()
        turn, turns = (worker.id, worker.num_workers) if worker else (0, 1)
        try:
            yield from self.parts(turn, turns)
        except PlatformError as error:
            yield error

    def parts(self, turn: int, turns: int) -> Iterator[Part]:
        """Rows ``turn``, ``turn + turns``, ... of every micro-batch."""
        r = self.rows
        size = r.batch_size
        own = [n for n in range(len(r.places)) if n % size % turns == turn]
        lanes = {n: self.lane(n) for n in own}
        cycle = len(r.places) // size
        first = [lanes[n] for n in own if n // size == 0]
        part = self.fill(first) if r.overfit else None
        for step in range(self.start, self.stop):
            yield part or self.fill([lanes[n] for n in own if n // size == step % cycle])

    def lane(self, n: int) -> Lane:
        """The rank's n-th lane, at its place."""
        r, (draw, offset) = self.rows, self.rows.places[n].tolist()
        return Lane(r.read, r.first + n, r.lanes, r.end_of_text, draw, offset, r.records)

    def fill(self, lanes: list[Lane]) -> Part:
        """One row of each lane."""
        rows = Rows(len(lanes), self.rows.block_size, self.rows.several)
        for j, lane in enumerate(lanes):
            lane.fill(rows, j)
        labels = None if rows.labels is rows.tokens else torch.from_numpy(rows.labels)
        corpora = None if rows.corpora is None else torch.from_numpy(rows.corpora)
        places = np.array([(lane.draw, lane.offset) for lane in lanes], np.int32).reshape(-1, 2)
        return Part(torch.from_numpy(rows.tokens), labels, corpora, torch.from_numpy(places), dict(rows.counts))


class TrainLoader:
    """This rank's training batches from micro-step ``start`` to ``stop``; ``skipped`` of those before were not trained on.

    ``ended`` is true behind a step in which every lane has come to the end of the stream. ``waited_seconds`` adds up what
    its consumer has waited, ``counts`` what was begun, until somebody sets them back.
    """

    def __init__(self, rows: RankRows, workers: int, start: int, stop: int, skipped: int = 0) -> None:
        self.rows, self.start, self.stop, self.skipped = rows, start, stop, skipped
        self.workers = min(workers, rows.batch_size)
        self.cycle = len(rows.places) // rows.batch_size
        self.waited_seconds, self.counts = 0.0, Counter[str]()
        self.places = rows.places.copy()
        self.kept = {start: rows.places.copy()}
        self.ended, self.ended_rows = False, 0
        self.processes: list[Any] = []

    def __len__(self) -> int:
        return self.stop - self.skipped

    def __iter__(self) -> Iterator[Batch]:
        stream = PartStream(self.rows, self.start, self.stop)
        others = multiprocessing.active_children()
        parts = iter(self.worker_parts(stream) if self.workers else stream)
        self.processes = [process for process in multiprocessing.active_children() if process not in others]
        for step in range(self.start, self.stop):
            began = time.perf_counter()
            batch = self.join(step, [self.next_part(parts) for _ in range(max(1, self.workers))])
            self.waited_seconds += time.perf_counter() - began
            yield batch

    def worker_parts(self, stream: PartStream) -> DataLoader[Any]:
        """The parts as workers make them, in turn; drawing their seeds moves no generator that training uses."""
        own = torch.Generator()
        return DataLoader(stream, batch_size=None, num_workers=self.workers, generator=own, worker_init_fn=begin_worker)

    def next_part(self, parts: Iterator[Part | PlatformError]) -> Part:
        """The next worker's part; raises what it met, or MachineError when it was killed."""
        try:
            part = next(parts)
        except (RuntimeError, OSError, EOFError) as error:
            if not (rule := self.killed(error)):
                raise
            remedy = "Was it out of memory? Lower data.workers"
            raise MachineError("data worker", key="data.workers", value=self.workers, rule=rule, remedy=remedy) from error
        if isinstance(part, PlatformError):
            raise part
        return part

    def killed(self, error: Exception) -> str:
        """Who was killed, where the error says so or comes of asking one that is gone; empty for other errors."""
        try:
            for process in [] if DEATH in str(error) else self.processes:
                process.join(1.0)
        except RuntimeError as said:  # by torch, as soon as a worker's death is heard of
            error = said
        if DEATH in str(error):
            return str(error).splitlines()[0]
        dead = [process for process in self.processes if process.exitcode]
        return f"worker (pid {dead[0].pid}) is killed by signal: {-dead[0].exitcode}" if dead else ""

    def join(self, step: int, parts: list[Part]) -> Batch:
        """One micro-batch of the workers' parts; notes where its lanes stand."""
        first = step % self.cycle * self.rows.batch_size
        own = self.places[first : first + self.rows.batch_size]
        for turn, part in enumerate(parts):
            if not self.rows.overfit:
                own[turn :: len(parts)] = part.places.numpy()
            self.counts.update(part.counts)
        self.ended_rows += sum(part.counts.get("ended", 0) for part in parts)
        if (step + 1) % self.cycle == 0:
            self.ended, self.ended_rows = self.ended_rows == len(self.places), 0
            self.kept[step + 1] = self.places.copy()
            self.kept.pop(step + 1 - KEPT_STEPS * self.cycle, None)
        tokens = weave([part.tokens for part in parts])
        labels = self.join_labels(tokens, parts)
        corpora = weave([part.corpora for part in parts if part.corpora is not None]) if self.rows.several else None
        return Batch(tokens[:, :-1], labels[:, 1:], None if corpora is None else corpora[:, 1:])

    def join_labels(self, tokens: Tensor, parts: list[Part]) -> Tensor:
        """The labels ``[batch_size, block_size + 1]``: the tokens themselves, where no part has its own."""
        if all(part.labels is None for part in parts):
            return tokens
        labels = weave([part.tokens if part.labels is None else part.labels for part in parts])
        return labels.masked_fill_(labels == NOTHING, IGNORED)


def begin_worker(number: int) -> None:
    """In a worker: its rank alone decides when it ends."""
    ignore_signals()


def weave(parts: list[Tensor]) -> Tensor:
    """Row j of part i becomes row ``i + j * len(parts)``."""
    if len(parts) == 1:
        return parts[0]
    whole = torch.empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=parts[0].dtype)
    for i, part in enumerate(parts):
        whole[i :: len(parts)] = part
    return whole
