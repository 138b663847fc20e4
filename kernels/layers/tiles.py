"""What the per-task layers share: tiles of a product, its operands' precision, and the launch.

Every pass is a product `out[m, n] = sum over k of left[m, k] right[k, n]` a task. A program owns one task and one tile
of m and n; it walks k in steps and is the only one to write its tile, so that the order of a sum is fixed and nothing
is atomic. Programs lie on one axis, task by task, and within a task m varies fastest.
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
    """A program's extents along m, n and k."""

    m: int
    n: int
    k: int


LARGEST = {"ieee": Tile(64, 64, 16), "tf32": Tile(64, 64, 16), "bf16": Tile(64, 64, 32)}
"""Tiles by precision. Reasoned, not measured: 64 x 64 sums are 16 registers a thread, and each number read from memory
serves 64 multiply-adds; k advances by 64 bytes. By 128 in tf32, a step of a convolution on an sm_80 has more addresses
than registers."""

SMALLEST = 16
"""What `tl.dot` takes at least; a few shots fill no more."""

OPTIONS = {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": True}
"""How kernels are compiled, by reason like the tiles: eight warps share a tile, since index arithmetic takes registers
too, and two steps load while one multiplies. Multiply-adds are fused, as in every matrix product."""


def tile_for(m: int, n: int, precision: str) -> Tile:
    """Return the tile for a product of these extents: no larger than they are, rounded up to a power of two."""
    largest = LARGEST[precision]
    rows, columns = (max(SMALLEST, triton.next_power_of_2(x)) for x in (m, n))
    return Tile(min(largest.m, rows), min(largest.n, columns), largest.k)


def adjacent(x: Tensor) -> Tensor:
    """Return the tensor with the elements of one task adjacent; the distance between tasks may be anything."""
    return x if x[0].is_contiguous() else x.contiguous()


def precision_of(x: Tensor, precision: str) -> str:
    """Return the precision of the products: bf16 operands are what they are."""
    return "bf16" if x.dtype == torch.bfloat16 else precision


def with_stride(x: Tensor | None) -> tuple[Tensor | None, int]:
    """Return an operand, the elements of a task adjacent, and the distance between tasks."""
    x = None if x is None else adjacent(x)
    return x, 0 if x is None else x.stride(0)


def with_strides(slope: Tensor | None) -> tuple[Any, ...]:
    """Return slopes with both their strides."""
    return slope, *((0, 0) if slope is None else slope.stride())


def new_outputs(x: Tensor, activation: Activation | None, *shape: int) -> tuple[Tensor, Tensor | None]:
    """Return memory for the output and, if they are to be kept, for the sums before the activation."""
    keeps = activation is not None and activation.keeps_input
    return x.new_empty(*shape), x.new_empty(*shape) if keeps else None


def activation_constants(activation: Activation | None) -> dict[str, Any]:
    """Return what a kernel has of an activation compiled in."""
    if activation is None:
        return {"NAME": "none", "NUMBER": 0.0}
    return {"NAME": activation.name, "NUMBER": activation.numbers[0] if activation.numbers else 0.0}


def launch(
    kernel: Any, tasks: int, extents: tuple[int, int, int], arguments: tuple[Any, ...], **constants: Any
) -> None:
    """Launch one product a task. `arguments` go before the extents, `constants` are compiled in."""
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
    """Start the programs on the device of the first argument."""
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, **constants, **options)


@triton.jit
def locate(M, N, BM: tl.constexpr, BN: tl.constexpr):
    """Return a program's task, its rows, its columns, and whether it is the first along n."""
    tiles_m = tl.cdiv(M, BM)
    tiles = tiles_m * tl.cdiv(N, BN)
    program = tl.program_id(0)
    tile = program % tiles
    m = (tile % tiles_m) * BM + tl.arange(0, BM)
    n = (tile // tiles_m) * BN + tl.arange(0, BN)
    return (program // tiles).to(tl.int64), m, n, tile < tiles_m


@triton.jit
def store_row_sums(out, terms, rows, M):
    """Store the sums of rows."""
    tl.store(out + rows, tl.sum(terms, 1).to(out.dtype.element_ty), rows < M)


@triton.jit
def beside_product(loaded, pointers, mask, PRECISION: tl.constexpr):
    """Return a loaded tile for another use than the product: loaded once more, as far as `mask` says, for tensor cores.

    On an sm_90 a product that takes a tile from the shared memory where its load left it is under way while the loop
    goes on. Triton (3.7 and 3.9) gives such a load a buffer more, but not if it has a second user: it is refilled too
    early. A mask of its own keeps the loads apart.
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
