"""What the layers with weights of each task's own share: passes with a vmap rule, and the choice of what runs them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ...._triton import is_available


class Layer(Protocol):
    """A kind of layer with its settings.

    Attributes:
        op: the stem of its kernels' module.
        kernel_dtypes: what its kernels take.
    """

    op: str
    kernel_dtypes: frozenset[torch.dtype]

    def settings(self, precision: str) -> dict[str, Any]:
        """Return what its kernels are told beside the operands, for float32 operands as precise as that."""
        ...


class Pass(torch.autograd.Function):
    """One pass of a layer over all tasks; every operand and result has tasks first."""

    @classmethod
    def _fold(cls, info: Any, in_dims: tuple[Any, ...], layer: Layer, *operands: Tensor | None) -> Any:
        """Run a batch of task batches as more tasks."""

        def fold(x: Tensor | None, dim: int | None) -> Tensor | None:
            if x is None:
                return None
            x = x.unsqueeze(0).expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            return x.flatten(0, 1)

        results = cls.apply(layer, *map(fold, operands, in_dims[1:]))
        several = isinstance(results, tuple)
        parted = tuple(x.unflatten(0, (info.batch_size, -1)) for x in (results if several else (results,)))
        return (parted, (0,) * len(parted)) if several else (parted[0], 0)


PLAIN: dict[tuple[str, str], Callable[..., Any]] = {}
"""Each pass in plain PyTorch by op and name, for devices and dtypes that the kernels do not take; each kind of layer
adds its own."""

PRECISIONS = {"highest": "ieee", "high": "tf32", "medium": "bf16"}


def select(layer: Layer, name: str, x: Tensor) -> Callable[..., Any]:
    """Return what runs a pass on the device of `x`."""
    if x.device.type == "cuda" and x.dtype in layer.kernel_dtypes and x.numel() and is_available()[0]:
        return kernel(layer, name, PRECISIONS[torch.get_float32_matmul_precision()])
    return functools.partial(PLAIN[layer.op, name], layer)


def kernel(layer: Layer, name: str, precision: str = "ieee") -> Callable[..., Any]:
    """Return a pass in Triton."""
    function = getattr(importlib.import_module(f"metagan_fast.kernels.layers.{layer.op}"), name)
    return functools.partial(function, **layer.settings(precision))
