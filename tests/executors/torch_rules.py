"""Rules that the package keeps because transforms of PyTorch are wrong: the results of both.

`python torch_rules.py` prints a verdict on PyTorch for each rule as JSON; a rule is needed unless that is "right". The
truth is double backward through elementary operations in float64, or a closed form.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import metagan_fast as mgf
from metagan_fast import functional
from metagan_fast.executors.torch.exact_norms import ExactNorms, ExactWeightNorm
from networks import normalise, tiny_batch, with_norms_by_hand
from support import relative_error

EPS = 1e-2


class Rule(NamedTuple):
    """A rule: `theirs` and `ours` return relative errors of a result, PyTorch's own and the package's."""

    name: str
    theirs: Callable[[], float]
    ours: Callable[[], float]


def verdict(rule: Rule) -> str:
    """Return what PyTorch's own way is: "right", "wrong" (silently), or "raises"."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "right" if rule.theirs() < 1e-6 else "wrong"
    except Exception:  # an unsupported composition may raise anything
        return "raises"


def draw(*shape: int) -> Tensor:
    """Return normal draws in float64, the same for the same shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


NORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], nn.Module]] = {
    "LayerNorm": (
        lambda x: F.layer_norm(x, (3, 4, 4), eps=EPS),
        lambda x: normalise(x, (1, 2, 3), EPS),
        nn.LayerNorm([3, 8, 8], eps=EPS),
    ),
    "BatchNorm2d": (
        lambda x: F.batch_norm(x, None, None, training=True, eps=EPS),
        lambda x: normalise(x, (0, 2, 3), EPS),
        nn.BatchNorm2d(3, eps=EPS),
    ),
    "InstanceNorm2d": (
        lambda x: F.instance_norm(x, eps=EPS),
        lambda x: normalise(x, (2, 3), EPS),
        nn.InstanceNorm2d(3, eps=EPS, affine=True),
    ),
}
"""Each norm as PyTorch's function, by hand, and as a module for the executors."""


def tangent_gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the gradient of a directional derivative, by reverse over forward."""
    x, v = draw(5, 3, 4, 4), draw(5, 3, 4, 4).flip(0)
    return torch.func.grad(lambda y: torch.func.jvp(lambda z: function(z).tanh().sum(), (y,), (v,))[1])(x)


def derivative(function: Callable[[Tensor], Tensor], x: Tensor, order: int) -> Tensor:
    """Return the gradient of a scalar made of all derivatives up to `order - 1`, by repeated backward."""
    x = x.clone().requires_grad_()
    value = function(x).tanh().sum()
    for _ in range(order - 1):
        value = grad(value, x, create_graph=True)[0].pow(2).sum()
    return grad(value, x)[0]


def by_double_backward(function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what `tangent_gradient` should, by two reverse passes."""
    x, v = draw(5, 3, 4, 4).requires_grad_(), draw(5, 3, 4, 4).flip(0)
    first = grad(function(x).tanh().sum(), x, create_graph=True)[0]
    return grad((first * v).sum(), x)[0]


def learner(norm: nn.Module | None, activation: nn.Module, meta: mgf.MAML | mgf.Reptile) -> mgf.MetaGAN:
    """Return a float64 learner of WGAN-GP on the torch executor."""
    torch.manual_seed(1)
    generator = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)), nn.Tanh())
    norms = [] if norm is None else [norm]
    parts = nn.Conv2d(1, 3, 3, padding=1), *norms, activation, nn.Flatten(), nn.Linear(192, 1)
    networks = (network.double() for network in (generator, nn.Sequential(*parts)))
    inner = mgf.InnerLoop(lr=0.05, steps=2)
    return mgf.MetaGAN(*networks, latent_dim=4, inner=inner, meta=meta, executor="torch", loss="wgan-gp")


def max_error(actual: mgf.MetaGradient, wanted: mgf.MetaGradient) -> float:
    """Return the larger relative error of both networks' meta-gradients."""
    errors = (relative_error(getattr(actual, role), getattr(wanted, role)) for role in ("generator", "discriminator"))
    return max(errors)


def meta_gradient_error(norm: nn.Module, meta: mgf.MAML | mgf.Reptile) -> float:
    """Compare a discriminator's meta-gradient with that of the same network whose norm is by hand."""
    batch = tiny_batch(tasks=2, query=2)
    actual, wanted = (learner(x, nn.Tanh(), meta).meta_gradient(batch) for x in (norm, with_norms_by_hand(norm)))
    return max_error(actual, wanted)


