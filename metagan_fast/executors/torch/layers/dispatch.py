"""Dispatch of the passes of per-task layers: a row a backend, read from the top; the first that fits runs."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...._triton import is_available
from .task_passes import Layer

PassFunction = Callable[..., Any]

PLAIN: dict[tuple[str, str], PassFunction] = {}
"""Passes in plain PyTorch by op and name."""

PRECISIONS = {"highest": "ieee", "high": "tf32", "medium": "bf16"}


@dataclass(frozen=True)
class Backend:
    """Row of the table: `fits(layer, x)` tells whether it runs a pass over `x`, `function(layer, name)` returns it."""

    name: str
    fits: Callable[[Layer, Tensor], bool]
    function: Callable[[Layer, str], PassFunction]


def select(layer: Layer, name: str, x: Tensor) -> PassFunction:
    """Return a pass on the first backend that fits the device and dtype of `x`."""
    for row in BACKENDS:
        if row.fits(layer, x):
            return row.function(layer, name)
    raise RuntimeError(f"{layer.op}: no backend runs {name} in {x.dtype} on {x.device}")  # the last row fits all


def define_plain(op: str, **passes: PassFunction) -> None:
    """Define the passes of a layer in plain PyTorch, by name; their first argument is the layer."""
    PLAIN.update({(op, name): function for name, function in passes.items()})


def kernel(layer: Layer, name: str, precision: str = "ieee") -> PassFunction:
    """Return the Triton kernel of a pass; `precision` applies to products of float32 operands."""
    function = getattr(importlib.import_module(f"metagan_fast.kernels.layers.{layer.op}"), name)
    return functools.partial(function, **layer.settings(precision))


def _has_kernel(layer: Layer, x: Tensor) -> bool:
    return x.device.type == "cuda" and x.dtype in layer.kernel_dtypes and bool(x.numel()) and is_available()[0]


def _kernel_in_precision(layer: Layer, name: str) -> PassFunction:
    return kernel(layer, name, PRECISIONS[torch.get_float32_matmul_precision()])


def _plain(layer: Layer, name: str) -> PassFunction:
    return functools.partial(PLAIN[layer.op, name], layer)


BACKENDS = (
    Backend("triton", _has_kernel, _kernel_in_precision),
    Backend("plain", lambda layer, x: True, _plain),
)
