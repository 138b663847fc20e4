"""Buffers as the kernels take them: addresses, row strides, learning rates, the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .extension import DTYPES, _core, threads

if TYPE_CHECKING:
    from ..flat import FlatLayout


def run(op: str, like: Tensor, *arguments: Any) -> None:
    """Run an op over buffers like `like`: on a GPU in the current stream, else in the threads of this call."""
    if not like.is_cuda:
        getattr(_core, op)(DTYPES[like.dtype], *sizes(like), threads(), *arguments)
        return
    device = like.device
    with torch.cuda.device(device):
        queue = (device.index, torch.cuda.current_stream(device).cuda_stream)
        getattr(_core, f"cuda_{op}")(DTYPES[like.dtype], *sizes(like), queue, *arguments)


def sizes(x: Tensor) -> tuple[int, int]:
    """Return rows and columns."""
    shape = x.shape
    return (shape[0] if len(shape) == 2 else 1), shape[-1]


def address(x: Tensor | None) -> int:
    """Return the address of a tensor's first element, 0 without a tensor."""
    return 0 if x is None else x.data_ptr()


def matrix(x: Tensor) -> tuple[int, int]:
    """Return address and row stride."""
    return x.data_ptr(), x.stride(0) if x.ndim == 2 else 0


def optional_matrix(x: Tensor | None) -> tuple[int, int] | None:
    """Return address and row stride, None without a buffer."""
    return None if x is None else matrix(x)


def inputs(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Return the tensors with adjacent elements in each row; autograd hands out expanded gradients."""
    return tuple(x if x is None or x.stride(-1) == 1 or x.shape[-1] < 2 else x.contiguous() for x in tensors)


def new_results(like: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return uninitialised contiguous tensors like `like`."""
    return tuple(torch.empty_like(like, memory_format=torch.contiguous_format) for _ in range(count))


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which buffers of `dtype` are computed: bfloat16 is storage alone."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def arithmetic_weights(weights: Tensor | None, like: Tensor) -> Tensor | None:
    """Return task weights in the arithmetic dtype of `like`, contiguous."""
    return None if weights is None else weights.to(arithmetic(like.dtype)).contiguous()


def number(x: float | Tensor, like: Tensor) -> tuple[float | tuple[int], Tensor | None]:
    """Return a number as the kernels take it, and what must outlive the call: a tensor is read when they run."""
    if not isinstance(x, Tensor):
        return float(x), None
    if x.device != like.device:
        return x.item(), None
    x = x.double()
    return (x.data_ptr(),), x


def learning_rate(
    lr: float | Tensor, params: Tensor, layout: FlatLayout | None
) -> tuple[float | tuple[int, int, int, int, int, int], object]:
    """Return the learning rate as the kernels take it, and what must outlive the call."""
    if not isinstance(lr, Tensor):
        return lr, None
    if lr.device != params.device:  # 0-dim, on a CPU
        return lr.item(), None
    rate = lr.to(arithmetic(params.dtype))
    if rate.ndim == 0:
        return (rate.data_ptr(), 0, 0, 0, 0, 1), rate
    row_stride = rate.stride(0) if rate.ndim == 2 and rate.shape[0] > 1 else 0
    if layout is not None:
        ends = layout.segment_ends_on(rate.device)
        return (rate.data_ptr(), row_stride, rate.stride(-1), 0, ends.data_ptr(), ends.numel()), (rate, ends)
    if rate.shape[-1] == 1:
        return (rate.data_ptr(), row_stride, 0, 0, 0, 1), rate
    if rate.stride(-1) != 1:
        rate = rate.contiguous()
        row_stride = rate.stride(0) if row_stride else 0
    return (rate.data_ptr(), row_stride, 0, 1, 0, 1), rate
