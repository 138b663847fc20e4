"""The per-task layers' kernels as Triton compiles them for a GPU, run on a CPU, against PyTorch in float64."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ptx
import ptx_triton
import task_layer_norm_cases as norms
from metagan_fast.executors.torch.layers.activations import Activation
from metagan_fast.executors.torch.layers.dispatch import kernel
from metagan_fast.executors.torch.layers.task_layer_norm import LayerNorm
from metagan_fast.executors.torch.layers.task_layers import Convolution, Linear
from support import assert_close
from task_layer_cases import ACTIVATED, ACTIVATIONS, CASES, Case, expected, kept, operands, oracle, slopes

pytestmark = pytest.mark.skipif(ptx.COMPILER is None, reason="needs g++")

MARGIN, CANARY = 300, 1234.5


@pytest.fixture
def as_ptx(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Return a function that makes launches compile for a GPU and run as PTX, threads in the given order.

    It returns the list that the PTX of what ran goes to; `without` is an opcode that is left out. Results start as
    NaNs with canaries around them.
    """
    pytest.importorskip("triton", reason="needs Triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("needs Triton's compiler, not its interpreter")
    from metagan_fast.kernels.layers import tiles

    import triton_aot

    ran: list[str] = []
    buffers: list[Tensor] = []
    count = itertools.count()

    def new_empty(x: Tensor, *shape: int) -> Tensor:
        buffer = torch.full((torch.Size(shape).numel() + 2 * MARGIN,), CANARY, dtype=x.dtype)
        buffer[MARGIN:-MARGIN] = torch.nan
        buffers.append(buffer)
        return buffer[MARGIN:-MARGIN].view(shape)

    def start(order: str, without: str | None = None, target: str = "sm_80") -> list[str]:
        def run(kernel: Any, programs: int, arguments: Any, constants: Any, options: Any) -> None:
            names = [name for name in kernel.arg_names if name not in constants]
            given = dict(zip(names, arguments, strict=True))
            mode = f"ptx{id(ran)}-{next(count)}"
            launch = triton_aot.Launch(mode, kernel, programs, given, constants, options)
            ran.append(ptx_triton.run(launch, order, without, target))

        monkeypatch.setattr(tiles, "start", run)
        monkeypatch.setattr(Tensor, "new_empty", new_empty)
        return ran

    yield start
    assert buffers
    for buffer in buffers:
        assert (buffer[:MARGIN] == CANARY).all() and (buffer[-MARGIN:] == CANARY).all()


UNITS = {"ieee": "fma.rn.f32", "tf32": ".tf32.tf32.f32", "bf16": ".bf16.bf16.f32"}
"""Matrix instruction of each precision."""


@pytest.mark.parametrize(
    ("name", "precision", "order"),
    [
        ("linear", "ieee", "random"),
        ("linear", "tf32", "forward"),
        ("linear", "bf16", "random"),
        ("linear-one-output", "ieee", "reverse"),
        ("convolution", "ieee", "forward"),
        ("convolution-stride", "tf32", "random"),
        ("convolution-oblong", "bf16", "reverse"),
    ],
)
def test_three_passes(name: str, precision: str, order: str, as_ptx: Callable[..., list[str]]) -> None:
    ran = as_ptx(order)
    check_three_passes(CASES[name], precision, torch.bfloat16 if precision == "bf16" else torch.float32)
    assert len(ran) == 3 and all(UNITS[precision] in text for text in ran)


def check_three_passes(case: Case, precision: str, dtype: torch.dtype) -> None:
    layer = case[0]
    x, weight, bias = operands(case, dtype)
    dy = torch.randn_like(oracle(layer, x, weight, bias))
    wanted = expected(case, x, weight, bias, dy)
    actual = (
        kernel(layer, "forward", precision)(x, weight, bias),
        kernel(layer, "backward_data", precision)(dy, weight),
        *kernel(layer, "backward_weights", precision)(dy, x),
    )
    for a, b in zip(actual, wanted, strict=True):
        assert_close(a, b, "task-layer" if precision == "ieee" else "task-layer-reduced")


LARGE: dict[str, Case] = {
    "linear": (Linear(), (1, 33, 50), 72),
    "convolution": (Convolution((4, 4), (3, 3), padding=(1, 1)), (1, 3, 34, 4, 4), 36),
}
"""Tiles span two warp groups, partly beyond the edge, with several steps along k."""


in_large_tiles = pytest.mark.parametrize(
    ("name", "precision", "dtype", "order"),
    [
        ("linear", "tf32", torch.float32, "random"),
        ("linear", "bf16", torch.bfloat16, "forward"),
        ("linear", "bf16", torch.float32, "reverse"),
        ("convolution", "tf32", torch.float32, "reverse"),
        ("convolution", "bf16", torch.bfloat16, "random"),
        pytest.param("convolution", "bf16", torch.float32, "forward", marks=pytest.mark.slow),
    ],
    ids=str,
)


@in_large_tiles
def test_three_passes_by_warp_groups(
    name: str, precision: str, dtype: torch.dtype, order: str, as_ptx: Callable[..., list[str]]
) -> None:
    ran = as_ptx(order, target="sm_90")
    check_three_passes(LARGE[name], precision, dtype)
    assert len(ran) == 3
    for text in ran:
        assert re.search(rf"wgmma\.mma_async[\w.]*\.{precision}\.{precision} ", text)


@in_large_tiles
def test_three_passes_in_tensor_memory(
    name: str, precision: str, dtype: torch.dtype, order: str, as_ptx: Callable[..., list[str]]
) -> None:
    """A of float32 for bf16 products is rounded in registers and goes to tensor memory too, as far as layouts allow."""
    ran = as_ptx(order, target="sm_100")
    check_three_passes(LARGE[name], precision, dtype)
    assert len(ran) == 3
    for text in ran:
        assert f"tcgen05.mma.cta_group::1.kind::{'f16' if precision == 'bf16' else 'tf32'}" in text


@pytest.mark.parametrize(
    ("name", "precision", "order", "target"),
    [
        ("linear-gelu", "ieee", "random", "sm_80"),
        ("linear-relu", "bf16", "forward", "sm_80"),
        ("linear-prelu", "tf32", "random", "sm_80"),
        ("convolution-oblong-tanh", "ieee", "reverse", "sm_80"),
        ("convolution-oblong-prelu", "tf32", "random", "sm_80"),
        ("convolution-oblong-gelu", "bf16", "forward", "sm_80"),
        ("transposed-prelu", "ieee", "random", "sm_80"),
        ("transposed-gelu", "tf32", "reverse", "sm_80"),
        ("transposed-tanh", "bf16", "random", "sm_80"),
        ("linear-relu", "bf16", "random", "sm_90"),
        ("linear-leaky_relu", "bf16", "forward", "sm_90"),
        ("convolution-oblong-prelu", "bf16", "reverse", "sm_90"),
        ("transposed-elu", "bf16", "random", "sm_90"),
        ("linear-relu", "bf16", "random", "sm_100"),
    ],
)
def test_passes_with_an_activation(
    name: str, precision: str, order: str, target: str, as_ptx: Callable[..., list[str]]
) -> None:
    """Forward, and backward from its saved results; a transposed convolution sums dy in one launch more."""
    ran = as_ptx(order, target=target)
    check_passes_with_an_activation(
        ACTIVATED[name], precision, torch.bfloat16 if precision == "bf16" else torch.float32
    )
    assert len(ran) == 3 + name.startswith("transposed") and all(UNITS[precision] in text for text in ran[:3])


@pytest.mark.parametrize(
    ("name", "activation", "precision", "order"),
    [("linear", "gelu", "bf16", "random"), ("convolution", "prelu", "tf32", "reverse")],
)
def test_passes_with_an_activation_in_tensor_memory(
    name: str, activation: str, precision: str, order: str, as_ptx: Callable[..., list[str]]
) -> None:
    layer, *sizes = LARGE[name]
    ran = as_ptx(order, target="sm_100")
    case = (replace(layer, activation=Activation(activation)), *sizes)
    check_passes_with_an_activation(case, precision, torch.bfloat16 if precision == "bf16" else torch.float32)
    assert len(ran) == 3 and all("tcgen05.mma" in text for text in ran)


def check_passes_with_an_activation(case: Case, precision: str, dtype: torch.dtype) -> None:
    layer = case[0]
    x, weight, bias = operands(case, dtype)
    slope = slopes(case, dtype)
    dy = torch.randn_like(oracle(layer, x, weight, bias, slope))
    y, *derivatives = expected(case, x, weight, bias, dy, slope)
    exact = kept(case, x, weight, bias, slope)
    through = {"saved": exact, "slope": slope}
    results = kernel(layer, "forward", precision)(x, weight, bias, slope=slope)
    actual = results if isinstance(results, tuple) else (results,)
    actual += (kernel(layer, "backward_data", precision)(dy, weight, **through),)
    actual += kernel(layer, "backward_weights", precision)(dy, x, **through)
    for a, b in zip(actual, (y, *([exact] if layer.activation.saves_preactivation else []), *derivatives), strict=True):
        assert_close(a, b, "task-layer" if precision == "ieee" else "task-layer-reduced")


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
def test_activations_far_from_zero_and_close_to_it(activation: Activation) -> None:
    """Values and derivatives neither overflow nor cancel, for elements of every magnitude."""
    pytest.importorskip("triton", reason="needs Triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("needs Triton's compiler, not its interpreter")
    import ptx_kernels

    sizes = torch.logspace(-12, 3, 127)
    z = torch.cat([sizes, -sizes, torch.tensor([0.0, -0.0])])
    slope = torch.tensor([0.3])
    exact = z.double().requires_grad_()
    value = ACTIVATIONS[activation](exact, *((slope.double(),) if activation.name == "prelu" else ()))
    (derivative,) = torch.autograd.grad(value.sum(), exact)
    given = z if activation.saves_preactivation else value.detach().float()
    y, d = torch.full_like(z, torch.nan), torch.full_like(z, torch.nan)
    run = ptx.load(ptx_kernels.activation(activation.name, *(activation.numbers or (0.0,))))["activation"]
    run.launch(1, 128, [*(x.numpy() for x in (z, given, slope, y, d)), 0, 0], order="random", seed=1)
    atol = 3e-7 if activation.name == "gelu" else 1e-30  # in its tail 1 + erf cancels: half an ulp of 1, times |z|
    torch.testing.assert_close(y.double(), value.detach(), rtol=1e-5, atol=atol)
    torch.testing.assert_close(d.double(), derivative, rtol=1e-5, atol=3e-7)  # 1 - y * y of the saved float32 output


@pytest.mark.parametrize(
    ("without", "message"),
    [("cp.async.wait_group", "no wait between"), ("bar.sync", "no wait between|no barrier between")],
)
def test_a_missing_wait_is_an_error(without: str, message: str, as_ptx: Callable[..., list[str]]) -> None:
    layer = CASES["linear-one-output"][0]
    x, weight, bias = operands(CASES["linear-one-output"])
    as_ptx("random", without)
    with pytest.raises(ptx.PtxError, match=message):
        kernel(layer, "forward", "ieee")(x, weight, bias)


@pytest.mark.parametrize(
    ("target", "precision", "without", "message"),
    [
        ("sm_90", "tf32", "wgmma.wait_group", "a product under way"),
        ("sm_90", "tf32", "wgmma.fence", "a product with no wgmma.fence before"),
        ("sm_90", "tf32", "fence.proxy.async", "no fence.proxy.async after its write"),
        ("sm_90", "tf32", "bar.sync", "no barrier between"),
        ("sm_90", "tf32", "cp.async.wait_group", "no wait between"),
        ("sm_100", "bf16", "tcgen05.wait::ld", "no tcgen05.wait::ld between"),
        ("sm_100", "bf16", "tcgen05.wait::st", "of tensor memory, to which thread .* stores: no wait between"),
        ("sm_100", "bf16", "tcgen05.commit", "waits for a phase of the mbarrier .* that does not complete"),
        ("sm_100", "bf16", "tcgen05.dealloc", "columns of tensor memory that nobody returns"),
        ("sm_100", "bf16", "mbarrier.try_wait", "a product under way"),
        ("sm_100", "bf16", "fence.proxy.async", "no fence.proxy.async after its write"),
        ("sm_100", "bf16", "bar.sync", "no barrier between|no wait between"),
    ],
)
def test_a_missing_step_of_large_tiles_is_an_error(
    target: str, precision: str, without: str, message: str, as_ptx: Callable[..., list[str]]
) -> None:
    layer = LARGE["linear"][0]
    x, weight, bias = operands(LARGE["linear"])
    as_ptx("random", without, target)
    with pytest.raises(ptx.PtxError, match=message):
        kernel(layer, "forward", precision)(x, weight, bias)


@pytest.mark.parametrize(
    ("name", "dtype", "order", "target"),
    [
        ("short", torch.float32, "random", "sm_80"),
        ("several-blocks", torch.float32, "reverse", "sm_80"),
        ("block", torch.bfloat16, "random", "sm_80"),
        ("several-blocks", torch.bfloat16, "forward", "sm_90"),
        ("short", torch.float32, "reverse", "sm_100"),
    ],
)
def test_layer_norm(name: str, dtype: torch.dtype, order: str, target: str, as_ptx: Callable[..., list[str]]) -> None:
    given = norms.operands(norms.CASES[name], dtype)
    u, dy, x, weight, bias = given
    layer, exact = LayerNorm(norms.EPS), norms.statistics(x)
    wanted = norms.expected(given)
    as_ptx(order, target=target)
    y, statistics = kernel(layer, "forward")(x, weight, bias)
    assert_close(statistics, exact, "task-layer")
    actual = (
        *(y, kernel(layer, "backward_data")(dy, x, weight, statistics)),
        *kernel(layer, "backward_weights")(dy, x, statistics),
        *kernel(layer, "backward_twice")(u, dy, x, weight, statistics),
    )
    for field, a, b in zip(norms.Expected._fields, actual, wanted, strict=True):
        assert a.dtype == dtype
        twice = "layer-norm-twice" if field.startswith("dd") else "task-layer"
        assert_close(a, b, twice if dtype == torch.float32 else "task-layer-reduced")
