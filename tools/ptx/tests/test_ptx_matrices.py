"""Matrix instructions of the PTX translator against numpy, with the fragment layouts of the PTX ISA.

With g = lane / 4 and t = lane % 4, of the registers of a lane
- `ldmatrix` gives from matrix i the elements (g, 2 t) and (g, 2 t + 1) in register i, of its transpose with `.trans`;
  `stmatrix` takes them;
- `mma` m16n8k8 (tf32) takes A at (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4) and B at (t, g), (t + 4, g);
- `mma` m16n8k16 (bf16) takes pairs along k in their place: t becomes 2 t and 2 t + 1, 4 becomes 8;
- C and D have (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
"""

from __future__ import annotations

import numpy as np
import pytest

import ptx
from ptx import PtxError
from ptx_text import HEAD, SHARED, bf16, kernel
from tolerances import tolerance

pytestmark = pytest.mark.skipif(ptx.COMPILER is None, reason="needs g++")

LANE = np.arange(32)
G, T = LANE // 4, LANE % 4
TF32 = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
BF16 = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
MULTIPLY = """
mad.wide.u32 %d1, %r39, 8, %d1; ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%d1];
ld.global.v2.b32 {%r5, %r6}, [%d2];
mad.wide.u32 %d3, %r39, 8, %d3; ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%d3];
INSTRUCTION {%f5, %f6, %f7, %f8}, {%r1, %r2, %r3, %r4}, {%r5, %r6}, {%f1, %f2, %f3, %f4};
st.global.v4.f32 [%d3], {%f5, %f6, %f7, %f8};"""


def fragments(matrix, rows, columns):
    """Return `[lane, register]`, elements of the matrix at one pair of indices a register."""
    return np.ascontiguousarray(np.stack([matrix[i, j] for i, j in zip(rows, columns, strict=True)], axis=1))


def multiply(instruction, a, b, c, order="forward", threads=32):
    """Return D; `a` and `b` are bits, of 32 (tf32) or 16 (bf16)."""
    half = 1 if a.dtype == np.uint32 else 2
    k = [T * half + i for i in range(half)]
    of_a = [(row, j + upper) for upper in (0, 4 * half) for row in (G, G + 8) for j in k]
    of_b = [(j + upper, G) for upper in (0, 4 * half) for j in k]
    of_c = [(row, 2 * T + i) for row in (G, G + 8) for i in (0, 1)]
    lanes = [fragments(x, *zip(*places, strict=True)) for x, places in ((a, of_a), (b, of_b), (c, of_c))]
    text = HEAD + kernel(MULTIPLY.replace("INSTRUCTION", instruction))
    ptx.load(text)["k"].launch(1, threads, lanes, order=order, seed=4)
    d = np.full((16, 8), np.nan, np.float32)
    for register, (rows, columns) in enumerate(of_c):
        d[rows, columns] = lanes[2][:, register]
    return d


@pytest.mark.parametrize("order", ptx.ORDERS)
@pytest.mark.parametrize(("instruction", "k"), [(TF32, 8), (BF16, 16)])
def test_products_of_whole_numbers_are_exact(instruction, k, order):
    draw = np.random.default_rng(0)
    a, b, c = (draw.integers(-8, 9, shape).astype(np.float32) for shape in ((16, k), (k, 8), (16, 8)))
    if k == 16:
        d = multiply(instruction, bf16(a), bf16(b), c, order)
    else:  # the lower 13 bits of an operand are not read
        d = multiply(instruction, a.view(np.uint32) | 0x1FFF, b.view(np.uint32) | 0x0ABC, c, order)
    np.testing.assert_array_equal(d, a @ b + c)


