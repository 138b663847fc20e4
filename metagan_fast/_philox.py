"""A counter-based random number generator: Philox 4x32-10.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

Words depend on key and counter alone, so any device and any slicing give the same words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Key = tuple[int, int] | tuple[Tensor, Tensor]
"""Two 32-bit words, numbers or 0-dim int64 tensors."""


class Grid(NamedTuple):
    """Grid of random words `[outer, inner, tasks, words]`; `role` (below 256) separates the grids of one key.

    A word depends on its indices alone, not on the sizes.
    """

    role: int
    outer: int
    inner: int
    tasks: int
    words: int


def philox(counter: tuple[Any, ...], key: Key) -> tuple[Any, ...]:
    """Encrypt counters by Philox 4x32-10 (section 3.3).

    Args:
        counter: four int64 tensors of one shape, each element a 32-bit word; or four words as numbers.
        key: two 32-bit words.

    Returns:
        Four of the same kind, words uniform and independent.
    """
    # The product of two 32-bit words wraps into int64's sign: its bits are right, and the masks after each shift
    # remove the sign extension.
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & _MASK, (k1 + _KEY_INCREMENTS[1]) & _MASK
    return c0, c1, c2, c3


def derive_key(seed: int, index: int, stream: int) -> Key:
    """Return the key of (seed, index, stream), hashed by Philox: neighbouring seeds and indices are unrelated."""
    k0, k1, _, _ = philox((index & _MASK, index >> 32, stream, 0), (seed & _MASK, seed >> 32))
    return k0, k1


def derive_key_on_device(seed: Tensor, index: Tensor, stream: Tensor) -> Key:
    """Return the key of `derive_key`, computed on the device: `seed` and `index` are [2], low words first."""
    k0, k1, _, _ = philox((index[0], index[1], stream, torch.zeros_like(stream)), (seed[0], seed[1]))
    return k0, k1


def draw_words(grids: Sequence[Grid], key: Key, first_task: int | Tensor, device: torch.device) -> list[Tensor]:
    """Draw the 32-bit words of several grids at once, tasks counted from `first_task`.

    Word e of a task lies in word e % 4 of block e // 4, whose counter is (block, role and inner, outer, task).
    """
    sizes = [(grid.outer, grid.inner, grid.tasks, -(-grid.words // 4)) for grid in grids]
    counters = [_counters(grid.role, size, first_task, device) for grid, size in zip(grids, sizes, strict=True)]
    joined = tuple(torch.cat(column) for column in zip(*counters, strict=True))
    blocks = torch.stack(philox(joined, key), dim=-1)
    parts = blocks.split([math.prod(size) for size in sizes])
    return [
        part.view(*size[:3], 4 * size[3])[..., : grid.words]
        for part, size, grid in zip(parts, sizes, grids, strict=True)
    ]


def _counters(role: int, size: tuple[int, ...], first_task: int | Tensor, device: torch.device) -> list[Tensor]:
    outer, inner, tasks, blocks = (torch.arange(length, dtype=torch.int64, device=device) for length in size)
    axes = torch.meshgrid(outer, inner + (role << 24), tasks + first_task, blocks, indexing="ij")
    return [axes[dimension].reshape(-1) for dimension in (3, 1, 0, 2)]


def uniforms(words: Tensor) -> Tensor:
    """Turn words into float64 uniforms in [0, 1) on a grid of 2**-24, so that they stay below 1 in float32."""
    return (words >> 8).double() * 2.0**-24


def normals(words: Tensor) -> Tensor:
    """Turn an even number of words `[..., n]` into as many float64 standard normals, by Box-Muller."""
    pairs = words.double().unflatten(-1, (-1, 2))
    radius = torch.sqrt(-2.0 * torch.log((pairs[..., 0] + 0.5) * 2.0**-32))
    angle = pairs[..., 1] * (2.0 * math.pi * 2.0**-32)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(-2)
