"""The per-task layers' kernels in Triton's interpreter; `test_triton_interpreter.py` starts this file.

A kernel chooses the interpreter when it is imported, so the tests need a separate process. The interpreter does not
check bounds, so results have canaries around them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from metagan_fast.kernels.layers import task_layer_norm, task_linear, tiles
from torch import Tensor

import task_layer_norm_cases as norms
from metagan_fast.executors.torch.layers.dispatch import kernel
from metagan_fast.executors.torch.layers.task_layer_norm import LayerNorm
from metagan_fast.executors.torch.layers.task_layers import Linear
from support import assert_close
from task_layer_cases import ACTIVATED, ACTIVATIONS, CASES, expected, kept, operands, oracle, slopes

MARGIN, CANARY = 300, 1234.5


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Surround every new tensor with canaries, and check them at the end."""
    buffers: list[Tensor] = []

    original = Tensor.new_empty

    def new_empty(x: Tensor, *shape: int, **options: Any) -> Tensor:
        if options:  # the interpreter's own
            return original(x, *shape, **options)
        numel = torch.Size(shape).numel()
        buffer = torch.full((numel + 2 * MARGIN,), CANARY, dtype=x.dtype)
        buffer[MARGIN:-MARGIN] = torch.nan
        buffers.append(buffer)
        return buffer[MARGIN:-MARGIN].view(shape)

    monkeypatch.setattr(Tensor, "new_empty", new_empty)
    yield
    assert buffers
    for buffer in buffers:
        assert (buffer[:MARGIN] == CANARY).all() and (buffer[-MARGIN:] == CANARY).all()


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "ieee") for name in CASES), ("linear", "tf32"), ("convolution-stride", "tf32")]
)
def test_three_passes(name: str, precision: str) -> None:
    """NumPy multiplies tf32 operands in float32, the oracle of both precisions; their tiles differ."""
    case = CASES[name]
    assert type(task_linear.task_linear_kernel).__name__ == "InterpretedFunction"
    layer = case[0]
    x, weight, bias = operands(case)
    dy = torch.randn_like(oracle(layer, x, weight, bias))
    y, dx, dw, db = expected(case, x, weight, bias, dy)
    assert_close(kernel(layer, "forward", precision)(x, weight, bias), y, "task-layer")
    assert_close(kernel(layer, "backward_data", precision)(dy, weight), dx, "task-layer")
    for actual, wanted in zip(kernel(layer, "backward_weights", precision)(dy, x), (dw, db), strict=True):
        assert_close(actual, wanted, "task-layer")


@pytest.mark.parametrize("name", ACTIVATED)
def test_activations(name: str) -> None:
    """Forward, and backward from its saved results."""
    case = ACTIVATED[name]
    layer = case[0]
    x, weight, bias = operands(case)
    slope = slopes(case)
    dy = torch.randn_like(oracle(layer, x, weight, bias, slope))
    y, dx, *of_weights = expected(case, x, weight, bias, dy, slope)
    kept_exactly = kept(case, x, weight, bias, slope)
    results = kernel(layer, "forward")(x, weight, bias, slope=slope)
    if layer.activation.saves_preactivation:
        results, kept_actually = results
        assert_close(kept_actually, kept_exactly, "task-layer")
    assert_close(results, y, "task-layer")
    through = {"saved": kept_exactly, "slope": slope}
    assert_close(kernel(layer, "backward_data")(dy, weight, **through), dx, "task-layer")
    for actual, wanted in zip(kernel(layer, "backward_weights")(dy, x, **through), of_weights, strict=True):
        assert_close(actual, wanted, "task-layer")


def test_activations_far_from_zero_and_close_to_it(guarded: None) -> None:
    """Elements of every size, one by one: no overflow, no cancellation; an exponential of -87 is right to 87 ulp."""
    z = torch.cat([torch.logspace(-12, 3, 301), -torch.logspace(-12, 3, 301), torch.zeros(1)]).view(1, -1, 1)
    one = torch.ones(1, 1, 1)
    for activation, function in ACTIVATIONS.items():
        slope = torch.full((1, 1), 0.3) if activation.name == "prelu" else None
        results = kernel(Linear(activation), "forward")(z, one, None, slope=slope)
        y = results[0] if isinstance(results, tuple) else results
        exact = function(z.double(), *(() if slope is None else (slope[0].double(),)))
        atol = 1e-7 if activation.name == "gelu" else 1e-30  # in its tail 1 + erf cancels, as in PyTorch
        torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=atol, msg=lambda m, a=activation: f"{a}: {m}")


