"""`clip_grad_norm`: one launch for short rows, two for longer ones.

Scaling needs the row's norm, and programs synchronise only at the end of a launch. So the first of two launches sums
squares over fixed ranges of columns; every program of the second adds the at most PARTS partial sums of its row, in a
fixed order, which is cheaper than a third launch, and scales.

A row of at most `SHORT_ROW` elements is a single range. One program reads it twice, the second time from cache, to
sum and to scale: one launch, with the same bits as two. In a clipping `sgd_step` or `adam_step` every program sums its
whole short row. A step that also resets the gradient takes two launches, since one program would overwrite elements
that another has yet to read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from metagan_fast.kernels.blocks import PARTS, locate, read, row_norm, scale_to, sum_of_squares, write
from metagan_fast.kernels.updates import _launch
from torch import Tensor

from metagan_fast._native.buffers import arithmetic, inputs, new_results, sizes
from metagan_fast.ops.clip_grad_norm import SHORT_ROW


@triton.jit
def clip_short_rows_kernel(
    grads,
    grads_stride,
    grads_out,
    grads_out_stride,
    numel,
    max_norm: tl.float64,
    norms,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    norm = row_norm(grads, grads_stride, numel, row, None, 0, BLOCK)
    tl.store(norms + row, norm.to(A))
    scale = scale_to(norm, max_norm, A)
    lanes = tl.arange(0, BLOCK)
    for start in range(0, numel, BLOCK):
        mask = lanes < numel - start
        values = read(grads, row * grads_stride + start, lanes, mask, A) * scale
        write(grads_out, row * grads_out_stride + start, lanes, mask, values)


@triton.jit
def sum_of_squares_kernel(
    grads,
    grads_stride,
    sums,
    numel,
    parts,
    blocks_a_part,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // parts).to(tl.int64)
    start = (program % parts).to(tl.int64) * blocks_a_part * BLOCK
    tl.store(sums + program, sum_of_squares(grads, row * grads_stride, start, numel, blocks_a_part, BLOCK))


@triton.jit
def clip_grad_norm_kernel(
    grads,
    grads_stride,
    grads_out,
    grads_out_stride,
    numel,
    sums,
    parts,
    max_norm: tl.float64,
    norms,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, start, lanes, mask = locate(numel, BLOCK)
    norm = row_norm(grads, grads_stride, numel, row, sums, parts, BLOCK)
    tl.store(norms + row, norm.to(A), mask=start == 0)
    values = read(grads, row * grads_stride + start, lanes, mask, A) * scale_to(norm, max_norm, A)
    write(grads_out, row * grads_out_stride + start, lanes, mask, values)


class Clipping(NamedTuple):
    """A kernel's arguments `sums, parts, max_norm` for clipping; None and zeros without clipping.

    With `sums` None, a program computes its row's norm itself.
    """

    sums: Tensor | None = None
    parts: int = 0
    max_norm: float = 0.0

    @classmethod
    def of(cls, grads: Tensor, max_norm: float | None, *, overwritten: bool) -> Clipping:
        """Return the arguments for a step; `overwritten`: the kernel writes to the gradients."""
        if max_norm is None:
            return cls()
        if grads.shape[-1] <= SHORT_ROW and not overwritten:
            return cls(max_norm=float(max_norm))
        return cls.summed(grads, max_norm)

    @classmethod
    def summed(cls, grads: Tensor, max_norm: float) -> Clipping:
        """Launch the partial sums of squares of each row."""
        rows, numel = sizes(grads)
        blocks = -(-numel // _launch.BLOCK)
        blocks_a_part = max(1, blocks if numel <= SHORT_ROW else -(-blocks // PARTS.value))
        parts = -(-blocks // blocks_a_part)
        sums = torch.empty(rows * parts, dtype=torch.float64, device=grads.device)
        _launch.launch(
            sum_of_squares_kernel,
            rows * parts,
            grads,
            *_launch.matrices(grads),
            sums,
            numel,
            parts,
            blocks_a_part,
        )
        return cls(sums, parts, float(max_norm))


def clip_grad_norm(grads: Tensor, max_norm: float, *, out: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """Run `clip_grad_norm`."""
    (grads,) = inputs(grads)
    (clipped,) = out or new_results(grads, 1)
    norms = torch.empty(grads.shape[:-1], dtype=arithmetic(grads.dtype), device=grads.device)
    clip = in_one_launch if grads.shape[-1] <= SHORT_ROW else in_two_launches
    clip(grads, max_norm, clipped, norms)
    return clipped, norms


def in_one_launch(grads: Tensor, max_norm: float, clipped: Tensor, norms: Tensor) -> None:
    """Clip rows of at most `SHORT_ROW` elements."""
    rows, numel = sizes(grads)
    operands = (*_launch.matrices(grads, clipped), numel, float(max_norm), norms)
    _launch.launch(clip_short_rows_kernel, rows, grads, *operands)


def in_two_launches(grads: Tensor, max_norm: float, clipped: Tensor, norms: Tensor) -> None:
    """Clip rows of at least one element."""
    operands = (*_launch.matrices(grads, clipped), grads.shape[-1], *Clipping.summed(grads, max_norm), norms)
    _launch.launch(clip_grad_norm_kernel, _launch.blocks_of(grads), grads, *operands)
