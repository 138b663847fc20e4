"""Launching of the update kernels: buffers with row strides, forms of learning rates, grid sizes.

Nothing here synchronises with the GPU, so a call can be captured in a CUDA graph once its kernel is compiled.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from metagan_fast._native.buffers import sizes
from metagan_fast.flat import ALIGNMENT, FlatLayout

BLOCK = 1024  # elements a program: 8 a thread (docs/tuning.md#gpu-update-blocks)
THREADS = 128


class LearningRate(NamedTuple):
    """Arguments of `blocks.rate_at` for a learning rate, and its form."""

    value: float
    rates: Tensor | None
    row_stride: int
    segments: Tensor | None
    segment_stride: int
    form: str

    @classmethod
    def of(cls, lr: float | Tensor, layout: FlatLayout | None = None) -> LearningRate:
        """Return the arguments for a validated learning rate."""
        if not isinstance(lr, Tensor):
            return cls(float(lr), None, 0, None, 0, "number")
        if lr.ndim == 0:
            return cls(0.0, lr, 0, None, 0, "row")
        row_stride = lr.stride(0) if lr.ndim == 2 and lr.shape[0] > 1 else 0
        if layout is not None:
            return cls(0.0, lr, row_stride, _segments(layout, lr.device), lr.stride(-1), "segment")
        if lr.shape[-1] == 1:
            return cls(0.0, lr, row_stride, None, 0, "row")
        if lr.stride(-1) != 1:
            lr = lr.contiguous()
            row_stride = lr.stride(0) if row_stride else 0
        return cls(0.0, lr, row_stride, None, 0, "element")

    @property
    def operands(self) -> tuple[Any, ...]:
        """The kernel's arguments `lr, rates, rates_stride, segments, segment_stride`."""
        return self[:5]


def learning_rate(lr: float | Tensor, like: Tensor, layout: FlatLayout | None = None) -> LearningRate:
    """Return a learning rate for buffers on the device of `like`; a 0-dim tensor may be on the CPU."""
    if isinstance(lr, Tensor) and lr.device != like.device:
        lr = float(lr)
    return LearningRate.of(lr, layout)


def matrices(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Return each buffer followed by its row stride in elements."""
    return tuple(
        x for tensor in tensors for x in (tensor, tensor.stride(0) if tensor is not None and tensor.ndim == 2 else 0)
    )


def tasks(adapted: Tensor, weights: Tensor | None) -> tuple[Any, ...]:
    """Return the kernel arguments `adapted, adapted_stride, tasks, weights`."""
    return *matrices(adapted), adapted.shape[0], None if weights is None else weights.contiguous()


def arithmetic(like: Tensor) -> Any:
    """Return the arithmetic dtype as a Triton type."""
    return tl.float64 if like.dtype == torch.float64 else tl.float32


def blocks_of(x: Tensor) -> int:
    """Return the number of programs that cover a buffer."""
    rows, columns = sizes(x)
    return rows * -(-columns // BLOCK)


def launch(kernel: Any, programs: int, like: Tensor, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the device of `like`, in its current stream."""
    if programs == 0:
        return
    with torch.cuda.device_of(like):
        start(kernel, programs, arguments, {**constants, "BLOCK": BLOCK, "A": arithmetic(like)})


def start(kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Launch the programs of a kernel."""
    kernel[(programs,)](*arguments, **constants, **options(64 if torch.version.hip else 32))


def options(warp_size: int) -> dict[str, Any]:
    """Return compile options; floating-point contraction is off for parity with the reference."""
    return {"num_warps": THREADS // warp_size, "enable_fp_fusion": False}


@functools.lru_cache(maxsize=64)
def _segments(layout: FlatLayout, device: torch.device) -> Tensor:
    """Return the segment index of every ALIGNMENT columns; slots start at multiples of ALIGNMENT."""
    first = torch.arange(0, layout.numel, ALIGNMENT)
    return torch.searchsorted(layout.segment_ends, first, right=True).to(torch.int32).to(device)
