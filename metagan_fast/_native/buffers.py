"""Marshalling of kernel arguments: addresses, row strides, learning rates, the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .extension import DTYPES, _core, threads

if TYPE_CHECKING:
    from ..flat import FlatLayout


def run(op: str, like: Tensor, *arguments: Any) -> None:
    """Run an op over buffers of the shape, dtype and device of `like`: in a GPU's current stream, or on CPU threads.

    `arguments` are those of `csrc/ops/launch.h` after the launch, as `metagan_fast/_core.pyi` describes them.
    """
    if not like.is_cuda:
        getattr(_core, op)((DTYPES[like.dtype], *sizes(like), threads()), *arguments)
        return
    device = like.device
    with torch.cuda.device(device):
        queue = (device.index, torch.cuda.current_stream(device).cuda_stream)
        getattr(_core, f"cuda_{op}")((DTYPES[like.dtype], *sizes(like), queue), *arguments)


def sizes(x: Tensor) -> tuple[int, int]:
    """Return the rows and columns of a buffer."""
    shape = x.shape
    return (shape[0] if len(shape) == 2 else 1), shape[-1]


def address(x: Tensor | None) -> int:
    """Return the address of a tensor's first element, 0 without a tensor."""
    return 0 if x is None else x.data_ptr()


def matrix(x: Tensor) -> tuple[int, int]:
    """Return address and row stride in elements."""
    return x.data_ptr(), x.stride(0) if x.ndim == 2 else 0


def optional_matrix(x: Tensor | None) -> tuple[int, int] | None:
    """Return address and row stride in elements, None without a buffer."""
    return None if x is None else matrix(x)


def inputs(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Return the tensors with contiguous rows, copied if need be: autograd passes expanded gradients."""
    return tuple(x if x is None or x.stride(-1) == 1 or x.shape[-1] < 2 else x.contiguous() for x in tensors)


def new_results(like: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return uninitialised contiguous tensors of the shape, dtype and device of `like`."""
    return tuple(torch.empty_like(like, memory_format=torch.contiguous_format) for _ in range(count))


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that buffers of `dtype` are computed in: bfloat16 is a storage dtype only."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def arithmetic_weights(weights: Tensor | None, like: Tensor) -> Tensor | None:
    """Return task weights in the arithmetic dtype of `like`, contiguous."""
    return None if weights is None else weights.to(arithmetic(like.dtype)).contiguous()


def number(x: float | Tensor, like: Tensor) -> tuple[float | tuple[int], Tensor | None]:
    """Return a number as a kernel argument, and the tensor to keep alive until the kernel has read it."""
    if not isinstance(x, Tensor):
        return float(x), None
    if x.device != like.device:
        return x.item(), None
    x = x.double()
    return (x.data_ptr(),), x


def learning_rate(
    lr: float | Tensor, params: Tensor, layout: FlatLayout | None
) -> tuple[float | tuple[int, int, int, int, int, int], object]:
    """Return a learning rate as a kernel argument, and the tensors to keep alive until the kernel has run."""
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