def test_sums_of_tf32_products_are_float32():
    draw = np.random.default_rng(1)
    a, b, c = (draw.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (8, 8), (16, 8)))
    a, b = ((x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in (a, b))
    d = multiply(TF32, a.view(np.uint32), b.view(np.uint32), c)
    exact = a.astype(np.float64) @ b + c
    np.testing.assert_allclose(d, exact, rtol=0, atol=tolerance("float32-rounding") * np.abs(exact).max())


ROWS = """
mad.wide.u32 %d1, %r39, 8, %d1; ld.global.v2.b64 {%d5, %d6}, [%d1];
mov.u32 %r1, memory; shl.b32 %r2, %r39, 4; add.s32 %r3, %r1, %r2; st.shared.v2.b64 [%r3], {%d5, %d6};
bar.warp.sync -1; xor.b32 %r2, %r2, 80; add.s32 %r3, %r1, %r2;
mov.b32 %r4, 0; mov.b32 %r5, 0; mov.b32 %r6, 0; mov.b32 %r7, 0;
LOAD
mad.wide.u32 %d2, %r39, 8, %d2; st.global.v4.b32 [%d2], {%r4, %r5, %r6, %r7};"""
"""Each lane stores 16 bytes to shared memory, then passes the row of lane ^ 5."""


def load_matrices(instruction, threads=32, **more):
    x, out = np.arange(256, dtype=np.uint16).reshape(32, 8), np.zeros((32, 4, 2), np.uint16)
    text = HEAD + SHARED + kernel(ROWS.replace("LOAD", instruction), parameters=2)
    ptx.load(text)["k"].launch(1, threads, [x, out], shared_bytes=512, **more)
    return x, out


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_from_shared_memory(count, transposed):
    registers = ", ".join(f"%r{4 + i}" for i in range(count))
    suffix = f"x{count}{'.trans' * transposed}.shared.b16"
    x, out = load_matrices(f"ldmatrix.sync.aligned.m8n8.{suffix} {{{registers}}}, [%r3];", order="random", seed=2)
    matrices = x[LANE ^ 5].reshape(4, 8, 8)
    if transposed:
        matrices = matrices.swapaxes(1, 2)
    expected = np.zeros_like(out)
    for i in range(count):
        expected[:, i] = np.stack([matrices[i, G, 2 * T], matrices[i, G, 2 * T + 1]], axis=1)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_to_shared_memory(count, transposed):
    suffix = f"x{count}{'.trans' * transposed}.shared.b16"
    registers = ", ".join(f"%r{10 + i}" for i in range(count))
    body = f"""stmatrix.sync.aligned.m8n8.{suffix} [%r3], {{{registers}}}; bar.warp.sync -1;
    shl.b32 %r2, %r39, 4; add.s32 %r3, %r1, %r2; ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [%r3];"""
    fragments = "mov.b64 {%r10, %r11}, %d5; mov.b64 {%r12, %r13}, %d6;"
    text = HEAD + SHARED + kernel(ROWS.replace("LOAD", f"{fragments} bar.warp.sync -1; {body}"), parameters=2)
    x, out = np.arange(256, dtype=np.uint16).reshape(32, 4, 2), np.zeros((32, 8), np.uint16)
    ptx.load(text)["k"].launch(1, 32, [x, out], shared_bytes=512, order="random", seed=2)
    expected = x.reshape(32, 8).copy()  # previous contents
    for i in range(count):
        matrix = np.zeros((8, 8), np.uint16)
        matrix[G, 2 * T], matrix[G, 2 * T + 1] = x[:, i].T
        expected[np.arange(8 * i, 8 * i + 8) ^ 5] = matrix.T if transposed else matrix
    np.testing.assert_array_equal(out, expected)


LOAD = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r3];"


def test_rows_of_matrices_are_aligned_and_ordered():
    with pytest.raises(PtxError, match="misaligned row of a matrix"):
        load_matrices(LOAD.replace("%r3", "%r3+8"))
    with pytest.raises(PtxError, match="no barrier between"):
        load_matrices(f"st.shared.b32 [%r3], %r39; {LOAD}")


@pytest.mark.parametrize("order", ptx.ORDERS)
def test_a_missing_lane_is_an_error(order):
    skip = "setp.eq.u32 %p1, %r39, 13; @%p1 bra skip;"
    with pytest.raises(PtxError, match="waits for threads of its warp that do not come"):
        load_matrices(f"{skip} {LOAD} skip:", order=order)
    with pytest.raises(PtxError, match="a matrix needs all lanes of a warp"):
        load_matrices(LOAD, threads=16, order=order)
    for instruction, k, bits in ((TF32, 8, np.uint32), (BF16, 16, np.uint16)):
        operands = np.zeros((16, k), bits), np.zeros((k, 8), bits), np.zeros((16, 8), np.float32)
        with pytest.raises(PtxError, match="waits for threads of its warp that do not come"):
            multiply(f"setp.ne.u32 %p1, %r39, 31; @%p1 {instruction}", *operands, order=order)
        with pytest.raises(PtxError, match="a matrix needs all lanes of a warp"):
            multiply(instruction, *operands, order=order, threads=31)


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        (f"{TF32} {{%f1, %f2}}, {{%r1, %r2, %r3, %r4}}, {{%r5, %r6}}, {{%f1, %f2, %f3, %f4}};", "fragments"),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5}, [%r1];", "2 elements"),
    ],
)
def test_fragments_are_counted(instruction, message):
    with pytest.raises(PtxError, match=message):
        ptx.load(HEAD + kernel(instruction))
