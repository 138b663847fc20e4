"""MAML through a gradient penalty with normalisation: third derivatives, which PyTorch's own norms get wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck

import metagan_fast as mgf
from metagan_fast.executors.exact_norms import ExactNorms
from networks import tiny_batch
from support import assert_close


class ByHand(nn.Module):
    """A norm of `[n, c, h, w]` over `dims` from elementary operations, with parameters of the shape of `weight`."""

    def __init__(self, norm: nn.Module, dims: tuple[int, ...], align: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(norm.weight.detach()), nn.Parameter(norm.bias.detach())
        self.dims, self.align, self.eps = dims, align, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(self.dims, keepdim=True)
        deviation = (centred.pow(2).mean(self.dims, keepdim=True) + self.eps).pow(0.5)
        return centred / deviation * self.weight.view(self.align) + self.bias.view(self.align)


class OneByOne(nn.Module):
    """Keep vmap out, by a decision that depends on data."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().sum()) < 1e300 else 2 * x


NORMS: dict[str, tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = {
    "layer": (nn.LayerNorm([3, 8, 8], eps=1e-2), (1, 2, 3), (3, 8, 8)),
    "batch": (nn.BatchNorm2d(3, eps=1e-2), (0, 2, 3), (3, 1, 1)),
    "instance": (nn.InstanceNorm2d(3, eps=1e-2, affine=True), (2, 3), (3, 1, 1)),
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
    norm, dims, align = NORMS[name]
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    parts = (nn.Conv2d(1, 3, 3, padding=1), nn.Linear(192, 1))
    more: list[nn.Module] = [] if vectorized else [OneByOne()]
    actual = meta_gradient(norm, parts, more)
    wanted = meta_gradient(ByHand(norm, dims, align), parts, more)
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
