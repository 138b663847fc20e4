"""Small kernels compiled by Triton and nvcc, translated and run, with and without their barriers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import ptx
from ptx import PtxError
from ptx_text import bf16, widen
from tolerances import tolerance

pytestmark = pytest.mark.skipif(ptx.COMPILER is None, reason="needs g++")

NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")


# ---- Triton


@pytest.fixture(scope="module")
def triton_kernels():
    pytest.importorskip("triton", reason="needs Triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("needs Triton's compiler, not its interpreter")
    import ptx_kernels

    return ptx_kernels


@pytest.mark.parametrize("numel", [777, 1040])
@pytest.mark.parametrize("order", ptx.ORDERS)
def test_triton_masked_update(triton_kernels, numel, order):
    text = triton_kernels.update(vector=numel % 16 == 0)
    assert (".v4.b32" in text) == (numel % 16 == 0)
    p, g = np.random.default_rng(0).standard_normal((2, numel)).astype(np.float32)
    expected = p - np.float32(0.1) * g / (np.sqrt(g * g) + np.float32(1e-8))
    run = ptx.load(text)["update"]
    run.launch(-(-numel // 512), 128, [p, g, numel, 0.1, 0, 0], order=order, seed=7)
    np.testing.assert_array_equal(p, expected)


@pytest.mark.parametrize("order", ptx.ORDERS)
def test_triton_row_reduction(triton_kernels, order):
    x = np.random.default_rng(0).standard_normal((3, 301)).astype(np.float32)
    out = np.zeros((3, 2), np.float32)
    text = triton_kernels.row_sums()
    assert "st.shared" in text
    ptx.load(text)["row_sums"].launch(3, 128, [x, out, 301, 0, 0], shared_bytes=4096, order=order)
    y = x.astype(np.float64)
    expected = np.stack([(y**2).sum(1), np.exp(y - y.max(1, keepdims=True)).sum(1)], axis=1)
    np.testing.assert_allclose(out, expected, rtol=tolerance("float32-rounding"))


@pytest.mark.parametrize("order", ptx.ORDERS)
def test_triton_reduction_without_its_barriers_is_an_error(triton_kernels, order):
    text = triton_kernels.row_sums().replace("bar.sync \t0;", "")
    x, out = np.ones((3, 301), np.float32), np.zeros((3, 2), np.float32)
    x += np.arange(301, dtype=np.float32)
    with pytest.raises(PtxError, match="no barrier between"):
        ptx.load(text)["row_sums"].launch(3, 128, [x, out, 301, 0, 0], shared_bytes=4096, order=order)


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_triton_matrix_product(triton_kernels, precision):
    a, b = np.random.default_rng(0).standard_normal((2, 32, 32)).astype(np.float32)
    out = np.zeros((32, 32), np.float32)
    text = triton_kernels.product(precision)
    assert ("mma.sync" in text) == (precision != "ieee")
    if precision == "tf32":  # tensor cores read 10 bits of mantissa, so inputs have no more
        a, b = ((x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in (a, b))
    operands = (bf16(a), bf16(b)) if precision == "bf16" else (a, b)
    ptx.load(text)["product"].launch(1, 128, [*operands, out, 0, 0], shared_bytes=32768, order="random", seed=2)
    exact = [widen(x) for x in operands] if precision == "bf16" else [a, b]
    expected = exact[0].astype(np.float64) @ exact[1]
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance("bf16-operands") * np.abs(expected).max())


# ---- nvcc

CUDA = """
extern "C" __global__ void sums(const float *x, double *out, int columns) {
  __shared__ double scratch[128];
  double sum = 0;
  for (int i = threadIdx.x; i < columns; i += 128) sum += double(x[blockIdx.x * columns + i]);
  scratch[threadIdx.x] = sum;
  for (int half = 64; half; half /= 2) {
    BARRIER
    if (threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
  }
  if (threadIdx.x == 0) out[blockIdx.x] = scratch[0];
}
"""


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("barrier", ["__syncthreads();", ""])
def test_nvcc_reduction(tmp_path: Path, barrier):
    (tmp_path / "sums.cu").write_text(CUDA.replace("BARRIER", barrier))
    subprocess.run(
        [NVCC, "-ptx", "-arch=compute_80", "sums.cu", "-o", "sums.ptx"], cwd=tmp_path, check=True, capture_output=True
    )
    run = ptx.load((tmp_path / "sums.ptx").read_text())["sums"]
    x = np.random.default_rng(0).standard_normal((5, 333)).astype(np.float32)
    for order in ptx.ORDERS:
        out = np.zeros(5)
        if not barrier:
            with pytest.raises(PtxError, match="no barrier between"):
                run.launch(5, 128, [x, out, 333], order=order)
            continue
        run.launch(5, 128, [x, out, 333], order=order, seed=4)
        expected = x.astype(np.float64).sum(1)
        np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance("float64-rounding") * 100)