@pytest.mark.parametrize("name", ["linear", "convolution-stride", "transposed"])
def test_no_bias_and_operands_that_lie_anyhow(name: str) -> None:
    case = CASES[name]
    x, weight, bias = operands(case)
    y, *_ = expected(case, x, weight, torch.zeros_like(bias))
    forward = kernel(case[0], "forward", "ieee")
    assert_close(forward(x, weight, None), y, "task-layer")
    assert_close(forward(x.mT.contiguous().mT, weight.mT.contiguous().mT, None), y, "task-layer")
    shared = x[:1].expand_as(x)  # a task stride of zero
    assert_close(forward(shared, weight, None), expected(case, shared, weight, torch.zeros_like(bias))[0], "task-layer")


def test_too_many_rows_are_refused(guarded: None) -> None:
    x = torch.zeros(1, 1, 1).new_empty(1, 1, 1)
    with pytest.raises(ValueError, match=r"2\*\*31"):
        tiles.launch(None, 1, (2**31, 1, 1), (x,), PRECISION="ieee")


def norm_passes(given: norms.Operands, statistics: Tensor, *, bias: bool = True) -> tuple[Tensor, ...]:
    """Return the results of every pass, in the order of `norms.Expected`."""
    layer = LayerNorm(norms.EPS)
    u, dy, x, weight, b = given
    y, found = kernel(layer, "forward")(x, weight, b if bias else None)
    assert_close(found, statistics, "task-layer")
    return (
        *(y, kernel(layer, "backward_data")(dy, x, weight, found)),
        *kernel(layer, "backward_weights")(dy, x, found),
        *kernel(layer, "backward_twice")(u, dy, x, weight, found),
    )


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        *((name, torch.float32, "task-layer") for name in norms.CASES),
        ("short", torch.float64, "float64-rounding"),
        ("several-blocks", torch.float64, "float64-rounding"),
        ("block", torch.bfloat16, "task-layer-reduced"),
    ],
)
def test_layer_norm(name: str, dtype: torch.dtype, tolerance: str) -> None:
    given = norms.operands(norms.CASES[name], dtype)
    actual = norm_passes(given, norms.statistics(given.x))
    for name, a, b in zip(norms.Expected._fields, actual, norms.expected(given), strict=True):
        assert a.dtype == dtype
        assert_close(a, b, "layer-norm-twice" if name.startswith("dd") and tolerance == "task-layer" else tolerance)


def test_layer_norm_of_operands_that_lie_anyhow() -> None:
    drawn = norms.operands(norms.CASES["short"])
    shared = drawn.x[:1].expand_as(drawn.x)  # a task stride of zero
    apart = norms.Operands(drawn.u.mT.contiguous().mT, drawn.dy.mT.contiguous().mT, shared, *drawn[3:])
    statistics = norms.statistics(shared)
    wanted = norms.expected(apart._replace(bias=torch.zeros_like(apart.bias)))
    for a, b in zip(norm_passes(apart, statistics, bias=False), wanted, strict=True):
        assert_close(a, b, "layer-norm-twice")


def test_layer_norm_of_one_element_is_its_bias() -> None:
    given = norms.operands(norms.Case(2, 2, 1))
    y, dx, dw, db, ddy, *_ = norm_passes(given, norms.statistics(given.x))
    assert torch.equal(y, given.bias.unsqueeze(1).expand_as(y))
    assert not dx.any() and not dw.any() and not ddy.any()
    assert torch.equal(db, given.dy.sum(1))


def test_inputs_too_long_for_32_bits_are_refused(guarded: None) -> None:
    x = torch.zeros(1, 1, 1).new_empty(1, 1, 1)
    with pytest.raises(ValueError, match=r"2\*\*31"):
        task_layer_norm._launch(None, x.expand(1, 1, 2**31), 1, 1, ())
