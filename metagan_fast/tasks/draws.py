"""Random choices that depend on (seed, stream, counter) alone.

They use the raw words of NumPy's Philox, which are stable across releases, unlike its Generator.
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Indices = NDArray[np.int64]


class Stream(enum.IntEnum):
    """Purpose of a draw; every purpose has its own words."""

    CLASSES = 0
    IMAGES = 1
    SPLIT = 2


def words(seed: int, stream: Stream, counter: int, shape: tuple[int, ...]) -> Words:
    """Return uniform 64-bit words; the same prefix for any number of them."""
    key, start = np.array([seed, stream], np.uint64), np.array([0, counter, 0, 0], np.uint64)
    return np.random.Philox(key=key, counter=start).random_raw(int(np.prod(shape))).reshape(shape)


def weighted_orders(weights: NDArray[np.float64], drawn: Words) -> Indices:
    """Return for each row of words `[rows, n]` a random order of n items, weighted.

    The items are sorted by exponential variates of rate `weights` (Efraimidis & Spirakis 2006).
    """
    uniform = ((drawn >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53
    return np.argsort(-np.log(uniform) / weights, axis=-1, kind="stable")


def subsets(sizes: Indices, count: int, drawn: Words) -> Indices:
    """Return for each of `[rows]` sizes `count` distinct indices below it, in random order: `[rows, count]`.

    Floyd's algorithm (Bentley & Floyd 1987), vectorised over rows; `drawn` is `[rows, 2, count]`.
    """
    chosen = np.empty((len(sizes), count), np.int64)
    for position in range(count):
        last = sizes - count + position
        index = _below(drawn[:, 0, position], last + 1)
        taken = (chosen[:, :position] == index[:, None]).any(1)
        chosen[:, position] = np.where(taken, last, index)
    return np.take_along_axis(chosen, np.argsort(drawn[:, 1], axis=1, kind="stable"), axis=1)


def _below(drawn: Words, bounds: Indices) -> Indices:
    """Scale words to integers below bounds (at most 2 ** 32)."""
    return ((drawn >> np.uint64(32)) * bounds.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
