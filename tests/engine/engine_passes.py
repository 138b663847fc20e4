"""The four passes of a layer or a network, by the engine and by PyTorch's double backward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from layer_cases import Case
from metagan_fast import _native
from metagan_fast.executors.native.lowering import make_plan
from metagan_fast.flat import FlatLayout
from support import relative_error
from tolerances import tolerance

READ = ("params", "params_tangent", "inputs", "inputs_tangent", "output_cotangent", "tangent_cotangent")
WRITTEN = ("outputs", "outputs_tangent", "inputs_cotangent", "inputs_tangent_cotangent", "params_gradient")
UNPAIRED_READ = ("params", "inputs", "output_cotangent")
UNPAIRED = ("outputs", "inputs_cotangent", "params_gradient")

Passes = dict[str, Tensor]


def draw_passes(case: Case) -> Passes:
    """Return random float32 inputs of the passes; parameters lie near the module's own."""
    layout = FlatLayout.from_module(case.module)

    def draw_params() -> Tensor:
        return layout.flatten({slot.name: torch.randn(slot.shape) for slot in layout.slots})  # zero in the padding

    params = layout.flatten(case.module) + 0.05 * draw_params()
    inputs = torch.randn(case.images, *case.input_shape)
    output = functional_call(case.module, layout.views(params), (inputs.clone(),))
    return {
        "params": params,
        "params_tangent": draw_params(),
        "inputs": inputs,
        "inputs_tangent": torch.randn_like(inputs),
        "output_cotangent": torch.randn_like(output),
        "tangent_cotangent": torch.randn_like(output),
    }


def plan_of(case: Case) -> dict[str, Any]:
    """Return the engine's plan of a network."""
    return make_plan(case.module, FlatLayout.from_module(case.module), case.input_shape).to_core()


def engine_passes(
    case: Case,
    given: Passes,
    *,
    paired: bool = True,
    threads: int = 1,
    precision: str = "float32",
    plan: dict[str, Any] | None = None,
) -> Passes:
    """Return the engine's results, by the given plan or a new one."""
    call = _native.EngineCall(images=case.images, threads=threads, paired=int(paired))
    shapes = dict(zip(WRITTEN, (READ[4], READ[4], READ[2], READ[2], READ[0]), strict=True))
    for name in READ:
        call.read(name, given[name] if paired or name in UNPAIRED_READ else None, *given[name].shape)
    written = {name: call.write(name, *given[shapes[name]].shape).zero_() for name in WRITTEN}
    _native._core.network_passes(plan or plan_of(case), call.arguments, precision)
    return {name: written[name] for name in (WRITTEN if paired else UNPAIRED)}


def autograd_passes(case: Case, given: Passes, dtype: torch.dtype = torch.float64) -> Passes:
    """Return the same passes by PyTorch's double backward.

    Forward mode is not needed: <y_tilde, y_dot> is linear in y_tilde, and a product with a backward pass.
    """
    exact = {name: given[name].to(dtype).requires_grad_() for name in READ}
    params, inputs = exact["params"], exact["inputs"]
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    module = copy.deepcopy(case.module).to(dtype)
    outputs = functional_call(module, FlatLayout.from_module(module).views(params), (inputs.clone(),))

    def paired(cotangent: Tensor) -> Tensor:
        gradients = torch.autograd.grad(outputs, (params, inputs), cotangent, create_graph=True, **options)
        directions = (exact["params_tangent"], exact["inputs_tangent"])
        return sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))

    direction = torch.zeros_like(outputs, requires_grad=True)
    (outputs_tangent,) = torch.autograd.grad(paired(direction), direction, **options)
    total = (outputs * exact["output_cotangent"]).sum() + paired(exact["tangent_cotangent"])
    gradients = torch.autograd.grad(total, (inputs, exact["inputs_tangent"], params), **options)
    return dict(zip(WRITTEN, (outputs, outputs_tangent, *gradients), strict=True))


def unpaired_autograd(case: Case, given: Passes, dtype: torch.dtype = torch.float64) -> Passes:
    """Return outputs and first derivatives."""
    still = {name: value if name in UNPAIRED_READ else torch.zeros_like(value) for name, value in given.items()}
    passes = autograd_passes(case, still, dtype)
    return {name: passes[name] for name in UNPAIRED}


def assert_passes(found: Passes, exact: Passes, rounded: Passes) -> None:
    """Assert that each result is within the tolerance, or a multiple of float32 autograd's distance from float64."""
    for name, expected in exact.items():
        bound = max(
            tolerance("engine-layer"), tolerance("engine-times-float32") * relative_error(rounded[name], expected)
        )
        error = relative_error(found[name], expected)
        assert error <= bound, f"{name}: relative error {error:.2e} exceeds {bound:.2e}"


class Bf16Operands(TorchFunctionMode):
    """Rounds to bf16 the operands of every matrix product and convolution, and of products in derivatives of any order.

    All else, sums included, stays in the dtype at hand.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in (F.linear, F.conv2d, F.conv_transpose2d):
            return func(*args, **(kwargs or {}))
        x, weight, bias, *options = args
        y = _RoundCotangent.apply(func(_Round.apply(x), _Round.apply(weight), None, *options))
        return y if bias is None else y + (bias if func is F.linear else bias[:, None, None])


class _Round(torch.autograd.Function):
    """Round to bf16 in the forward pass; pass cotangents through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.bfloat16().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return _RoundCotangent.apply(cotangent)


class _RoundCotangent(torch.autograd.Function):
    """Pass through in the forward pass; round cotangents, the operands of a product's derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return _Round.apply(cotangent)
