"""GAN losses and penalties against autograd, their definitions and each other."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from metagan_fast import losses
from tolerances import tolerance

CLOSE = {"rtol": tolerance("float64-rounding"), "atol": tolerance("float64-rounding")}
VARIANTS: list[losses.Loss] = [
    *(losses.get(name) for name in losses.NAMES),
    losses.LeastSquares(-1.0, 1.0, 0.0),
    losses.WGAN(clip=None),
]
PENALTIES: list[losses.Penalty] = [
    losses.GradientPenalty(3.0),
    losses.GradientPenalty(3.0, "pixel"),
    losses.ZeroCenteredPenalty(3.0),
]


def scores(shape: tuple[int, ...], seed: int, scale: float) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def identify(value: Any) -> str:
    return str(value)


@pytest.mark.parametrize("loss", VARIANTS, ids=identify)
def test_derivatives_and_transforms(loss) -> None:
    real, fake = scores((3, 4), 1, 2.0).requires_grad_(), scores((3, 5), 2, 2.0).requires_grad_()
    assert loss.discriminator_loss(real, fake).shape == loss.generator_loss(fake, real).shape == (3,)
    assert torch.autograd.gradcheck(loss.discriminator_loss, (real, fake))
    assert torch.autograd.gradgradcheck(loss.discriminator_loss, (real, fake))
    assert torch.autograd.gradcheck(loss.generator_loss, (fake, real))
    assert torch.autograd.gradgradcheck(loss.generator_loss, (fake, real))

    by_real, by_fake = torch.autograd.grad(loss.discriminator_loss(real, fake).sum(), (real, fake))
    (by_generated,) = torch.autograd.grad(loss.generator_loss(fake, real).sum(), fake)
    real, fake = real.detach(), fake.detach()
    torch.testing.assert_close(vmap(loss.discriminator_loss)(real, fake), loss.discriminator_loss(real, fake), **CLOSE)
    torch.testing.assert_close(vmap(loss.generator_loss)(fake, real), loss.generator_loss(fake, real), **CLOSE)
    torch.testing.assert_close(vmap(grad(loss.discriminator_loss))(real, fake), by_real, **CLOSE)
    torch.testing.assert_close(vmap(grad(loss.generator_loss))(fake, real), by_generated, **CLOSE)
    tangent = jvp(loss.discriminator_loss, (real, fake), (real, fake))[1]
    torch.testing.assert_close(tangent, (by_real * real).sum(-1) + (by_fake * fake).sum(-1), **CLOSE)


@pytest.mark.parametrize("loss", VARIANTS, ids=identify)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_scores_stay_finite(loss, dtype) -> None:
    real = torch.tensor([1e4, -1e4, 0.0], dtype=dtype, requires_grad=True)
    fake = torch.tensor([-1e4, 1e4, 1e3], dtype=dtype, requires_grad=True)
    value = loss.discriminator_loss(real, fake) + loss.generator_loss(fake, real)
    gradients = torch.autograd.grad(value, (real, fake), create_graph=True)
    weighted = (gradients[0] * real).sum() + (gradients[1] * fake).sum()
    second = torch.autograd.grad(weighted, (real, fake))
    for tensor in (value, *gradients, *second):
        assert tensor.dtype == dtype
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("f", [[2.5, -0.4], [2.5, -0.4, 0.9]], ids=["as-many", "more-fake"])
def test_definitions(f: list[float]) -> None:
    """Each loss at two real scores and some fake ones equals the formula in plain floats."""
    r = [0.3, -1.7]

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def mean(values: Iterable[float]) -> float:
        return statistics.fmean(values)

    log, r_mean, f_mean = math.log, mean(r), mean(f)
    pairs = list(zip((r + r)[: len(f)], f, strict=True))  # real scores in turn
    standard = -mean(log(sigmoid(x)) for x in r) - mean(log(1 - sigmoid(x)) for x in f)
    expected = {
        "minimax": (standard, mean(log(1 - sigmoid(x)) for x in f)),
        "non-saturating": (standard, -mean(log(sigmoid(x)) for x in f)),
        "r1": (standard, -mean(log(sigmoid(x)) for x in f)),
        "hinge": (mean(max(0, 1 - x) for x in r) + mean(max(0, 1 + x) for x in f), -f_mean),
        "least-squares": (
            mean((x - 1) ** 2 / 2 for x in r) + mean(x**2 / 2 for x in f),
            mean((x - 1) ** 2 / 2 for x in f),
        ),
        "wgan": (f_mean - r_mean, -f_mean),
        "wgan-gp": (f_mean - r_mean, -f_mean),
        "figr": ((r_mean - f_mean) / 2, f_mean),
        "relativistic-average": (
            -mean(log(sigmoid(x - f_mean)) for x in r) - mean(log(1 - sigmoid(x - r_mean)) for x in f),
            -mean(log(sigmoid(x - r_mean)) for x in f) - mean(log(1 - sigmoid(x - f_mean)) for x in r),
        ),
        "relativistic-paired": (
            -mean(log(sigmoid(x - y)) for x, y in pairs),
            -mean(log(sigmoid(y - x)) for x, y in pairs),
        ),
    }
    assert set(expected) == set(losses.NAMES)
    real, fake = torch.tensor(r, dtype=torch.float64), torch.tensor(f, dtype=torch.float64)
    for name, (discriminator, generator) in expected.items():
        loss = losses.get(name)
        assert float(loss.discriminator_loss(real, fake)) == pytest.approx(discriminator, rel=1e-12)
        assert float(loss.generator_loss(fake, real)) == pytest.approx(generator, rel=1e-12)


def test_least_squares_labels() -> None:
    loss = losses.get("least-squares", fake_label=-1.0, real_label=1.0, generator_label=0.0)
    real, fake = torch.tensor([2.0]), torch.tensor([1.0])
    assert float(loss.discriminator_loss(real, fake)) == 0.5 + 2.0
    assert float(loss.generator_loss(fake)) == 0.5


def test_the_derivative_at_a_kink_of_the_hinge_is_0() -> None:
    real, fake = torch.tensor([1.0], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
    for gradient in torch.autograd.grad(losses.Hinge().discriminator_loss(real, fake), (real, fake)):
        assert gradient.item() == 0


@pytest.mark.parametrize("penalty", PENALTIES, ids=identify)
def test_penalty_derivatives_and_transforms(penalty) -> None:
    gradient = scores((2, 2, 2, 3, 2), 0, 1.0).requires_grad_()
    assert torch.autograd.gradcheck(penalty.value, gradient)
    assert torch.autograd.gradgradcheck(penalty.value, gradient)
    (expected,) = torch.autograd.grad(penalty.value(gradient).sum(), gradient)
    plain = gradient.detach()
    torch.testing.assert_close(vmap(penalty.value)(plain), penalty.value(plain), **CLOSE)
    torch.testing.assert_close(vmap(grad(penalty.value))(plain), expected, **CLOSE)
    torch.testing.assert_close(
        jvp(penalty.value, (plain,), (plain,))[1],
        (expected * plain).sum((1, 2, 3, 4)),
        **CLOSE,
    )


@pytest.mark.parametrize("penalty", PENALTIES, ids=identify)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 1e-30, 1e-22, 1e-17, 1e-15, 1e-10])
def test_vanishing_gradients_have_finite_derivatives_of_every_order(penalty, size) -> None:
    gradient = torch.full((3, 2, 2, 2), size)
    gradient[0] = torch.randn(2, 2, 2)
    gradient.requires_grad_()
    (first,) = torch.autograd.grad(penalty.value(gradient), gradient, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), gradient, create_graph=True)
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()
    if size == 0 and penalty.name == "gradient":
        assert torch.count_nonzero(first[1:]) == 0
        assert torch.count_nonzero(second[1:]) == 0


def test_penalty_definitions() -> None:
    gradient = scores((4, 2, 3, 3), 5, 1.0)
    per_sample = sum((float(g.norm()) - 1) ** 2 for g in gradient) / 4
    per_pixel = float(((gradient.norm(2, dim=1) - 1) ** 2).mean())
    zero_centered = sum(float(g.norm()) ** 2 for g in gradient) / 4
    value = {name: losses.get(name).penalty.value(gradient).item() for name in ("wgan-gp", "figr", "r1")}
    assert value["wgan-gp"] == pytest.approx(10 * per_sample, rel=1e-12)
    assert value["figr"] == pytest.approx(10 * per_pixel, rel=1e-12)
    assert value["r1"] == pytest.approx(5 * zero_centered, rel=1e-12)


@pytest.mark.parametrize("norm", ["sample", "pixel"])
def test_penalty_reaches_the_parameters_as_the_norm_of_torch_does(norm) -> None:
    """A penalty's gradient by the parameters equals autograd's through torch.norm."""
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(12, 1))
    network.double()
    x = scores((4, 2, 4, 4), 0, 1.0).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    plain = gradient.norm(2, dim=1) if norm == "pixel" else gradient.flatten(1).norm(2, dim=1)
    expected = torch.autograd.grad(
        7 * ((plain - 1) ** 2).mean(), network.parameters(), retain_graph=True, allow_unused=True
    )
    penalty = losses.GradientPenalty(7.0, norm)
    ours = torch.autograd.grad(penalty.value(gradient), network.parameters(), retain_graph=True, allow_unused=True)
    for theirs, value in zip(expected, ours, strict=True):
        torch.testing.assert_close(value, theirs, **CLOSE)


def test_attributes() -> None:
    assert losses.get("wgan").clip == 0.01
    assert {name for name in losses.NAMES if losses.get(name).clip is not None} == {"wgan"}
    assert {name for name in losses.NAMES if losses.get(name).generator_needs_real} == {
        "relativistic-average",
        "relativistic-paired",
    }
    assert not any(losses.get(name).separate_batches for name in losses.NAMES)
    locations = {name: loss.penalty.location for name in losses.NAMES if (loss := losses.get(name)).penalty}
    assert locations == {"wgan-gp": "interpolate", "figr": "interpolate", "r1": "real"}
    assert losses.ZeroCenteredPenalty(location="fake").location == "fake"


@pytest.mark.parametrize(
    "loss",
    [
        *VARIANTS,
        losses.WGANGP(2.0, "pixel", separate_batches=True),
        losses.Hinge(penalty=losses.ZeroCenteredPenalty(1.0, "fake")),
        losses.WGAN(0.1, penalty=losses.GradientPenalty(norm="pixel")),
    ],
    ids=identify,
)
def test_config_round_trip(loss) -> None:
    assert losses.from_config(json.loads(json.dumps(loss.to_config()))) == loss
    assert losses.get(loss) is loss


def test_r1_by_name_takes_a_weight() -> None:
    expected = losses.NonSaturating(penalty=losses.ZeroCenteredPenalty(3.0), separate_batches=True)
    assert losses.get("r1", weight=3.0, separate_batches=True) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.get("wgangp"), "expected a loss of minimax, .*'wgangp'"),
        (lambda: losses.get(losses.Hinge(), penalty=None), "without options"),
        (lambda: losses.get("hinge", clip=0.1), "'hinge' does not take these options.*clip"),
        (lambda: losses.WGAN(clip=0.0), "clip to be positive or None, got 0"),
        (lambda: losses.WGANGP(-1.0), "weight of at least 0, got -1"),
        (lambda: losses.FIGR(math.nan), "weight of at least 0, got nan"),
        (lambda: losses.WGANGP(penalty_norm="image"), "penalty norm .*'image'"),
        (lambda: losses.ZeroCenteredPenalty(location="interpolate"), "penalty location .*'interpolate'"),
        (lambda: losses.Term("cubic"), "kind of term of linear, .*'cubic'"),
        (lambda: losses.Term("linear", "two"), "factor to be a number"),
        (lambda: losses.Hinge(penalty="r1"), "Penalty object or None, got 'r1'"),
        (lambda: losses.RelativisticAverage().generator_loss(torch.zeros(2)), "expected real_scores too"),
        (
            lambda: losses.Hinge().discriminator_loss(torch.zeros(2, 3), torch.zeros(3)),
            "same leading dimensions",
        ),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
