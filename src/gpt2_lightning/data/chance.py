"""Chance: whole numbers in, a 64-bit number or a permutation out that depends on them alone.

One number: 64, the bits of a key; splitmix64's finaliser (Steele, Lea and Flood 2014) mixes each part into it.
Choice not taken: numpy's generators, whose streams may change between its versions; what has to be found again after years,
the order of the documents, comes from here.
"""

import numpy as np

__all__ = ["keyed_hash", "keyed_permutation"]

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def keyed_hash(*parts: int, state: int = 0) -> int:
    """64 uniform bits that depend on every part and on their order; ``state`` is the hash of the parts that came before."""
    for part in parts:
        state = (state ^ part) + GOLDEN & MASK
        state = (state ^ state >> 30) * FIRST & MASK
        state = (state ^ state >> 27) * SECOND & MASK
        state ^= state >> 31
    return state


def keyed_permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of 0 to n - 1, int64 ``[n]``: the places of n hashed numbers in their order."""
    state = np.uint64(keyed_hash(*key)) ^ np.arange(n, dtype=np.uint64)
    state += np.uint64(GOLDEN)
    state = (state ^ state >> np.uint64(30)) * np.uint64(FIRST)
    state = (state ^ state >> np.uint64(27)) * np.uint64(SECOND)
    return np.argsort(state ^ state >> np.uint64(31), kind="stable")
