"""Lowering rules of tensor functions: sums and means, rearrangements, arithmetic, concatenation."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .builder import Builder, PermutedView
from .registry import LoweringRule, LoweringRules, as_tensor, require
from .types import CombinePlan, ConcatenatePlan, ResamplePlan

TENSORS = LoweringRules()
"""Rules of tensor methods, operators and functions."""


# Sums and means


def _reduction_rule(mean: bool) -> LoweringRule:
    def lower(
        b: Builder, input: PermutedView, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
    ) -> PermutedView:
        x = as_tensor(input).all_indices
        dims = [dim] if isinstance(dim, int) else list(dim or ())
        dims = sorted(d % (x.ndim + 1) - 1 for d in dims)
        require(bool(dims) and dims[0] >= 0, "it mixes the images of a batch")
        count = math.prod(x.shape[d] for d in dims)
        kept = x.movedim(dims, list(range(x.ndim - len(dims), x.ndim))).reshape(-1, count)
        value = b.values[input.value]
        source = PermutedView.of(input.value, kept.unsqueeze(-1))
        if source.indices is None and len(kept) == value[0]:
            source = PermutedView(input.value, value)
        weight = 1 / count if mean else 1.0
        plan = ResamplePlan((0, count), tuple(range(count)), (weight,) * count)
        result = b.emit(plan, [source], shape=(len(kept), 1, 1))
        return PermutedView(result.value, b.output_shape)

    return lower


TENSORS.register(_reduction_rule(mean=True), torch.mean, "mean")
TENSORS.register(_reduction_rule(mean=False), torch.sum, "sum")


# Rearrangements


def _rearrangement_rule(function: Callable[..., Tensor]) -> LoweringRule:
    """Return the rule for a function that moves elements: it is applied to their indices."""

    def lower(b: Builder, input: PermutedView, *args: Any, **kwargs: Any) -> PermutedView:
        x = as_tensor(input).all_indices
        images = torch.arange(b.images, dtype=torch.float64).view(-1, *[1] * x.ndim)
        moved = function(x + images * x.numel(), *args, **kwargs)
        first = moved[0]
        same = moved.shape[1:] == b.output_shape and torch.equal(
            moved, first + images.view(-1, *[1] * first.ndim) * x.numel()
        )
        require(same, "it mixes the images of a batch")
        complete = torch.equal(first.flatten().sort().values, torch.arange(x.numel(), dtype=first.dtype))
        require(complete, "it keeps only some elements, or repeats them")
        return PermutedView.of(input.value, first.long())

    return lower


_BOTH = ("reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "squeeze", "unsqueeze")
for _name in (*_BOTH, "movedim", "flip", "roll", "clone"):
    TENSORS.register(_rearrangement_rule(getattr(torch, _name)), getattr(torch, _name))
    TENSORS.register(_rearrangement_rule(getattr(Tensor, _name)), _name)
for _name in ("view", "contiguous"):  # a view equals a reshape wherever it is possible
    TENSORS.register(_rearrangement_rule(getattr(Tensor, "reshape" if _name == "view" else _name)), _name)
for _rearrangement in (F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, operator.getitem):
    TENSORS.register(_rearrangement_rule(_rearrangement), _rearrangement)


@TENSORS.lowers("view_as", "reshape_as")
def _view_as(b: Builder, input: PermutedView, other: PermutedView) -> PermutedView:
    return _rearrangement_rule(Tensor.reshape)(b, input, (-1, *b.output_shape))


@TENSORS.lowers("to", "float", "type_as", "double")
def _to(b: Builder, input: PermutedView, *args: Any, **kwargs: Any) -> PermutedView:
    return input


# Several inputs


def _combine(b: Builder, terms: Sequence[tuple[PermutedView, float]], constant: float = 0.0) -> PermutedView:
    same = all(x.shape == b.output_shape for x, _ in terms)
    require(same, f"it combines tensors of different shapes, {' and '.join(str(['n', *x.shape]) for x, _ in terms)}")
    return b.emit(CombinePlan(tuple(float(factor) for _, factor in terms), float(constant)), [x for x, _ in terms])


def _sum(b: Builder, x: Any, y: Any, of_x: float, of_y: float) -> PermutedView:
    """Return of_x * x + of_y * y, either of which may be a number."""
    terms = [(v, f) for v, f in ((x, of_x), (y, of_y)) if isinstance(v, PermutedView)]
    numbers = [v * f for v, f in ((x, of_x), (y, of_y)) if isinstance(v, int | float)]
    require(len(terms) + len(numbers) == 2, "it adds a parameter or a constant tensor")
    return _combine(b, terms, sum(numbers))


TENSORS.register(
    lambda b, input, other, *, alpha=1: _sum(b, input, other, 1.0, alpha),
    operator.add,
    operator.iadd,
    torch.add,
    "add",
    "add_",
)
TENSORS.register(
    lambda b, input, other, *, alpha=1: _sum(b, input, other, 1.0, -alpha),
    operator.sub,
    torch.sub,
    torch.subtract,
    "sub",
    "sub_",
)
TENSORS.register(lambda b, input, other, *, alpha=1: _sum(b, input, other, -alpha, 1.0), torch.rsub, "rsub")
TENSORS.register(
    lambda b, input: _combine(b, [(as_tensor(input), -1.0)]), operator.neg, torch.neg, torch.negative, "neg"
)


@TENSORS.lowers(operator.mul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
def _times(b: Builder, input: Any, other: Any) -> PermutedView:
    if isinstance(input, int | float):
        input, other = other, input
    require(isinstance(other, int | float), "it multiplies two tensors")
    return _combine(b, [(as_tensor(input), other)])


@TENSORS.lowers(operator.truediv, torch.div, torch.divide, torch.true_divide, "div", "div_", "divide", "true_divide")
def _divide(b: Builder, input: Any, other: Any) -> PermutedView:
    require(isinstance(other, int | float), "it divides by a tensor")
    return _combine(b, [(as_tensor(input), 1 / other)])


@TENSORS.lowers(torch.cat, torch.concat, torch.concatenate)
def _concatenate(b: Builder, tensors: Sequence[PermutedView], dim: int = 0) -> PermutedView:
    for x in tensors:
        as_tensor(x)
    axis = dim % (len(b.output_shape) + 1) - 1
    require(axis >= 0, "it mixes the images of a batch")
    inputs = [PermutedView.of(x.value, x.all_indices.movedim(axis, 0)) if axis else x for x in tensors]
    shape = list(b.output_shape)
    moved = (shape.pop(axis), *shape)
    result = b.emit(ConcatenatePlan(), inputs, shape=moved)
    return PermutedView.of(result.value, result.all_indices.movedim(0, axis)) if axis else result
