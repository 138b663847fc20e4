"""MAML through a gradient penalty with normalisation: third derivatives, which PyTorch's own norms get wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrizations, parametrize

import metagan_fast as mgf
from metagan_fast.executors.torch.exact_norms import ExactNorms, ExactWeightNorm
from networks import tiny_batch, with_norms_by_hand
from support import assert_close


class OneByOne(nn.Module):
    """Rule vmap out by data-dependent control flow."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().sum()) < 1e300 else 2 * x


NORMS: dict[str, nn.Module] = {
    "layer": nn.LayerNorm([3, 8, 8], eps=1e-2),
    "batch": nn.BatchNorm2d(3, eps=1e-2),
    "instance": nn.InstanceNorm2d(3, eps=1e-2, affine=True),
}


def meta_gradient(norm: nn.Module, parts: tuple[nn.Module, ...], more: list[nn.Module]) -> mgf.MetaGradient:
    torch.manual_seed(1)
    generator = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)), nn.Tanh())
    discriminator = nn.Sequential(parts[0], *more, norm, nn.Tanh(), nn.Flatten(), parts[1])
    inner = mgf.InnerLoop(lr=0.05, steps=2)
    learner = mgf.MetaGAN(
        *(network.double() for network in (generator, discriminator)),
        latent_dim=4,
        inner=inner,
        meta=mgf.MAML(),
        executor="torch",
        loss="wgan-gp",
    )
    batch = tiny_batch(tasks=2, query=2)
    return learner.meta_gradient(batch, noise=learner.draw_noise(batch))


@pytest.mark.parametrize("vectorized", [True, False], ids=["vmap", "one-by-one"])
@pytest.mark.parametrize("name", NORMS)
def test_meta_gradients(name: str, vectorized: bool) -> None:
    norm = NORMS[name]
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    parts = (nn.Conv2d(1, 3, 3, padding=1), nn.Linear(192, 1))
    more: list[nn.Module] = [] if vectorized else [OneByOne()]
    actual = meta_gradient(norm, parts, more)
    wanted = meta_gradient(with_norms_by_hand(norm), parts, more)
    assert_close(actual.generator, wanted.generator, "float64-parity")
    assert_close(actual.discriminator, wanted.discriminator, "float64-parity")


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "layer": lambda x, w, b: F.layer_norm(x, x.shape[1:], w[0], b[0], 1e-2),
    "layer-rows": lambda x, w, b: w[..., :1, :] * F.layer_norm(x, x.shape[-1:]) + b,
    "batch": lambda x, w, b: F.batch_norm(x, None, None, w[0, :, 0, 0], b[0, :, 0, 0], training=True),
    "instance": lambda x, w, b: F.instance_norm(x, weight=w[0, :, 0, 0], bias=b[0, :, 0, 0], eps=1e-2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_third_derivatives(name: str) -> None:
    norm = FUNCTIONS[name]
    x, weight, bias = (torch.randn(n, 2, 2, 3, dtype=torch.float64, requires_grad=True) for n in (3, 1, 1))
    with ExactNorms():
        exact = norm(x, weight, bias)
    assert_close(exact, norm(x, weight, bias), "float64-rounding")

    def second(*leaves: Tensor) -> tuple[Tensor, ...]:
        with ExactNorms():
            loss = norm(*leaves).tanh().sum()
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        squares = torch.stack([g.pow(2).sum() for g in gradients]).sum()
        return torch.autograd.grad(squares, leaves, create_graph=True)

    assert gradcheck(second, (x, weight, bias), fast_mode=True)


def test_running_statistics_and_wrong_shapes_are_pytorchs() -> None:
    norm, x = nn.BatchNorm2d(2), torch.randn(3, 2, 4, 4)
    with ExactNorms():
        norm(x)
        with pytest.raises(RuntimeError, match="normalized_shape"):
            F.layer_norm(x, (5,))
    assert norm.num_batches_tracked == 1 and norm.running_mean.any()


def row_norms(v: Tensor, dim: int) -> Tensor:
    """Return the norm of each slice along `dim`, or of all of `v` if `dim` is -1."""
    return v.pow(2).sum([d for d in range(v.ndim) if d != dim], keepdim=dim != -1).sqrt()


class WeightNormByHand(nn.Module):
    """The parametrization of `torch.nn.utils.parametrizations.weight_norm` from elementary operations."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return v * g / row_norms(v, self.dim)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return row_norms(weight, self.dim), weight


@pytest.mark.usefixtures("float64_default")
def test_meta_gradients_through_weight_norm() -> None:
    def by_hand(layer: nn.Module) -> nn.Module:
        parametrize.register_parametrization(layer, "weight", WeightNormByHand(0))
        return layer

    gradients = []
    for normed in (parametrizations.weight_norm, by_hand):
        torch.manual_seed(1)
        generator = nn.Sequential(normed(nn.Linear(4, 64)), nn.Unflatten(1, (1, 8, 8)), nn.Tanh())
        discriminator = nn.Sequential(normed(nn.Conv2d(1, 3, 3)), nn.Tanh(), nn.Flatten(), normed(nn.Linear(108, 1)))
        learner = mgf.MetaGAN(
            generator,
            discriminator,
            latent_dim=4,
            inner=mgf.InnerLoop(lr=0.05, steps=3),
            meta=mgf.MAML(),
            executor="torch",
            loss="non-saturating",
        )
        gradients.append(learner.meta_gradient(tiny_batch(tasks=2, query=2)))
    actual, wanted = gradients
    assert_close(actual.generator, wanted.generator, "float64-parity")
    assert_close(actual.discriminator, wanted.discriminator, "float64-parity")


@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_second_derivatives_of_weight_norm(dim: int) -> None:
    v = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    g = row_norms(v, dim).detach().mul(1.5).requires_grad_()

    def weight(v: Tensor, g: Tensor) -> Tensor:
        with ExactWeightNorm():
            return torch._weight_norm(v, g, dim)

    assert_close(weight(v, g), torch._weight_norm(v, g, dim), "float64-rounding")
    assert gradgradcheck(weight, (v, g))
