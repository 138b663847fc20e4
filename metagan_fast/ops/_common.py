"""Helpers of the ops: the route of a call, and operands as rows, also under vmap."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _dispatch

if TYPE_CHECKING:
    from ..flat import FlatLayout


class Route(enum.Enum):
    """Route of a call; see the package's docstring."""

    KERNEL = enum.auto()
    DIFFERENTIABLE = enum.auto()
    TRACED = enum.auto()


def run(
    op: str,
    *tensors: Any,
    out: tuple[Tensor, ...] | None = None,
    differentiable: Callable[..., tuple[Tensor, ...]] | None = None,
    **options: Any,
) -> tuple[Tensor, ...]:
    """Run a checked op by the route that the call needs.

    The first tensor decides device and dtype; a learning rate comes last. With `out` the op works in place:
    the caller has checked that no derivative is wanted. `differentiable` runs the op as an `autograd.Function`
    around the kernel, if it has one.
    """
    way = route(*tensors, *options.values())
    if way is Route.KERNEL:
        results = _dispatch.dispatch(op, *tensors, out=out, **options)
        if out is not None:  # tell autograd, which sees no kernel, that saved tensors have changed
            written = (*out, tensors[1]) if options.get("zero_grads") else out
            torch.autograd.graph.increment_version(written)
        return results
    if way is Route.DIFFERENTIABLE and differentiable is not None:
        if op in _dispatch.CLIPPING:
            differentiable = _dispatch.with_clipping(differentiable, functools.partial(run, "clip_grad_norm"))
        return differentiable(*tensors, **options)
    return _dispatch.PLAIN[op](*tensors, out=out, **options)


def route(*operands: object) -> Route:
    """Return the route of a call over these operands."""
    if is_traced():
        return Route.TRACED
    wanted = in_transform()
    grad_enabled = torch.is_grad_enabled()
    for x in operands:
        if isinstance(x, Tensor):
            if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
                return Route.TRACED
            wanted = wanted or (grad_enabled and x.requires_grad)
    return Route.DIFFERENTIABLE if wanted else Route.KERNEL


def is_traced() -> bool:
    """Return whether torch.compile or another tracer is active."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def in_transform() -> bool:
    """Return whether a `torch.func` transform or a level of forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def as_rows(x: Tensor) -> Tensor:
    """Return a buffer as `[rows, numel]`."""
    return x if x.ndim == 2 else x.unsqueeze(0)


def rate_as_rows(lr: float | Tensor, layout: FlatLayout | None, device: torch.device) -> Tensor:
    """Return a learning rate as `[1 or rows, 1 or numel]`."""
    lr = _dispatch.expand_rate(lr, layout)
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
