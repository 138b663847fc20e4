"""Networks: shapes, structure, tracing and torch.func."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from metagan_fast import models
from tolerances import tolerance

CLOSE = {"rtol": tolerance("float64-rounding"), "atol": tolerance("float64-rounding")}
LATENT = 5
SMALL = {
    "mlp": {"image_shape": (2, 4, 8), "latent_dim": LATENT, "hidden": (6, 7)},
    "dcgan": {"image_size": (4, 8), "channels": 2, "width": 2, "blocks": 2, "latent_dim": LATENT},
    "resnet": {"image_size": (4, 8), "channels": 2, "width": 2, "blocks": 2, "latent_dim": LATENT},
    "classic-dcgan": {"image_size": 16, "channels": 2, "width": 2, "latent_dim": LATENT},
}


def small(name: str) -> tuple[nn.Module, nn.Module]:
    """Return small float64 networks whose every parameter is random, weights of normalisations too."""
    generator, discriminator = models.build(name, **SMALL[name])
    for parameter in (*generator.parameters(), *discriminator.parameters()):
        nn.init.normal_(parameter, std=0.3)
    return generator.double(), discriminator.double()


@given(
    channels=st.integers(1, 3),
    width=st.integers(1, 3),
    blocks=st.integers(1, 3),
    multiple=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    latent_dim=st.integers(1, 5),
    name=st.sampled_from(["dcgan", "resnet"]),
)
def test_figr_shapes(channels, width, blocks, multiple, latent_dim, name) -> None:
    height, columns = (m * 2**blocks for m in multiple)
    generator, discriminator = models.build(
        name,
        image_size=(height, columns),
        channels=channels,
        width=width,
        blocks=blocks,
        latent_dim=latent_dim,
    )
    images = generator(torch.randn(3, latent_dim))
    assert images.shape == (3, channels, height, columns)
    assert images.abs().max() <= 1
    assert discriminator(images).shape == (3,)


@pytest.mark.parametrize("image_size", [8, 16, 32])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_classic_shapes(image_size, batch_norm) -> None:
    generator, discriminator = models.classic_dcgan(image_size, 3, 2, LATENT, batch_norm)
    images = generator(torch.randn(3, LATENT))
    assert images.shape == (3, 3, image_size, image_size)
    assert images.abs().max() <= 1
    assert discriminator(images).shape == (3,)
    norms = [m for network in (generator, discriminator) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert bool(norms) == (batch_norm and image_size >= 8)


@given(
    image_shape=st.tuples(*[st.integers(1, 4)] * 3),
    latent_dim=st.integers(1, 4),
    hidden=st.lists(st.integers(1, 5), max_size=3),
)
def test_mlp_shapes(image_shape, latent_dim, hidden) -> None:
    generator, discriminator = models.mlp(image_shape, latent_dim, hidden)
    images = generator(torch.randn(2, latent_dim))
    assert images.shape == (2, *image_shape)
    assert discriminator(images).shape == (2,)
    assert generator.linear.out_features == discriminator(images).new_zeros(image_shape).numel()


@pytest.mark.parametrize("name", models.NAMES)
def test_networks_suit_tracing_and_stacking(name) -> None:
    """torch.fx sees the layers, and stacked parameters under vmap give the results of single networks."""
    for network, x in zip(small(name), (torch.randn(3, LATENT), None), strict=True):
        x = torch.randn(3, *image_shape(name)) if x is None else x
        x = x.double()
        assert not list(network.buffers())
        assert not any(getattr(module, "inplace", False) for module in network.modules())

        traced = fx.symbolic_trace(network)
        assert torch.equal(traced(x), network(x))
        leaves = {type(traced.get_submodule(str(n.target))) for n in traced.graph.nodes if n.op == "call_module"}
        assert all(leaf.__module__.startswith("torch.nn.modules") for leaf in leaves)

        networks = [network, copy.deepcopy(network)]
        for parameter in networks[1].parameters():
            parameter.data.mul_(1.1)
        stacked, _ = stack_module_state(networks)

        def call(parameters: dict[str, Tensor], x: Tensor, network: nn.Module = network) -> Tensor:
            return functional_call(network, parameters, (x,))

        outputs = vmap(call, in_dims=(0, None))(stacked, x)
        for output, each in zip(outputs, networks, strict=True):
            torch.testing.assert_close(output, each(x), **CLOSE)


@pytest.mark.parametrize("name", models.NAMES)
def test_input_gradient_penalties_reach_the_parameters_under_vmap(name) -> None:
    """Double backward through the discriminator, under vmap against one task at a time."""
    _, discriminator = small(name)
    networks = [discriminator, copy.deepcopy(discriminator)]
    for parameter in networks[1].parameters():
        parameter.data.mul_(1.1)
    x = torch.randn(2, 3, *image_shape(name), dtype=torch.float64)

    def penalty(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return grad(lambda x: functional_call(discriminator, parameters, (x,)).sum())(x).square().sum()

    gradients = vmap(grad(penalty))(stack_module_state(networks)[0], x)
    for i, network in enumerate(networks):
        leaf = x[i].clone().requires_grad_()
        (by_input,) = torch.autograd.grad(network(leaf).sum(), leaf, create_graph=True)
        expected = torch.autograd.grad(
            by_input.square().sum(), network.parameters(), allow_unused=True, materialize_grads=True
        )
        for (parameter, _), value in zip(network.named_parameters(), expected, strict=True):
            torch.testing.assert_close(gradients[parameter][i], value, rtol=tolerance("float64-parity"), atol=1e-12)


def image_shape(name: str) -> tuple[int, int, int]:
    return (2, 16, 16) if name == "classic-dcgan" else (2, 4, 8)


class Written:
    """FIGR's networks as plain function calls, with parameters read from a network by name."""

    def __init__(self, network: nn.Module) -> None:
        self.parameters = dict(network.named_parameters())

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        return self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]

    def convolution(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self[f"{name}.convolution"]
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self[f"{name}.norm"]
        flat = x.flatten(1)
        centred = flat - flat.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return (scaled * weight.flatten() + bias.flatten()).view_as(x)

    def prelu(self, x: Tensor, name: str) -> Tensor:
        slope = self.parameters[f"{name}.activation.weight"]
        return torch.where(x > 0, x, x * (slope if x.ndim == 2 else slope[:, None, None]))

    def unit(self, x: Tensor, name: str) -> Tensor:
        return self.norm(self.prelu(self.convolution(x, name), name), name)

    def initial(self, z: Tensor, shape: tuple[int, ...]) -> Tensor:
        weight, bias = self["initial.linear"]
        return self.norm(self.prelu(z @ weight.t() + bias, "initial"), "initial").view(-1, *shape)

    def residuals(self, x: Tensor, block: str) -> Tensor:
        for layer in ("first", "second"):
            x = x + self.unit(self.unit(x, f"{block}.{layer}.branch.0"), f"{block}.{layer}.branch.1")
        return x


def double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def halve(x: Tensor) -> Tensor:
    return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))


