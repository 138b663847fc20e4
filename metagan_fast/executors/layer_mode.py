"""Layers under `torch.func.vmap` whose weights differ from task to task, on kernels of their own.

PyTorch turns a vmapped convolution with batched weights into a grouped one, which its libraries run slowly. While
`task_layers` is active, `F.linear` and `F.conv2d` with batched weights go to `_ops.task_layers` instead. Layers whose
weights all tasks share, convolutions in groups, with padding by name or of a single image, and everything else stay
with PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._ops import task_layers as ops
from .._triton import is_available

SETTINGS = ("auto", "on", "off")


def task_layers(device: torch.device) -> AbstractContextManager:
    """Return a context in which layers with weights of each task's own run on kernels made for that.

    METAGAN_FAST_TASK_LAYERS chooses: "auto" (the default), on a GPU where Triton works; "on", everywhere, in plain
    PyTorch where there is no kernel; "off", nowhere. Under torch.compile the layers are PyTorch's.

    Raises:
        ValueError: METAGAN_FAST_TASK_LAYERS is something else.
    """
    setting = os.environ.get("METAGAN_FAST_TASK_LAYERS") or "auto"
    if setting not in SETTINGS:
        raise ValueError(f"METAGAN_FAST_TASK_LAYERS must be auto, on or off, got {setting!r}; correct or unset it")
    if torch.compiler.is_compiling() or setting == "off":
        return nullcontext()
    if setting == "auto" and not (device.type == "cuda" and is_available()[0]):
        return nullcontext()
    return _TaskLayers()


class _TaskLayers(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        replacement = _REPLACEMENTS.get(func)
        result = NotImplemented if replacement is None else replacement(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is NotImplemented else result


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not torch._C._functorch.is_batchedtensor(weight) or weight.ndim != 2 or input.ndim < 2:
        return NotImplemented
    y = _run(ops.Linear(), input.flatten(0, -2), weight, bias)
    return y.unflatten(0, input.shape[:-1])


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if not torch._C._functorch.is_batchedtensor(weight) or groups != 1 or input.ndim != 4 or isinstance(padding, str):
        return NotImplemented
    (height, width), (rows, columns) = input.shape[2:], weight.shape[2:]
    layer = ops.Convolution((height, width), (rows, columns), _pair(stride), _pair(padding), _pair(dilation))
    if input.shape[1] != weight.shape[1] or min(layer.output) < 1:
        return NotImplemented  # PyTorch says what is wrong
    return _run(layer, input, weight, bias)


_REPLACEMENTS: dict[Callable, Callable[..., Any]] = {F.linear: _linear, F.conv2d: _conv2d}


def _run(layer: ops.Layer, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Run a layer as a batch of one task; vmap's rule makes them all of it."""
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    bias = None if bias is None else bias.unsqueeze(0)
    return ops.run(layer, input.unsqueeze(0), weight.unsqueeze(0), bias).squeeze(0)


def _pair(value: Any) -> tuple[int, int]:
    """Return a setting as (rows, columns)."""
    first, *others = (value, value) if isinstance(value, int) else value
    return first, others[0] if others else first
