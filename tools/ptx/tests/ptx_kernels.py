"""Triton kernels of the translator's tests, compiled ahead of time for sm_80. Needs Triton without its interpreter."""

from __future__ import annotations

import triton
import triton.language as tl
from metagan_fast.kernels.layers.activations import activate, activation_derivative
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def _update(p, g, n, lr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(p + i, mask=i < n)
    y = tl.load(g + i, mask=i < n)
    tl.store(p + i, x - tl.div_rn(lr * y, tl.sqrt_rn(y * y) + 1e-8), mask=i < n)


@triton.jit
def _row_sums(x, out, n, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    square = tl.load(x + row * n + i, mask=i < n, other=0.0).to(tl.float64)
    value = tl.load(x + row * n + i, mask=i < n, other=-float("inf"))
    tl.store(out + 2 * row, tl.sum(square * square, 0).to(tl.float32))
    tl.store(out + 2 * row + 1, tl.sum(tl.exp(value - tl.max(value, 0)), 0))


@triton.jit
def _product(a, b, out, PRECISION: tl.constexpr):
    i = tl.arange(0, 32)
    at = i[:, None] * 32 + i[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION))


@triton.jit
def _activation(z, kept, slope, y, d, NAME: tl.constexpr, NUMBER: tl.constexpr):
    i = tl.arange(0, 256)
    p = tl.load(slope)
    tl.store(y + i, activate(tl.load(z + i), p, NAME, NUMBER))
    tl.store(d + i, activation_derivative(tl.load(kept + i), p, NAME, NUMBER))


def _compile(kernel, types, constants, divisible) -> str:
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    attributes = {(i,): [["tt.divisibility", 16]] for i in divisible}
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
    return compiled.asm["ptx"].replace(kernel.__name__, kernel.__name__.lstrip("_"))


def update(vector: bool) -> str:
    """Return the PTX of a masked element-wise update of 512 elements a program."""
    types = {"p": "*fp32", "g": "*fp32", "n": "i32", "lr": "fp32"}
    return _compile(_update, types, {"BLOCK": 512}, (0, 1, 2) if vector else ())


def row_sums() -> str:
    """Return the PTX of two reductions of a row, one in float64."""
    return _compile(_row_sums, {"x": "*fp32", "out": "*fp32", "n": "i32"}, {"BLOCK": 512}, ())


def product(precision: str) -> str:
    """Return the PTX of a product of two matrices of 32 by 32."""
    kind = "*bf16" if precision == "bf16" else "*fp32"
    types = {"a": kind, "b": kind, "out": "*fp32"}
    return _compile(_product, types, {"PRECISION": "ieee" if precision == "bf16" else precision}, (0, 1, 2))


def activation(name: str, number: float) -> str:
    """Return the PTX of an activation of 256 numbers, and of its derivative from what a layer keeps."""
    types = dict.fromkeys(("z", "kept", "slope", "y", "d"), "*fp32")
    return _compile(_activation, types, {"NAME": name, "NUMBER": number}, range(5))
