"""What the engine knows of tensors themselves: sums and means, rearrangements, arithmetic, concatenation."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .builder import Builder, PermutedView
from .registry import Converter, Converters, as_tensor, refuse_unless

TENSORS = Converters()


# Sums and means


def _reduces(mean: bool) -> Converter:
    def convert(
        b: Builder, input: PermutedView, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
    ) -> PermutedView:
        x = as_tensor(input).index
        dims = [dim] if isinstance(dim, int) else list(dim or ())
        dims = sorted(d % (x.ndim + 1) - 1 for d in dims)
        refuse_unless(bool(dims) and dims[0] >= 0, "it mixes the images of a batch")
        count = math.prod(x.shape[d] for d in dims)
        kept = x.movedim(dims, list(range(x.ndim - len(dims), x.ndim))).reshape(-1, count)
        value = b.values[input.value]
        source = PermutedView.of(input.value, kept.unsqueeze(-1))
        if source.places is None and len(kept) == value[0]:
            source = PermutedView(input.value, value)
        weight = 1 / count if mean else 1.0
        integers = (0, count, *range(count))
        result = b.emit("resample", [source], shape=(len(kept), 1, 1), integers=integers, numbers=[weight] * count)
        return PermutedView(result.value, b.output_shape)

    return convert


TENSORS.enter(_reduces(mean=True), torch.mean, "mean")
TENSORS.enter(_reduces(mean=False), torch.sum, "sum")


# Rearrangements


def _rearranges(function: Callable[..., Tensor]) -> Converter:
    """Convert by doing the same to the places of the elements."""

    def convert(b: Builder, input: PermutedView, *args: Any, **kwargs: Any) -> PermutedView:
        x = as_tensor(input).index
        images = torch.arange(b.images, dtype=torch.float64).view(-1, *[1] * x.ndim)
        places = function(x + images * x.numel(), *args, **kwargs)
        first = places[0]
        same = places.shape[1:] == b.output_shape and torch.equal(
            places, first + images.view(-1, *[1] * first.ndim) * x.numel()
        )
        refuse_unless(same, "it mixes the images of a batch")
        complete = torch.equal(first.flatten().sort().values, torch.arange(x.numel(), dtype=first.dtype))
        refuse_unless(complete, "it keeps only some elements, or repeats them")
        return PermutedView.of(input.value, first.long())

    return convert


_BOTH = ("reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "squeeze", "unsqueeze")
for _name in (*_BOTH, "movedim", "flip", "roll", "clone"):
    TENSORS.enter(_rearranges(getattr(torch, _name)), getattr(torch, _name))
    TENSORS.enter(_rearranges(getattr(Tensor, _name)), _name)
for _name in ("view", "contiguous"):  # where a view is possible, it is what reshape returns
    TENSORS.enter(_rearranges(getattr(Tensor, "reshape" if _name == "view" else _name)), _name)
for _rearrangement in (F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, operator.getitem):
    TENSORS.enter(_rearranges(_rearrangement), _rearrangement)


@TENSORS.converts("view_as", "reshape_as")
def _view_as(b: Builder, input: PermutedView, other: PermutedView) -> PermutedView:
    return _rearranges(Tensor.reshape)(b, input, (-1, *b.output_shape))


@TENSORS.converts("to", "float", "type_as", "double")
def _to(b: Builder, input: PermutedView, *args: Any, **kwargs: Any) -> PermutedView:
    return input


# Several inputs


def _combine(b: Builder, terms: Sequence[tuple[PermutedView, float]], constant: float = 0.0) -> PermutedView:
    same = all(x.shape == b.output_shape for x, _ in terms)
    refuse_unless(
        same, f"it combines tensors of different shapes, {' and '.join(str(['n', *x.shape]) for x, _ in terms)}"
    )
    return b.emit("combine", [x for x, _ in terms], numbers=[*(factor for _, factor in terms), constant])


def _sum(b: Builder, x: Any, y: Any, of_x: float, of_y: float) -> PermutedView:
    """Return of_x * x + of_y * y, either of which may be a number."""
    terms = [(v, f) for v, f in ((x, of_x), (y, of_y)) if isinstance(v, PermutedView)]
    numbers = [v * f for v, f in ((x, of_x), (y, of_y)) if isinstance(v, int | float)]
    refuse_unless(len(terms) + len(numbers) == 2, "it adds a parameter or a constant tensor")
    return _combine(b, terms, sum(numbers))


TENSORS.enter(
    lambda b, input, other, *, alpha=1: _sum(b, input, other, 1.0, alpha),
    operator.add,
    operator.iadd,
    torch.add,
    "add",
    "add_",
)
TENSORS.enter(
    lambda b, input, other, *, alpha=1: _sum(b, input, other, 1.0, -alpha),
    operator.sub,
    torch.sub,
    torch.subtract,
    "sub",
    "sub_",
)
TENSORS.enter(lambda b, input, other, *, alpha=1: _sum(b, input, other, -alpha, 1.0), torch.rsub, "rsub")
TENSORS.enter(lambda b, input: _combine(b, [(as_tensor(input), -1.0)]), operator.neg, torch.neg, torch.negative, "neg")


@TENSORS.converts(operator.mul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
def _times(b: Builder, input: Any, other: Any) -> PermutedView:
    if isinstance(input, int | float):
        input, other = other, input
    refuse_unless(isinstance(other, int | float), "it multiplies two tensors")
    return _combine(b, [(as_tensor(input), other)])


@TENSORS.converts(operator.truediv, torch.div, torch.divide, torch.true_divide, "div", "div_", "divide", "true_divide")
def _divide(b: Builder, input: Any, other: Any) -> PermutedView:
    refuse_unless(isinstance(other, int | float), "it divides by a tensor")
    return _combine(b, [(as_tensor(input), 1 / other)])


@TENSORS.converts(torch.cat, torch.concat, torch.concatenate)
def _concatenate(b: Builder, tensors: Sequence[PermutedView], dim: int = 0) -> PermutedView:
    for x in tensors:
        as_tensor(x)
    axis = dim % (len(b.output_shape) + 1) - 1
    refuse_unless(axis >= 0, "it mixes the images of a batch")
    inputs = [PermutedView.of(x.value, x.index.movedim(axis, 0)) if axis else x for x in tensors]
    shape = list(b.output_shape)
    moved = (shape.pop(axis), *shape)
    result = b.emit("concatenate", inputs, shape=moved)
    return PermutedView.of(result.value, result.index.movedim(0, axis)) if axis else result