@pytest.mark.parametrize("name", ["dcgan", "resnet"])
def test_figr_forms(name) -> None:
    generator, discriminator = small(name)
    z = torch.randn(3, LATENT, dtype=torch.float64)
    written = Written(generator)
    x = written.initial(z, (8, 1, 2))
    for block in ("blocks.0", "blocks.1"):
        if name == "resnet":
            x = written.unit(written.residuals(x, block), f"{block}.transition")
        else:
            x = written.unit(x, block)
        x = double(x)
    torch.testing.assert_close(generator(z), torch.tanh(written.convolution(x, "final")), **CLOSE)

    images = torch.randn(3, 2, 4, 8, dtype=torch.float64)
    written = Written(discriminator)
    if name == "resnet":
        x = written.unit(images, "initial")
    else:
        x = written.prelu(written.norm(written.convolution(images, "initial"), "initial"), "initial")
    for block in ("blocks.0", "blocks.1"):
        if name == "resnet":
            x = written.unit(written.residuals(x, block), f"{block}.transition")
        else:
            x = written.prelu(written.norm(written.convolution(x, block), block), block)
        x = halve(x)
    features = x.mean((2, 3)) if name == "resnet" else x.flatten(1)
    weight, bias = written["final.linear"]
    torch.testing.assert_close(discriminator(images), (features @ weight.t() + bias).squeeze(1), **CLOSE)


def test_figr_kernel_sizes() -> None:
    kernels = {
        name: [[m.kernel_size[0] for m in network.modules() if isinstance(m, nn.Conv2d)] for network in small(name)]
        for name in ("dcgan", "resnet")
    }
    assert kernels["dcgan"] == [[5, 5, 5], [5, 5, 5]]
    assert kernels["resnet"] == [[3] * 10 + [5], [7] + [3] * 10]


def convolution(before: int, after: int, kernel: int) -> int:
    return before * after * kernel**2 + after


