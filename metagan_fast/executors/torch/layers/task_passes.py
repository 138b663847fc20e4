"""Base of the per-task layers: the protocol of a layer, and passes with a vmap rule."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Layer(Protocol):
    """A kind of layer with its settings.

    Attributes:
        op: stem of the module with its kernels.
        kernel_dtypes: dtypes that its kernels support.
    """

    op: str
    kernel_dtypes: frozenset[torch.dtype]

    def settings(self, precision: str) -> dict[str, Any]:
        """Return the kernels' keyword arguments besides the operands; `precision` applies to float32 products."""
        ...


class Pass(torch.autograd.Function):
    """A pass of a layer over all tasks; every operand and result has tasks first."""

    @classmethod
    def _fold(cls, info: Any, in_dims: tuple[Any, ...], layer: Layer, *operands: Tensor | None) -> Any:
        """Run under vmap: fold the batch dimension into the tasks."""

        def fold(x: Tensor | None, dim: int | None) -> Tensor | None:
            if x is None:
                return None
            x = x.unsqueeze(0).expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            return x.flatten(0, 1)

        results = cls.apply(layer, *map(fold, operands, in_dims[1:]))
        several = isinstance(results, tuple)
        parted = tuple(x.unflatten(0, (info.batch_size, -1)) for x in (results if several else (results,)))
        return (parted, (0,) * len(parted)) if several else (parted[0], 0)
