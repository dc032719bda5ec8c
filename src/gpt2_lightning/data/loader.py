"""The loader: lanes in, this rank's batches out, made by workers or here, and the place of the batch that was used last.

A rank of R owns every lane from ``first`` to ``first + lanes / R``; a micro-batch takes ``batch_size`` of them in turn, and a
worker fills some rows of every micro-batch, so that each lane stays where it is and no row depends on how many there are.
One number: 3, the steps whose places are kept, since Lightning may have asked for a batch more than it has trained on.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from gpt2_lightning.data.lanes import Lane, Read, Rows
from gpt2_lightning.errors import MachineError, PlatformError
from gpt2_lightning.settings.data import DataConfig
from gpt2_lightning.signals import ignore_signals

__all__ = ["Batch", "RankRows", "TrainLoader"]

KEPT_STEPS = 3
DEATH = "DataLoader worker (pid"  # in what torch says of it


class Batch(NamedTuple):
    """int64 ``[batch_size, block_size]`` twice; IGNORED targets carry no loss. ``corpora``: whose a target is, if several."""

    inputs: Tensor
    targets: Tensor
    corpora: Tensor | None = None


@dataclass(kw_only=True, slots=True)
class RankRows:
    """Which rows a rank trains on: ``lanes`` in all, its own from ``first`` on, as many as ``places`` ``[n, 2]`` says."""

    read: Read
    config: DataConfig
    block_size: int
    end_of_text: int
    lanes: int
    first: int
    places: np.ndarray


class PartStream(IterableDataset[Rows | PlatformError]):
    """The parts of one worker from micro-step ``start`` to ``stop``; an error comes as the last item, as it is."""

    def __init__(self, rows: RankRows, start: int, stop: int) -> None:
        self.rows, self.start, self.stop = rows, start, stop

    def __iter__(self) -> Iterator[Rows | PlatformError]:
        worker, r = get_worker_info(), self.rows
        turn, turns = (worker.id, worker.num_workers) if worker else (0, 1)
        size = r.config.batch_size
        lanes = {n: self.lane(n) for n in range(len(r.places)) if n % size % turns == turn}  # these rows of every micro-batch
        cycle = len(r.places) // size
        try:
            part = self.fill([lane for n, lane in lanes.items() if n < size]) if r.config.overfit else None
            for step in range(self.start, self.stop):
                yield part or self.fill([lane for n, lane in lanes.items() if n // size == step % cycle])
        except PlatformError as error:
            yield error

    def lane(self, n: int) -> Lane:
        """The rank's n-th lane, at its place."""
        r, (draw, offset) = self.rows, self.rows.places[n].tolist()
        return Lane(r.read, r.first + n, r.lanes, r.end_of_text, draw, offset, r.config.records)

    def fill(self, lanes: list[Lane]) -> Rows:
        """One row of each lane."""
        rows = Rows(len(lanes), self.rows.block_size, several=len(self.rows.config.corpora) > 1)
        for j, lane in enumerate(lanes):
            lane.fill(rows, j)
        return rows


class TrainLoader:
    """This rank's training batches from micro-step ``start`` to ``stop``; ``skipped`` of those before were not trained on.

    ``ended`` is true behind a step in which every lane has come to the end of the stream. ``waited_seconds`` adds up what
    its consumer has waited, ``counts`` what was begun, until somebody sets them back.
    """

    def __init__(self, rows: RankRows, start: int, stop: int, skipped: int = 0) -> None:
        self.rows, self.start, self.stop, self.skipped = rows, start, stop, skipped
        self.workers = min(rows.config.workers, rows.config.batch_size)
        self.cycle = len(rows.places) // rows.config.batch_size
        self.waited_seconds, self.counts = 0.0, Counter[str]()
        self.places = rows.places.copy()
        self.kept = {start: rows.places.copy()}
        self.ended, self.ended_rows = False, 0

    def __len__(self) -> int:
        return self.stop - self.skipped

    def __iter__(self) -> Iterator[Batch]:
        stream = PartStream(self.rows, self.start, self.stop)
        own = torch.Generator()  # drawing the workers' seeds moves no generator that training uses
        how: dict[str, Any] = {"num_workers": self.workers, "generator": own, "worker_init_fn": begin_worker}
        parts = iter(DataLoader(stream, batch_size=None, **how) if self.workers else stream)
        for step in range(self.start, self.stop):
            began = time.perf_counter()
            batch = self.join(step, [self.next_part(parts) for _ in range(max(1, self.workers))])
            self.waited_seconds += time.perf_counter() - began
            yield batch

    def next_part(self, parts: Iterator[Rows | PlatformError]) -> Rows:
        """The next worker's part; raises what it met, or MachineError when it was killed."""
        try:
            part = next(parts)
        except RuntimeError as error:  # by torch, as soon as a worker's death is heard of
            if DEATH not in str(error):
                raise
            rule, remedy = str(error).splitlines()[0], "Was it out of memory? Lower data.workers"
            raise MachineError("data worker", key="data.workers", value=self.workers, rule=rule, remedy=remedy) from error
        if isinstance(part, PlatformError):
            raise part
        return part

    def join(self, step: int, parts: list[Rows]) -> Batch:
        """One micro-batch of the workers' parts; notes where its lanes stand."""
        first = step % self.cycle * self.rows.config.batch_size
        own = self.places[first : first + self.rows.config.batch_size]
        for turn, part in enumerate(parts):
            if not self.rows.config.overfit:
                own[turn :: len(parts)] = part.places
            self.counts.update(part.counts)
        self.ended_rows += sum(part.counts["ended"] for part in parts)
        if (step + 1) % self.cycle == 0:
            self.ended, self.ended_rows = self.ended_rows == len(self.places), 0
            self.kept[step + 1] = self.places.copy()
            self.kept.pop(step + 1 - KEPT_STEPS * self.cycle, None)
        tokens = weave([part.tokens for part in parts])
        alike = all(part.labels is part.tokens for part in parts)
        labels = tokens if alike else weave([part.labels for part in parts])
        corpora = [part.corpora for part in parts if part.corpora is not None]
        return Batch(tokens[:, :-1], labels[:, 1:], weave(corpora)[:, 1:] if corpora else None)


def begin_worker(number: int) -> None:
    """In a worker: its rank alone decides when it ends."""
    ignore_signals()


def weave(parts: list[np.ndarray]) -> Tensor:
    """Row j of part i becomes row ``i + j * len(parts)``."""
    whole = parts[0]
    if len(parts) > 1:
        whole = np.empty((sum(map(len, parts)), *whole.shape[1:]), whole.dtype)
        for i, part in enumerate(parts):
            whole[i :: len(parts)] = part
    return torch.from_numpy(whole)
