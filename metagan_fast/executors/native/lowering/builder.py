"""The pieces of a plan in the making; views and permutations are merged on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .types import Operation, Shape


class Unsupported(Exception):
    """Why the layer at hand cannot be expressed; `make_plan` adds its name."""


@dataclass(frozen=True)
class Parameter:
    """A parameter on its way to an operation."""

    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """A buffer or another tensor that is neither a parameter nor made from the input."""

    name: str


@dataclass(frozen=True)
class PermutedView:
    """A value seen through views, reshapes and permutations, which become an operation only where one must.

    Attributes:
        value: the value.
        shape: the shape of one image's part, as PyTorch sees it.
        places: for each element of an image its place in the value, in `shape`; None: as they lie.
    """

    value: int
    shape: tuple[int, ...]
    places: Tensor | None = None

    @classmethod
    def of(cls, value: int, places: Tensor) -> PermutedView:
        """Return a value in the arrangement of `places`."""
        in_order = torch.equal(places.flatten(), torch.arange(places.numel()))
        return cls(value, tuple(places.shape), None if in_order else places)

    @property
    def index(self) -> Tensor:
        """The places, in every case."""
        return torch.arange(math.prod(self.shape)).view(self.shape) if self.places is None else self.places


class Builder:
    """Collect values and operations; converters call its methods."""

    def __init__(self, input_shape: Sequence[int], images: int, dtype: torch.dtype) -> None:
        self.images = images
        self.dtype = dtype
        self.values: list[Shape] = []
        self.operations: list[Operation] = []
        self.name = ""  # of the layer at hand
        self.output_shape: tuple[int, ...] = ()  # of the layer at hand, an image
        self.input = self._new_value(tuple(input_shape))

    def _new_value(self, shape: tuple[int, ...]) -> PermutedView:
        self.values.append(as_value_shape(shape))
        return PermutedView(len(self.values) - 1, shape)

    def emit(
        self,
        kind: str,
        inputs: Sequence[PermutedView],
        *,
        shape: tuple[int, ...] | None = None,
        parameters: Sequence[Parameter | None] = (),
        integers: Sequence[int] = (),
        numbers: Sequence[float] = (),
    ) -> PermutedView:
        """Append an operation and return its result, of the traced shape unless `shape` says otherwise."""
        read = tuple(self.materialize(x).value for x in inputs)
        output = self._new_value(self.output_shape if shape is None else shape)
        offsets = tuple(-1 if p is None else p.offset for p in parameters)
        numbers = tuple(float(number) for number in numbers)
        self.operations.append(
            Operation(kind, read, output.value, offsets, tuple(map(int, integers)), numbers, self.name)
        )
        return output

    def materialize(self, x: PermutedView) -> PermutedView:
        """Return `x` as a value of its own shape, by a permutation if it is not one already."""
        shape = as_value_shape(x.shape)
        if x.places is None and shape == self.values[x.value]:
            return x
        result = self._new_value(x.shape)
        places = () if x.places is None else tuple(x.places.flatten().tolist())
        self.operations.append(Operation("permute", (x.value,), result.value, (), places, (), self.name))
        return result


def as_value_shape(shape: tuple[int, ...]) -> Shape:
    """Return (C, H, W) for one image's part of a tensor.

    Raises:
        Unsupported: it is neither a score, nor features, nor an image.
    """
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if len(shape) <= 1:
        return math.prod(shape), 1, 1
    raise Unsupported(f"it works on tensors {['n', *shape]}; only [n], [n, features] and [n, C, H, W] are known")
