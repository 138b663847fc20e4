"""Construction of the engine in `csrc/engine`, and the arguments of its calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .extension import _core


def make_engine(
    generator: dict[str, Any],
    discriminator: dict[str, Any],
    loss: dict[str, Any],
    inner: dict[str, Any],
    precision: str,
) -> _core.Engine:
    """Return an engine for a generator and a discriminator; `_core.Engine` describes the arguments.

    Raises:
        ValueError: the engine does not support an operation or a setting; the message names it.
    """
    return _core.Engine(generator, discriminator, loss, inner, precision)


class EngineCall:
    """Arguments of one call of the engine: numbers and addresses; keeps the tensors alive."""

    def __init__(self, **numbers: Any) -> None:
        self.arguments: dict[str, Any] = dict(numbers)
        self._alive: list[Tensor] = []

    def read(self, name: str, tensor: Tensor | None, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        """Pass an input tensor, or None for an absent one.

        Raises:
            ValueError: the tensor has another shape or dtype, or is not on a CPU.
        """
        self.arguments[name] = 0
        if tensor is None:
            return
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or not tensor.is_cpu:
            raise ValueError(
                f"expected {name} to be {dtype} {list(shape)} on a CPU, got {tensor.dtype} {list(tensor.shape)} on "
                f"{tensor.device}"
            )
        self.arguments[name] = self._address(tensor.detach().contiguous())

    def write(self, name: str, *shape: int) -> Tensor:
        """Pass a new float32 output tensor, and return it."""
        tensor = torch.empty(shape, dtype=torch.float32)
        self.arguments[name] = self._address(tensor)
        return tensor

    def go_on(self, name: str, tensor: Tensor) -> None:
        """Pass a contiguous float32 tensor that the call reads and writes."""
        self.arguments[name] = self._address(tensor)

    def update(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Pass contiguous float32 tensors that are updated in place."""
        self.arguments[name] = tuple(self._address(tensor) for tensor in tensors)

    def _address(self, tensor: Tensor) -> int:
        self._alive.append(tensor)
        return tensor.data_ptr()
