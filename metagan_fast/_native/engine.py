"""What the engine of `csrc/engine` is made of and called with."""

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
    """Return an engine for two networks.

    Raises:
        ValueError: what it cannot run, and why.
    """
    return _core.Engine(generator, discriminator, loss, inner, precision)


class EngineCall:
    """The arguments of one call of the engine: numbers, addresses, and the tensors that must outlive it."""

    def __init__(self, **numbers: Any) -> None:
        self.arguments: dict[str, Any] = dict(numbers)
        self._alive: list[Tensor] = []

    def read(self, name: str, tensor: Tensor | None, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        """Pass a tensor that is read, or that there is none.

        Raises:
            ValueError: its shape, dtype or device is another.
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
        """Pass a new float32 tensor that is written, and return it."""
        tensor = torch.empty(shape, dtype=torch.float32)
        self.arguments[name] = self._address(tensor)
        return tensor

    def update(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Pass contiguous float32 tensors that are read and written."""
        self.arguments[name] = tuple(self._address(tensor) for tensor in tensors)

    def _address(self, tensor: Tensor) -> int:
        self._alive.append(tensor)
        return tensor.data_ptr()