@pytest.mark.parametrize("name", ["figr", "figr-resnet"])
def test_parameter_counts_of_figr(name) -> None:
    """Parameter counts follow from the layers, in millions: 17.9 and 18.0 as DCGAN, 57.4 and 20.4 as ResNet."""
    channels, sides = [64, 128, 256, 512, 1024], [32, 16, 8, 4, 2]
    elements = [c * s**2 for c, s in zip(channels, sides, strict=True)]
    generator = 100 * elements[4] + 4 * elements[4] + convolution(64, 1, 5)
    discriminator = 2 * elements[0] + channels[0]
    for i in range(4):
        low, high = channels[i], channels[i + 1]
        kernel = 3 if name == "figr-resnet" else 5
        generator += convolution(high, low, kernel) + low + 2 * low * sides[i + 1] ** 2
        discriminator += convolution(low, high, kernel) + high + 2 * high * sides[i] ** 2
        if name == "figr-resnet":
            generator += 4 * (convolution(high, high, 3) + high + 2 * elements[i + 1])
            discriminator += 4 * (convolution(low, low, 3) + low + 2 * elements[i])
    if name == "figr-resnet":
        discriminator += convolution(1, 64, 7) + 1024 + 1
    else:
        discriminator += convolution(1, 64, 5) + elements[4] + 1

    with torch.device("meta"):
        networks = models.workload(name)
    counts = [sum(p.numel() for p in network.parameters()) for network in networks[:2]]
    assert counts == [generator, discriminator]
    rounded = {"figr": [17.9, 18.0], "figr-resnet": [57.4, 20.4]}
    assert [round(count / 1e6, 1) for count in counts] == rounded[name]


@pytest.mark.parametrize("name", models.WORKLOADS)
def test_workloads(name) -> None:
    with torch.device("meta"):
        generator, discriminator, latent_dim, shape = models.workload(name)
        images = generator(torch.randn(2, latent_dim))
        assert images.shape == (2, *shape)
        assert discriminator(images).shape == (2,)


def test_workloads_are_those_of_the_benchmarks() -> None:
    with torch.device("meta"):
        facts = {
            name: (
                workload.latent_dim,
                workload.image_shape,
                sum(p.numel() for p in workload.generator.parameters()),
            )
            for name in models.WORKLOADS
            if (workload := models.workload(name))
        }
    assert facts["mlp-8"] == (32, (1, 8, 8), 32 * 128 + 128 + 128 * 128 + 128 + 128 * 64 + 64)
    assert facts["dcgan-16"][:2] == (100, (1, 16, 16))
    assert facts["dcgan-32"] == facts["maml-32"]
    assert facts["dcgan-32"][:2] == (100, (1, 32, 32))
    assert facts["rgb-64"][:2] == (64, (3, 64, 64))


@pytest.mark.parametrize("name", models.NAMES)
def test_the_global_seed_decides(name) -> None:
    def state(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return [p for network in models.build(name, **SMALL[name]) for p in network.parameters()]

    first, again, other = state(1), state(1), state(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_classic_dcgan_starts_as_in_the_paper() -> None:
    generator, discriminator = models.classic_dcgan(32, width=32)
    for network in (generator, discriminator):
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.weight.numel() > 10_000:
                assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.build("cnn"), "expected a model of mlp, .*got 'cnn'"),
        (lambda: models.build("dcgan", depth=3), "'dcgan' does not take these options.*depth"),
        (lambda: models.workload("mnist"), "expected a workload of mlp-8, .*'mnist'"),
        (lambda: models.dcgan(image_size=28, blocks=3), r"divisible by 2\*\*blocks = 8, got 28"),
        (lambda: models.resnet(image_size=(32, 20), blocks=3), r"divisible by .*8, got \(32, 20\)"),
        (lambda: models.dcgan(image_size=0, blocks=1), "got 0"),
        (lambda: models.dcgan(channels=0), "channels to be at least 1, got 0"),
        (lambda: models.resnet(blocks=0), "blocks to be at least 1, got 0"),
        (lambda: models.mlp((1, 8, 8), 0), "latent_dim to be at least 1, got 0"),
        (lambda: models.mlp((1, 8, 8), 4, (16, 0)), r"hidden\[1\] to be at least 1, got 0"),
        (lambda: models.classic_dcgan(28), "power of two of at least 8, got 28"),
        (lambda: models.classic_dcgan(4), "power of two of at least 8, got 4"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
