"""Override mode that runs layers with batched weights under `torch.func.vmap` on the per-task kernels.

PyTorch turns a vmapped convolution with batched weights into a grouped one, which its libraries run slowly. It has no
batching rule for the derivatives of layer norm, and decomposes them into dozens of launches. While `task_layers` is
active, `F.linear`, `F.conv2d`, `F.conv_transpose2d` and `F.layer_norm` with batched weights run as `task_layers.py`
and `task_layer_norm.py` instead, the first three fused with their activations (`fusion.py`). Groups of a convolution
run as tasks; this copies its input, weights and output, since the images of a group are not adjacent. Layers whose
weights all tasks share, convolutions with padding by name or of an unbatched image, and everything else stay with
PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...._triton import is_available
from ..overrides import FunctionOverrides
from . import task_layer_norm
from . import task_layers as ops
from .fusion import Fusion, LayerCall

SETTINGS = ("auto", "on", "off")


def task_layers(device: torch.device, fusion: Fusion | None = None) -> AbstractContextManager:
    """Return a context in which layers with batched weights run on the per-task kernels.

    METAGAN_FAST_TASK_LAYERS selects: "auto" (the default), on a GPU where Triton works; "on", everywhere, in plain
    PyTorch where there is no kernel; "off", nowhere. Under torch.compile the layers are PyTorch's.

    Args:
        device: where the layers run.
        fusion: fusion state of the one network that runs once inside the context; its layers run fused with their
            activations from the second pass on. Pass the network's output through `fusion.materialized`.

    Raises:
        ValueError: METAGAN_FAST_TASK_LAYERS has another value.
    """
    setting = os.environ.get("METAGAN_FAST_TASK_LAYERS") or "auto"
    if setting not in SETTINGS:
        raise ValueError(f"METAGAN_FAST_TASK_LAYERS must be auto, on or off, got {setting!r}; correct or unset it")
    if torch.compiler.is_compiling() or setting == "off":
        return nullcontext()
    if setting == "auto" and not (device.type == "cuda" and is_available()[0]):
        return nullcontext()
    return _TaskLayers() if fusion is None else _FusedTaskLayers(fusion)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not torch._C._functorch.is_batchedtensor(weight) or weight.ndim != 2 or input.ndim < 2:
        return NotImplemented
    leading = input.shape[:-1]
    return LayerCall(
        ops.Linear(),
        _one_task(_as_autocast(input.flatten(0, -2), weight, bias)),
        lambda y: y.squeeze(0).unflatten(0, leading),
        shape=(*leading, weight.shape[0]),
        dim1_is_output=input.ndim == 2,
    )


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if not torch._C._functorch.is_batchedtensor(weight) or input.ndim != 4 or isinstance(padding, str):
        return NotImplemented
    (height, width), (rows, columns) = input.shape[2:], weight.shape[2:]
    layer = ops.Convolution((height, width), (rows, columns), _pair(stride), _pair(padding), _pair(dilation))
    if input.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups or min(layer.output) < 1:
        return NotImplemented  # PyTorch raises the error
    return _convolution(layer, input, weight, bias, groups, (weight.shape[0], *layer.output))


def _conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    if not torch._C._functorch.is_batchedtensor(weight) or input.ndim != 4:
        return NotImplemented
    kernel = weight.shape[2], weight.shape[3]
    settings = _pair(stride), _pair(padding), _pair(dilation)
    sizes = zip(input.shape[2:], kernel, _pair(output_padding), *settings, strict=True)
    height, width = ((i - 1) * s - 2 * p + d * (k - 1) + extra + 1 for i, k, extra, s, p, d in sizes)
    layer = ops.TransposedConvolution((height, width), kernel, *settings)
    if input.shape[1] != weight.shape[0] or input.shape[1] % groups or min(height, width) < 1:
        return NotImplemented  # PyTorch raises the error
    if layer.output != input.shape[2:]:
        return NotImplemented  # the output padding exceeds the stride
    return _convolution(layer, input, weight, bias, groups, (weight.shape[1] * groups, height, width))


def _convolution(
    layer: ops.Convolution, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int, output: tuple[int, ...]
) -> LayerCall:
    operands = _as_autocast(input, weight, bias)
    shape = (input.shape[0], *output)
    if groups == 1:
        return LayerCall(layer, _one_task(operands), lambda y: y.squeeze(0), shape)
    x, w, b = operands
    as_tasks = (
        x.unflatten(1, (groups, -1)).movedim(1, 0),
        w.unflatten(0, (groups, -1)),
        None if b is None else b.unflatten(0, (groups, -1)),
    )
    return LayerCall(layer, as_tasks, lambda y: y.movedim(0, 1).flatten(1, 2), shape)


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
        return NotImplemented  # PyTorch raises the error
    operands = input.reshape(-1, prod(shape)), weight.flatten(), None if bias is None else bias.flatten()
    if torch.is_autocast_enabled(input.device.type):
        operands = _cast(torch.float32, operands)
    elif weight.dtype != input.dtype or (bias is not None and bias.dtype != input.dtype):
        return NotImplemented
    layer = task_layer_norm.LayerNorm(eps)
    return task_layer_norm.run(layer, *_one_task(operands)).view(input.shape)


class _TaskLayers(FunctionOverrides):
    """Overrides PyTorch's layers by the per-task ones."""

    overrides: ClassVar = {
        F.linear: _linear,
        F.conv2d: _conv2d,
        F.conv_transpose2d: _conv_transpose2d,
        F.layer_norm: _layer_norm,
    }

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        return self._run(result) if isinstance(result, LayerCall) else result

    def _run(self, call: LayerCall) -> Tensor:
        return call.run()


class _FusedTaskLayers(_TaskLayers):
    """Also fuses layers with their activations, over one pass of a network."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self._pass = fusion.begin_pass()

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = self._pass.intercept(func, args, kwargs or {})
        return super().__torch_function__(func, types, args, kwargs) if result is NotImplemented else result

    def _run(self, call: LayerCall) -> Tensor:
        return self._pass.layer(call)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if error[0] is None:
            self._pass.end()


def _as_autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the operands in autocast's dtype for products if autocast is enabled, else unchanged."""
    device = input.device.type
    if torch.is_autocast_enabled(device):
        return _cast(torch.get_autocast_dtype(device), (input, weight, bias))
    return input, weight, bias


def _one_task(operands: Iterable[Tensor | None]) -> tuple[Any, ...]:
    """Prepend a task dimension of 1; the vmap rule folds the batch into it."""
    return tuple(None if x is None else x.unsqueeze(0) for x in operands)


def _cast(dtype: torch.dtype, operands: Iterable[Tensor | None]) -> tuple[Any, ...]:
    return tuple(None if x is None else x.to(dtype) for x in operands)


def _pair(value: Any) -> tuple[int, int]:
    """Return a setting as (rows, columns)."""
    first, *others = (value, value) if isinstance(value, int) else value
    return first, others[0] if others else first
