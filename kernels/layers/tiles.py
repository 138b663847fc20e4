"""Tiling of the per-task layers' products: tile sizes, operand precision, and launches.

Every pass is a product `out[m, n] = sum over k of left[m, k] right[k, n]` a task. One program computes one m x n tile
of one task, looping over k, and alone writes it, so every sum has a fixed order and there are no atomics. The grid has
one axis: task by task, with m varying fastest within a task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from metagan_fast.executors.torch.layers.activations import Activation


class Tile(NamedTuple):
    """Tile sizes along m, n and k."""

    m: int
    n: int
    k: int


LARGEST = {"ieee": Tile(64, 64, 16), "tf32": Tile(64, 64, 16), "bf16": Tile(64, 64, 32)}
"""Tile sizes by precision: 16 accumulator registers a thread, 64 bytes along k (docs/tuning.md#gpu-per-task-tiles)."""

SMALLEST = 16
"""Smallest extent of `tl.dot`; a few shots fill no more."""

OPTIONS = {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": True}
"""Compile options: 8 warps a tile leave registers for index arithmetic, 3 stages overlap loads with products, and
multiply-adds are fused as in every matrix product (docs/tuning.md#gpu-per-task-tiles)."""


def tile_for(m: int, n: int, precision: str) -> Tile:
    """Return the tile for a product of these extents: at most the extents rounded up to powers of two."""
    largest = LARGEST[precision]
    rows, columns = (max(SMALLEST, triton.next_power_of_2(x)) for x in (m, n))
    return Tile(min(largest.m, rows), min(largest.n, columns), largest.k)


def adjacent(x: Tensor) -> Tensor:
    """Return the tensor, contiguous within a task; copied only if it is not."""
    return x if x[0].is_contiguous() else x.contiguous()


def precision_of(x: Tensor, precision: str) -> str:
    """Return the precision of the products: "bf16" for bf16 operands, else `precision`."""
    return "bf16" if x.dtype == torch.bfloat16 else precision


def with_stride(x: Tensor | None) -> tuple[Tensor | None, int]:
    """Return an operand, contiguous within a task, and its stride between tasks."""
    x = None if x is None else adjacent(x)
    return x, 0 if x is None else x.stride(0)


def with_strides(slope: Tensor | None) -> tuple[Any, ...]:
    """Return slopes `[tasks, out]` with both strides."""
    return slope, *((0, 0) if slope is None else slope.stride())


def new_outputs(x: Tensor, activation: Activation | None, *shape: int) -> tuple[Tensor, Tensor | None]:
    """Return uninitialised tensors for the output and, if the activation saves it, the pre-activation."""
    keeps = activation is not None and activation.saves_preactivation
    return x.new_empty(*shape), x.new_empty(*shape) if keeps else None


def activation_constants(activation: Activation | None) -> dict[str, Any]:
    """Return the compile-time constants of an activation."""
    if activation is None:
        return {"NAME": "none", "NUMBER": 0.0}
    return {"NAME": activation.name, "NUMBER": activation.numbers[0] if activation.numbers else 0.0}


def launch(
    kernel: Any, tasks: int, extents: tuple[int, int, int], arguments: tuple[Any, ...], **constants: Any
) -> None:
    """Launch one product a task; the extents follow `arguments`, `constants` are compile-time constants."""
    m, n, k = extents
    if max(extents) >= 2**31:
        raise ValueError(
            f"expected fewer than 2**31 rows, columns and terms a task, got {extents}; use smaller batches"
        )
    tile = tile_for(m, n, constants["PRECISION"])
    programs = tasks * triton.cdiv(m, tile.m) * triton.cdiv(n, tile.n)
    if programs == 0:
        return
    sizes = {"BM": tile.m, "BN": tile.n, "BK": tile.k}
    start(kernel, programs, (*arguments, m, n, k), {**constants, **sizes}, OPTIONS)


def start(
    kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any], options: dict[str, Any]
) -> None:
    """Launch the programs on the device of the first argument."""
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, **constants, **options)


@triton.jit
def locate(M, N, BM: tl.constexpr, BN: tl.constexpr):
    """Return a program's task, rows and columns, and whether its tile is the first along n."""
    tiles_m = tl.cdiv(M, BM)
    tiles = tiles_m * tl.cdiv(N, BN)
    program = tl.program_id(0)
    tile = program % tiles
    m = (tile % tiles_m) * BM + tl.arange(0, BM)
    n = (tile // tiles_m) * BN + tl.arange(0, BN)
    return (program // tiles).to(tl.int64), m, n, tile < tiles_m


@triton.jit
def store_row_sums(out, terms, rows, M):
    """Store the row sums of a tile."""
    tl.store(out + rows, tl.sum(terms, 1).to(out.dtype.element_ty), rows < M)


@triton.jit
def reload_tile(loaded, pointers, mask, PRECISION: tl.constexpr):
    """Return a tile of the product for a second use; for tensor cores it is loaded again, under `mask`.

    On sm_90 an asynchronous product reads its tile from shared memory while the loop goes on. Triton (3.7 and 3.9)
    gives that load one more buffer, except if it has a second user: then the buffer is refilled too early. A load with
    a different mask stays separate.
    """
    if PRECISION == "ieee":
        return loaded
    else:
        return tl.load(pointers, mask, other=0.0)


@triton.jit
def multiply(left, right, sums, PRECISION: tl.constexpr):
    """Return `sums + left right`, with the operands as precise as asked and sums in float32."""
    if PRECISION == "bf16":
        return tl.dot(left.to(tl.bfloat16), right.to(tl.bfloat16), sums)
    else:
        return tl.dot(left, right, sums, input_precision=PRECISION)
