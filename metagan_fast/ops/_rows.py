"""Operands of an op's `autograd.Function` as rows, also under vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._op import expand_rate

if TYPE_CHECKING:
    from ..flat import FlatLayout


def as_rows(x: Tensor) -> Tensor:
    """Return a buffer as `[rows, numel]`."""
    return x if x.ndim == 2 else x.unsqueeze(0)


def rate_as_rows(lr: float | Tensor, layout: FlatLayout | None, device: torch.device) -> Tensor:
    """Return a learning rate as `[1 or rows, 1 or numel]`."""
    lr = expand_rate(lr, layout)
    if not isinstance(lr, Tensor):
        return torch.full((1, 1), lr, dtype=torch.float64, device=device)
    return lr.reshape(1, -1) if lr.ndim < 2 else lr


def fold_into_rows(
    apply: Callable[..., tuple[Tensor, ...]],
    batch: int,
    in_dims: tuple[int | None, ...],
    operands: tuple[Any, ...],
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Apply an element-wise op over rows under vmap, the batch folded into the rows.

    The first operand has all rows; others may have one, which every row shares. Operands that are not batched are
    expanded.
    """
    first, dim = operands[0], in_dims[0]
    rows, numel = first.shape if dim is None else first.movedim(dim, 0).shape[1:]

    def fold(x: Any, dim: int | None) -> Any:
        if not isinstance(x, Tensor):
            return x
        x = x.unsqueeze(0) if dim is None else x.movedim(dim, 0)
        return x.expand(batch, rows, x.shape[-1]).reshape(batch * rows, x.shape[-1])

    results = apply(*(fold(x, dim) for x, dim in zip(operands, in_dims, strict=True)))
    return tuple(x.reshape(batch, rows, numel) for x in results), (0,) * len(results)


def zeros_for_none(tangents: tuple[Tensor | None, ...], like: Tensor) -> tuple[Tensor, ...]:
    """Return the tangents of buffers, zeros for None."""
    return tuple(torch.zeros_like(like) if tangent is None else tangent for tangent in tangents)


def sum_over_rate(x: Tensor, lr: Tensor) -> Tensor:
    """Sum `x [rows, numel]` over the dimensions that `lr [1 or rows, 1 or numel]` broadcasts."""
    shared = [dim for dim in (0, 1) if lr.shape[dim] == 1]
    return (x.sum(shared, keepdim=True) if shared else x).to(lr.dtype)
