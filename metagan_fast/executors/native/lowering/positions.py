"""Sparse matrices of layers that map positions linearly, alike in each channel: pooling, interpolation, padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 64  # unit images a call; bounds the memory for large images
_NOISE = 1e-12  # smaller weights are rounding errors


class PositionMap(NamedTuple):
    """CSR matrix over positions y * W + x: output position i reads columns[offsets[i] : offsets[i + 1]]."""

    height: int
    width: int
    offsets: tuple[int, ...]
    columns: tuple[int, ...]
    weights: tuple[float, ...]

    def apply(self, images: Tensor) -> Tensor:
        """Map `[..., H, W]` to `[..., height, width]`."""
        flat = images.flatten(-2)
        counts = torch.tensor(self.offsets).diff()
        rows = torch.arange(len(counts)).repeat_interleave(counts)
        terms = flat[..., torch.tensor(self.columns, dtype=torch.long)] * torch.tensor(self.weights, dtype=flat.dtype)
        out = flat.new_zeros((*flat.shape[:-1], len(counts))).index_add(-1, rows, terms)
        return out.unflatten(-1, (self.height, self.width))


def position_map(function: Callable[[Tensor], Tensor], height: int, width: int) -> PositionMap | None:
    """Return the matrix of a function of images `[n, 1, H, W]`, or None if it is not a separable linear map.

    Pooling and interpolation are Kronecker products of a map along rows and one along columns, so H + W probes
    determine the matrix: images that are 1 along one row, or along one column. The result is checked on random images.
    """
    images = torch.zeros(2, 1, height, width, dtype=torch.float64)
    images[1] = 1
    zeros, ones = function(images)[:, 0]
    if zeros.any():
        return None
    position = int(ones.abs().argmax())
    row, column = divmod(position, ones.shape[1])
    scale = ones[row, column]
    if scale == 0:
        return None
    by_row = _responses(function, torch.eye(height, dtype=torch.float64)[:, None, :, None].expand(-1, 1, -1, width))
    by_column = _responses(function, torch.eye(width, dtype=torch.float64)[:, None, None, :].expand(-1, 1, height, -1))
    result = _product(by_row[:, :, column], by_column[:, row, :] / scale)
    sample = torch.rand(3, 1, height, width, dtype=torch.float64)
    expected = function(sample)
    found = result.apply(sample)
    fits = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    return result if fits else None


def _responses(function: Callable[[Tensor], Tensor], units: Tensor) -> Tensor:
    return torch.cat([function(part.contiguous())[:, 0] for part in units.split(_CHUNK)])


def _product(rows: Tensor, columns: Tensor) -> PositionMap:
    """Return the Kronecker product of matrices [H, height] and [W, width], indexed (input, output)."""
    width_in, (height, width) = columns.shape[0], (rows.shape[1], columns.shape[1])
    y_out, y = (rows.T.abs() > _NOISE).nonzero(as_tuple=True)
    x_out, x = (columns.T.abs() > _NOISE).nonzero(as_tuple=True)
    out = (y_out[:, None] * width + x_out).flatten()
    column = (y[:, None] * width_in + x).flatten()
    weight = (rows[y, y_out][:, None] * columns[x, x_out]).flatten()
    order = torch.argsort(out, stable=True)
    offsets = torch.bincount(out, minlength=height * width).cumsum(0)
    return PositionMap(
        height, width, (0, *offsets.tolist()), tuple(column[order].tolist()), tuple(weight[order].tolist())
    )
