"""Base of the per-task layers: passes with a vmap rule, dispatched to Triton kernels or plain PyTorch."""

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


PLAIN: dict[tuple[str, str], Callable[..., Any]] = {}
"""Passes in plain PyTorch by op and name, for devices and dtypes without kernels; each layer's module adds its own."""

PRECISIONS = {"highest": "ieee", "high": "tf32", "medium": "bf16"}


def select(layer: Layer, name: str, x: Tensor) -> Callable[..., Any]:
    """Return the implementation of a pass for the device and dtype of `x`."""
    if x.device.type == "cuda" and x.dtype in layer.kernel_dtypes and x.numel() and is_available()[0]:
        return kernel(layer, name, PRECISIONS[torch.get_float32_matmul_precision()])
    return functools.partial(PLAIN[layer.op, name], layer)


def kernel(layer: Layer, name: str, precision: str = "ieee") -> Callable[..., Any]:
    """Return the Triton implementation of a pass."""
    function = getattr(importlib.import_module(f"metagan_fast.kernels.layers.{layer.op}"), name)
    return functools.partial(function, **layer.settings(precision))
