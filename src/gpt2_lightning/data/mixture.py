"""The mixture: how many documents each corpus has, and its weight, in; which document each draw is, out.

Draw g of the stream, any g, is a pure function of the seed and g: blocks of 4,096 draws hold every corpus's share of them in
a keyed order, and the k-th draw of a corpus takes the k-th document of that corpus's own keyed permutation, anew each epoch.
So every document comes exactly once an epoch, and nothing has to be replayed to stand at any place.
One number: 1/4,096, the most by which a corpus's share can miss its weight.
Choice not taken: drawing the corpus by chance alone, which leaves no closed form for how often each was drawn before.
"""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from gpt2_lightning.data.chance import keyed_permutation

__all__ = ["BLOCK", "Draw", "Mixture", "quotas"]

BLOCK = 4096
OWNERS, DOCUMENTS = 1, 2  # what a key is for
CACHED_NUMBERS = 2**20  # of a corpus's permutations, 8 MiB; two permutations where they are longer


class Draw(NamedTuple):
    """Document ``document`` of corpus number ``corpus``, in that corpus's epoch ``epoch``."""

    corpus: int
    epoch: int
    document: int


class Phase(NamedTuple):
    """From block ``start`` on each corpus has ``quota`` draws a block, having had ``before`` draws until then."""

    start: int
    quota: list[int]
    before: list[int]


class Mixture:
    """Draws over corpora of ``sizes`` documents, by ``weights``; ``epochs`` says how often each is read, None without end.

    Within ``window`` documents the order is shuffled; 1 keeps the stored order.
    """

    def __init__(
        self, sizes: list[int], weights: list[float], epochs: list[int | None], seed: int, window: int = 2**20
    ) -> None:
        self.sizes, self.weights, self.epochs, self.seed, self.window = sizes, weights, epochs, seed, window
        self.limits = [None if e is None else e * n for e, n in zip(epochs, sizes, strict=True)]
        self.phases = plan(weights, self.limits)
        self.end = self.phases[-1].start * BLOCK if not any(self.phases[-1].quota) else None
        # lanes stand in two windows of a large corpus, and in many epochs of a small one
        kept = [max(2, min(256, CACHED_NUMBERS // max(1, min(window, size)))) for size in sizes]
        self.permutations = [lru_cache(n)(partial(self.make_permutation, corpus)) for corpus, n in enumerate(kept)]
        self.owners = lru_cache(64)(self.make_owners)

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew in another process: its caches stay here."""
        return Mixture, (self.sizes, self.weights, self.epochs, self.seed, self.window)

    def draw(self, g: int) -> Draw | None:
        """Draw number g; None where a corpus has ended in its last block, and from ``end`` on."""
        corpus, k = self.place(g)
        limit = self.limits[corpus]
        if limit is not None and k >= limit:
            return None
        epoch, i = divmod(k, self.sizes[corpus])
        if self.window == 1:
            return Draw(corpus, epoch, i)
        window, j = divmod(i, self.window)
        return Draw(corpus, epoch, window * self.window + int(self.permutations[corpus](epoch, window)[j]))

    def place(self, g: int) -> tuple[int, int]:
        """The corpus of draw g, and how many draws of that corpus came before it."""
        block, within = divmod(g, BLOCK)
        number = max(i for i, phase in enumerate(self.phases) if phase.start <= block)
        start, quota, before = self.phases[number]
        if not any(quota):
            return 0, self.limits[0] or 0
        if sum(map(bool, quota)) == 1:
            corpus = next(c for c, q in enumerate(quota) if q)
            return corpus, before[corpus] + (block - start) * BLOCK + within
        owners, ranks = self.owners(number, block)
        corpus = int(owners[within])
        return corpus, before[corpus] + (block - start) * quota[corpus] + int(ranks[within])

    def make_owners(self, phase: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The corpus of each of a block's draws, and the how-manieth of that corpus in the block it is; both ``[BLOCK]``."""
        stacked = np.repeat(np.arange(len(self.sizes)), self.phases[phase].quota)
        within = np.concatenate([np.arange(q) for q in self.phases[phase].quota])
        order = np.argsort(keyed_permutation(BLOCK, self.seed, OWNERS, block))
        owners = stacked[order]
        ranks = np.empty(BLOCK, np.int64)
        ranks[np.argsort(owners, kind="stable")] = within
        return owners, ranks

    def make_permutation(self, corpus: int, epoch: int, window: int) -> np.ndarray:
        """The order of one window's documents."""
        n = min(self.window, self.sizes[corpus] - window * self.window)
        return keyed_permutation(n, self.seed, DOCUMENTS, corpus, epoch, window)


def plan(weights: list[float], limits: list[int | None]) -> list[Phase]:
    """The phases: one from the start, one after each block in which a corpus ends; the last has no draws if all end."""
    left = dict(enumerate(limits))
    phases = [Phase(0, quotas(weights), [0] * len(weights))]
    while any(phases[-1].quota):
        start, quota, before = phases[-1]
        blocks = {c: -(-(limit - before[c]) // quota[c]) for c, limit in left.items() if limit is not None and quota[c]}
        if not blocks:
            break
        lasts = min(blocks.values())
        for corpus in [c for c, b in blocks.items() if b == lasts]:
            del left[corpus]
        weights = [w if c in left else 0.0 for c, w in enumerate(weights)]
        phases.append(Phase(start + lasts, quotas(weights), [b + lasts * q for b, q in zip(before, quota, strict=True)]))
    return phases


def quotas(weights: list[float]) -> list[int]:
    """How many of a block's draws each corpus gets: its share, by largest remainder, at least one where it has a weight."""
    total = sum(weights)
    if not total:
        return [0] * len(weights)
    exact = [BLOCK * w / total for w in weights]
    quota = [max(1, int(share)) if w else 0 for w, share in zip(weights, exact, strict=True)]
    while missing := BLOCK - sum(quota):
        step = 1 if missing > 0 else -1
        able = [c for c, q in enumerate(quota) if q and q + step]
        quota[max(able, key=lambda c: step * (exact[c] - quota[c]))] += step
    return quota