def exact(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def overridden(x: Tensor) -> Tensor:
        with ExactNorms(), ExactWeightNorm():
            return function(x)

    return overridden


def norm_rules(name: str) -> list[Rule]:
    theirs, by_hand, module = NORMS[name]
    x = draw(3, 3, 4, 4)
    return [
        Rule(
            f"{name}: reverse over forward",
            lambda: relative_error(tangent_gradient(theirs), by_double_backward(by_hand)),
            lambda: meta_gradient_error(module, mgf.Reptile()),
        ),
        Rule(
            f"{name}: third derivatives",
            lambda: relative_error(derivative(theirs, x, 3), derivative(by_hand, x, 3)),
            lambda: max(
                relative_error(derivative(exact(theirs), x, 3), derivative(by_hand, x, 3)),
                meta_gradient_error(module, mgf.MAML()),
            ),
        ),
    ]


def weight_norm(v: Tensor) -> Tensor:
    return torch._weight_norm(v, torch.ones(3, 1, dtype=v.dtype), 0)


def weight_norm_by_hand(v: Tensor) -> Tensor:
    return v / v.pow(2).sum(1, keepdim=True).pow(0.5)


def silu_error() -> float:
    """Compare an inner step through SiLU with one through its definition."""

    class ByHand(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    batch = tiny_batch(tasks=2, query=2)
    actual, wanted = (learner(None, x, mgf.Reptile()).meta_gradient(batch) for x in (nn.SiLU(), ByHand()))
    return max_error(actual, wanted)


@torch.library.custom_op("torch_rules::cube", mutates_args=())
def cube(x: Tensor) -> Tensor:
    """Return x**3: a custom op with `register_autograd`."""
    return x * x * x


cube.register_fake(torch.empty_like)
cube.register_vmap(lambda info, in_dims, x: (cube(x), in_dims[0]))
cube.register_autograd(
    lambda ctx, g: g * 3 * ctx.saved_tensors[0] ** 2,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


@torch.library.custom_op("torch_rules::double_", mutates_args={"x"})
def double_(x: Tensor) -> None:
    """Double the argument in place: a custom op without a derivative."""
    x.mul_(2)


def registered_derivative() -> float:
    x = draw(3, 5)
    return relative_error(torch.func.vmap(torch.func.grad(lambda y: cube(y).sum()))(x), 3 * x**2)


def op_derivative() -> float:
    """Compare `vmap(grad)` through a fused op with its closed form."""
    x = draw(3, 5)
    mapped = torch.func.vmap(torch.func.grad(lambda y: functional.sgd_step(y, y**3, 0.1).sum()))(x)
    return relative_error(mapped, 1 - 0.3 * x**2)


def mutated_derivative() -> float:
    """Differentiate through an op that doubles in place; the derivative is 2."""
    x = draw(5).requires_grad_()
    y = x * 1.0
    double_(y)
    return relative_error(grad(y.sum(), x)[0], torch.full_like(x, 2))


def twin_refuses() -> float:
    """Return 0 if an in-place twin refuses an input that requires grad."""
    x = draw(5).requires_grad_() * 1.0
    try:
        functional.sgd_step_(x, draw(5), 0.1)
    except RuntimeError:
        return 0.0
    return float("inf")


RULES: tuple[Rule, ...] = (
    *(rule for name in NORMS for rule in norm_rules(name)),
    Rule(
        "weight norm: second derivatives",
        lambda: relative_error(derivative(weight_norm, draw(3, 5), 2), derivative(weight_norm_by_hand, draw(3, 5), 2)),
        lambda: relative_error(
            derivative(exact(weight_norm), draw(3, 5), 2), derivative(weight_norm_by_hand, draw(3, 5), 2)
        ),
    ),
    Rule(
        "SiLU: reverse over forward",
        lambda: relative_error(tangent_gradient(F.silu), by_double_backward(lambda x: x * torch.sigmoid(x))),
        silu_error,
    ),
    Rule("`register_autograd` under `vmap(grad)`", registered_derivative, op_derivative),
    Rule("gradient through a mutating custom op", mutated_derivative, twin_refuses),
)


if __name__ == "__main__":
    print(json.dumps({rule.name: verdict(rule) for rule in RULES}))
