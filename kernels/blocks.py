"""Block loads, stores and reductions: a program handles a block of adjacent columns of one row.

Row and start column are 64-bit scalars, so buffers of more than 2^31 elements work; lanes are 32-bit offsets from their
scalar address. Scalar arguments are float64 and are rounded to the arithmetic type once, in `number`.
"""

import triton
import triton.language as tl
from metagan_fast.kernels.updates.formulas import clip_scale, reptile_difference

PARTS = tl.constexpr(512)  # most partial sums of squares a row, each over a fixed range of columns


@triton.jit
def locate(numel, BLOCK: tl.constexpr):
    """Return the program's row, first column, lanes and mask."""
    blocks = (numel - 1) // BLOCK + 1  # tl.cdiv adds first, which overflows for numel just below 2^31
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    start = (program % blocks).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    return row, start, lanes, lanes < numel - start


@triton.jit
def number(x, A: tl.constexpr):
    """Return a scalar in the arithmetic type."""
    return tl.full((), x, A)


@triton.jit
def read(data, offset, lanes, mask, A: tl.constexpr):
    """Load elements and convert them to the arithmetic type."""
    return tl.load(data + offset + lanes, mask=mask, other=0.0).to(A)


@triton.jit
def write(data, offset, lanes, mask, values):
    """Store elements, rounded to the storage type."""
    tl.store(data + offset + lanes, values.to(data.dtype.element_ty), mask=mask)


@triton.jit
def rate_at(
    lr,
    rates,
    rates_stride,
    segments,
    segment_stride,
    row,
    start,
    lanes,
    mask,
    A: tl.constexpr,
    FORM: tl.constexpr,
    RUN: tl.constexpr,
):
    """Return the learning rate of the program's elements, a scalar or a block.

    FORM is "number", "row", "element" or "segment"; `segments` holds the segment index of every RUN columns.
    """
    if FORM == "number":
        rate = number(lr, A)
    elif FORM == "row":
        rate = tl.load(rates + row * rates_stride).to(A)
    elif FORM == "element":
        rate = read(rates, row * rates_stride + start, lanes, mask, A)
    else:
        segment = tl.load(segments + start // RUN + lanes // RUN, mask=mask, other=0).to(tl.int64)
        rate = tl.load(rates + row * rates_stride + segment * segment_stride, mask=mask, other=0.0).to(A)
    return rate


@triton.jit
def sum_over_tasks(
    initial,
    adapted,
    adapted_stride,
    tasks,
    weights,
    inverse_tasks,
    start,
    lanes,
    mask,
    A: tl.constexpr,
    WEIGHTED: tl.constexpr,
    TOWARDS_ADAPTED: tl.constexpr,
):
    """Return the mean or weighted sum of the differences from `initial`, added in index order."""
    total = _difference(initial, read(adapted, start, lanes, mask, A), TOWARDS_ADAPTED)
    if WEIGHTED:
        total = tl.load(weights).to(A) * total
    for task in range(1, tasks):
        adapted += adapted_stride
        difference = _difference(initial, read(adapted, start, lanes, mask, A), TOWARDS_ADAPTED)
        if WEIGHTED:
            difference = tl.load(weights + task).to(A) * difference
        total = total + difference
    if not WEIGHTED:
        total = total * number(inverse_tasks, A)
    return total


@triton.jit
def read_clipped(
    data, stride, numel, row, start, lanes, mask, sums, parts, max_norm, A: tl.constexpr, BLOCK: tl.constexpr
):
    """Return clipped elements, rounded to the storage type as `clip_grad_norm` stores them."""
    scale = scale_to(row_norm(data, stride, numel, row, sums, parts, BLOCK), max_norm, A)
    clipped = read(data, row * stride + start, lanes, mask, A) * scale
    return clipped.to(data.dtype.element_ty).to(A)


@triton.jit
def scale_to(norm, max_norm, A: tl.constexpr):
    """Return the factor that clips a row of this norm, in the arithmetic type."""
    return clip_scale(norm, number(max_norm, tl.float64)).to(A)


@triton.jit
def row_norm(data, stride, numel, row, sums, parts, BLOCK: tl.constexpr):
    """Return the norm of a row in float64, from its `parts` partial sums of squares, or without `sums` its elements.

    The order is fixed. For a row of one part both ways give the same bits, since the other partial sums are zero.
    """
    if sums is not None:
        part = tl.arange(0, PARTS)
        total = tl.sum(tl.load(sums + row * parts + part, mask=part < parts, other=0.0), 0)
    else:
        first = tl.full((), 0, tl.int64)
        total = sum_of_squares(data, row * stride, first, numel, (numel - 1) // BLOCK + 1, BLOCK)
    return tl.sqrt(total)


@triton.jit
def sum_of_squares(data, offset, start, numel, blocks, BLOCK: tl.constexpr):
    """Return the sum of squares of `blocks` blocks of a row in float64, accumulated by lane, then over the lanes."""
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for _ in range(blocks):
        x = read(data, offset + start, lanes, lanes < numel - start, tl.float64)
        total += x * x
        start += BLOCK
    return tl.sum(total, 0)


@triton.jit
def _difference(initial, adapted, TOWARDS_ADAPTED: tl.constexpr):
    if TOWARDS_ADAPTED:
        return reptile_difference(adapted, initial)
    else:
        return reptile_difference(initial, adapted)
