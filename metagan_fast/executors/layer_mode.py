"""Layers under `torch.func.vmap` whose weights differ from task to task, on kernels of their own.

PyTorch turns a vmapped convolution with batched weights into a grouped one, which its libraries run slowly. It
has no rule for the derivatives of a layer norm, and takes them apart into dozens of launches. While `task_layers` is
active, `F.linear`, `F.conv2d` and `F.layer_norm` with batched weights go to `_ops.task_layers` and
`_ops.task_layer_norm` instead. Layers whose weights all tasks share, convolutions in groups, with padding by name or of
a single image, and everything else stay with PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .._ops import task_layer_norm
from .._ops import task_layers as ops
from .._triton import is_available
from .replacing import ReplacingMode

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


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    if weight is None or not torch._C._functorch.is_batchedtensor(weight):
        return NotImplemented
    shape = tuple(normalized_shape)
    shapes = {input.shape[-len(shape) :], weight.shape, weight.shape if bias is None else bias.shape}
    if shapes != {shape} or 0 in shape:
        return NotImplemented  # PyTorch says what is wrong
    operands = input.reshape(-1, prod(shape)), weight.flatten(), None if bias is None else bias.flatten()
    if torch.is_autocast_enabled(input.device.type):
        operands = _cast(torch.float32, operands)
    elif weight.dtype != input.dtype or (bias is not None and bias.dtype != input.dtype):
        return NotImplemented
    layer = task_layer_norm.LayerNorm(eps)
    return task_layer_norm.run(layer, *_one_task(operands)).view(input.shape)


class _TaskLayers(ReplacingMode):
    replacements: ClassVar = {
        F.linear: _linear,
        F.conv2d: _conv2d,
        F.layer_norm: _layer_norm,
    }


def _run(layer: ops.Layer, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    operands: tuple[Any, ...] = (input, weight, bias)
    device = input.device.type
    if torch.is_autocast_enabled(device):
        operands = _cast(torch.get_autocast_dtype(device), operands)
    return ops.run(layer, *_one_task(operands)).squeeze(0)


def _one_task(operands: Iterable[Tensor | None]) -> Iterator[Any]:
    """Make the operands those of a batch of one task; vmap's rule makes them all of it."""
    return (None if x is None else x.unsqueeze(0) for x in operands)


def _cast(dtype: torch.dtype, operands: Iterable[Tensor | None]) -> tuple[Any, ...]:
    return tuple(None if x is None else x.to(dtype) for x in operands)


def _pair(value: Any) -> tuple[int, int]:
    """Return a setting as (rows, columns)."""
    first, *others = (value, value) if isinstance(value, int) else value
    return first, others[0] if others else first
