"""Builder of a plan; consecutive views and permutations are merged into one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .types import OperationPlan, PermutePlan, Settings, Shape


class Unsupported(Exception):
    """Reason why a layer cannot be lowered; `make_plan` adds the layer's name."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of the network: its offset in the flat buffer, and its shape where it is used."""

    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """A tensor that is neither a parameter nor depends on the input, such as a buffer."""

    name: str


@dataclass(frozen=True)
class PermutedView:
    """A value behind views, reshapes and permutations; a "permute" is emitted only where an operation needs one.

    Attributes:
        value: index of the value in the plan.
        shape: PyTorch's shape of one image's slice.
        indices: index in the value of each element, of shape `shape`; None for the identity.
    """

    value: int
    shape: tuple[int, ...]
    indices: Tensor | None = None

    @classmethod
    def of(cls, value: int, indices: Tensor) -> PermutedView:
        """Return the view of a value that gathers `indices`."""
        in_order = torch.equal(indices.flatten(), torch.arange(indices.numel()))
        return cls(value, tuple(indices.shape), None if in_order else indices)

    @property
    def all_indices(self) -> Tensor:
        """The indices, also for the identity."""
        return torch.arange(math.prod(self.shape)).view(self.shape) if self.indices is None else self.indices


class Builder:
    """Values and operations collected by the lowering rules."""

    def __init__(self, input_shape: Sequence[int], images: int, dtype: torch.dtype) -> None:
        self.images = images
        self.dtype = dtype
        self.values: list[Shape] = []
        self.operations: list[OperationPlan] = []
        self.name = ""  # of the layer being lowered
        self.output_shape: tuple[int, ...] = ()  # of the layer being lowered, for one image
        self.input = self._new_value(tuple(input_shape))

    def _new_value(self, shape: tuple[int, ...]) -> PermutedView:
        self.values.append(as_value_shape(shape))
        return PermutedView(len(self.values) - 1, shape)

    def emit(
        self, settings: Settings, inputs: Sequence[PermutedView], shape: tuple[int, ...] | None = None
    ) -> PermutedView:
        """Append an operation and return its output, of the traced shape unless `shape` is given."""
        read = tuple(self.materialize(x).value for x in inputs)
        return self._append(settings, read, self.output_shape if shape is None else shape)

    def materialize(self, x: PermutedView) -> PermutedView:
        """Return `x` as a contiguous value of its own shape, by a "permute" if it is not one already."""
        shape = as_value_shape(x.shape)
        if x.indices is None and shape == self.values[x.value]:
            return x
        order = () if x.indices is None else tuple(x.indices.flatten().tolist())
        return self._append(PermutePlan(order), (x.value,), x.shape)

    def _append(self, settings: Settings, inputs: tuple[int, ...], shape: tuple[int, ...]) -> PermutedView:
        output = self._new_value(shape)
        self.operations.append(OperationPlan(self.name, inputs, output.value, settings))
        return output


def as_value_shape(shape: tuple[int, ...]) -> Shape:
    """Return (C, H, W) for one image's slice of a tensor.

    Raises:
        Unsupported: the slice is neither a score, nor features, nor an image.
    """
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if len(shape) <= 1:
        return math.prod(shape), 1, 1
    raise Unsupported(f"it works on tensors {['n', *shape]}; only [n], [n, features] and [n, C, H, W] are supported")
