"""`clip_grad_norm`, in two launches: sums of squares over fixed ranges of columns, then their sum and the scaling.

Two, since no block may wait for another without atomics. The second adds the at most PARTS sums of its row in every
program, always in the same order; that is cheaper than a third launch.

One launch would take one program for a row, which goes through it twice, block after block, with as many
multiprocessors at work as there are rows. `sgd_step` and `adam_step`, which clip where they update, would need that
loop as a second form of their kernels. It is no way out that every program sums up its whole row: in place, one would
scale what another has yet to read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from metagan_fast.kernels import _launch
from metagan_fast.kernels.blocks import PARTS, locate, read, scale_of_row, write
from torch import Tensor

from metagan_fast._native import ops


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
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for _ in range(blocks_a_part):
        x = read(grads, row * grads_stride + start, lanes, lanes < numel - start, tl.float64)
        total += x * x
        start += BLOCK
    tl.store(sums + program, tl.sum(total, 0))


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
    scale = scale_of_row(sums, parts, max_norm, norms, row, start, A)
    write(
        grads_out,
        row * grads_out_stride + start,
        lanes,
        mask,
        read(grads, row * grads_stride + start, lanes, mask, A) * scale,
    )


class Clipping(NamedTuple):
    """A kernel's arguments `sums, parts, max_norm` where it scales gradients; None and zeros where it does not."""

    sums: Tensor | None = None
    parts: int = 0
    max_norm: float = 0.0

    @classmethod
    def of(cls, grads: Tensor, max_norm: float | None) -> Clipping:
        """Start the sums of squares of each row."""
        if max_norm is None:
            return cls()
        numel, rows = grads.shape[-1], _launch.rows_of(grads)
        blocks = -(-numel // _launch.BLOCK)
        blocks_a_part = max(1, -(-blocks // PARTS.value))
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
    (grads,) = _launch.inputs(grads)
    (clipped,) = out or _launch.new_results(grads, 1)
    new_norms = torch.empty if grads.shape[-1] else torch.zeros
    norms = new_norms(grads.shape[:-1], dtype=ops.arithmetic(grads.dtype), device=grads.device)
    _launch.launch(
        clip_grad_norm_kernel,
        _launch.blocks_of(grads),
        grads,
        *_launch.matrices(grads, clipped),
        grads.shape[-1],
        *Clipping.of(grads, max_norm),
        norms,
    )
    return clipped, norms
