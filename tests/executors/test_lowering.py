"""Plans compute what their modules compute; the error for a module without one names the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import metagan_fast as mgf
from layer_cases import ACTIVATIONS, CASES, Call, Case
from metagan_fast.executors.native.lowering import Plan, PlanError, describe_plan, inner_step_multiply_adds, make_plan
from metagan_fast.executors.native.lowering.positions import position_map
from plan_interpreter import interpret
from support import assert_close


def plan_of(module: nn.Module, input_shape: tuple[int, ...], **options: Any) -> Any:
    return make_plan(module, mgf.FlatLayout.from_module(module), input_shape, **options)


def check(module: nn.Module, input_shape: tuple[int, ...], images: int = 3) -> Any:
    """Assert that the plan of a module computes what it computes, and return it."""
    module = module.double()
    layout = mgf.FlatLayout.from_module(module)
    plan = make_plan(module, layout, input_shape)
    inputs = torch.randn(images, *input_shape, dtype=torch.float64)
    found = interpret(plan.to_core(), layout.flatten(module), inputs.clone())
    expected = module.train()(inputs.clone()).detach()
    assert_close(found.reshape(expected.shape), expected, "float64-rounding")
    return plan


def kinds_of(plan: Plan) -> list[str]:
    """Return the kinds of a plan's operations."""
    return [op.settings.kind for op in plan.operations]


@pytest.mark.parametrize("kind", CASES)
@given(data=st.data())
def test_a_plan_computes_what_its_module_computes(kind: str, data: st.DataObject) -> None:
    case: Case = data.draw(CASES[kind])
    check(*case)


@pytest.mark.parametrize("build", ACTIVATIONS, ids=lambda build: str(build()))
def test_the_plan_of_every_activation_computes_it(build: Callable[[], nn.Module]) -> None:
    check(build(), (17,))


NETWORKS = {
    "mlp": mgf.models.mlp((1, 4, 6), 5, (7, 3)),
    "dcgan": mgf.models.dcgan((8, 4), 3, 2, 2, 5),
    "resnet": mgf.models.resnet((4, 8), 1, 2, 2, 5),
    "classic-dcgan": mgf.models.classic_dcgan(16, 1, 2, 5),
    "classic-dcgan-plain": mgf.models.classic_dcgan(16, 1, 2, 5, batch_norm=False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_of_the_package_have_plans(name: str) -> None:
    generator, discriminator = NETWORKS[name]
    plan = check(generator, (5,))
    scores = check(discriminator, plan.output_shape)
    assert scores.output_shape == (1, 1, 1)


class Written(nn.Module):
    """A network written with functions, methods and shape arithmetic."""

    def __init__(self, final: Callable[[Tensor], Tensor] = lambda scores: scores.squeeze(1)) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 2, 3, 3))
        self.scale = nn.Parameter(torch.randn(4, 8, 8))
        self.shift = nn.Parameter(torch.randn(4, 8, 8))
        self.slope = nn.Parameter(torch.full((4,), 0.3))
        self.head = nn.Linear(64, 1)
        self.final = final

    def forward(self, x: Tensor, verbose: bool = False) -> Tensor:
        assert x.dim() == 4 and x.shape[1] == 2
        n, _, height, width = x.shape
        y = F.conv2d(x, self.kernel, padding=1) if not verbose else x
        y = F.layer_norm(y, y.size()[1:], self.scale, self.shift, 1e-3)
        y = F.prelu(y, weight=self.slope)
        for _ in range(height // 4):
            y = F.batch_norm(F.avg_pool2d(y, 2), None, None, training=True)
            y = F.upsample(y, scale_factor=2)
        y = F.interpolate(y, size=(height // 2, width // 2))
        y = F.pixel_unshuffle(F.pixel_shuffle(y, 2), 2)
        y = F.instance_norm(F.group_norm(y, 2))
        y = F.dropout(y, 0.5, training=False)
        return self.final(self.head(y.contiguous().view(x.shape[0], -1).view(n, y.numel() // n)))


@pytest.mark.filterwarnings("ignore:.*upsample. is deprecated")
@pytest.mark.parametrize(
    "final",
    [
        lambda s: s,
        lambda s: s.squeeze(1),
        lambda s: s.view(-1),
        lambda s: s.view(-1).view(s.size(0)),
        lambda s: s.flatten(),
        lambda s: s[:, 0],
        lambda s: s.sum(1),
        lambda s: s.reshape(len(s), 1),
    ],
)
def test_functions_methods_and_shape_arithmetic_are_followed(final: Callable[[Tensor], Tensor]) -> None:
    plan = check(Written(final), (2, 8, 8))
    assert plan.output_shape == (1, 1, 1)


def test_reflect_padding_and_same_padding_become_plans() -> None:
    check(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 4, 5))
    check(nn.Conv2d(2, 3, (3, 5), padding="same", dilation=(2, 1)), (2, 4, 5))
    check(nn.Conv2d(2, 3, 2, padding="valid"), (2, 4, 5))


def test_tied_parameters_and_repeated_modules_share_offsets() -> None:
    layer = nn.Linear(4, 4)
    twin = nn.Linear(4, 4)
    twin.weight = layer.weight
    plan = check(nn.Sequential(layer, nn.Tanh(), layer, twin), (4,))
    first, second, third = (op.settings.parameters for op in plan.operations if op.settings.kind == "convolution")
    assert first == second and third[0] == first[0] and third[1] != first[1]


def test_views_become_one_permutation_at_most() -> None:
    module = nn.Sequential(Call(lambda x: x.flatten(1)), nn.Unflatten(1, (2, 3, 4)), nn.Identity(), nn.ReLU())
    assert kinds_of(check(module, (2, 3, 4))) == ["activation"]
    module = Call(lambda x: x.permute(0, 2, 1, 3).flip(1).flatten(1).relu())
    assert kinds_of(check(module, (2, 3, 4))) == ["permute", "activation"]


def test_what_nobody_reads_is_left_out() -> None:
    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x).exp()
            return self.used(x)

    plan = check(Wasteful(), (3,))
    assert len(plan.operations) == 1 and plan.numel == 4 * 32


def test_a_plan_leaves_the_module_and_the_random_state_alone() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, track_running_stats=True), nn.Dropout(0.5).eval())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    plan_of(module, (1, 5, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module[1].training and all(p.requires_grad for p in module.parameters())


# Refusals


class Buffered(nn.Module):
    """Network that adds a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("shift", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.shift


class Scaled(nn.Module):
    """Network that scales its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 0.5)


class Transposed(Scaled):
    """Network that transposes its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.view(3, 2).t())


class Adds(Scaled):
    """Network that adds a parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight[0]


def _overwrites(x: Tensor) -> Tensor:
    y = torch.tanh(x)
    z = F.relu(y, inplace=True)
    return y + z


def _overwrites_by_operator(x: Tensor) -> Tensor:
    y = torch.tanh(x)
    z = y
    z += 1
    return y + z


REFUSALS: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "groups": (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), (4, 5, 5), r"'0' \(Conv2d, conv2d\): groups=2"),
    "transposed groups": (nn.ConvTranspose2d(4, 4, 3, groups=2), (4, 5, 5), "ConvTranspose2d.*groups=2"),
    "uneven padding": (nn.Conv2d(1, 1, 2, padding="same"), (1, 5, 5), "even size"),
    "dropout": (nn.Sequential(nn.Flatten(), nn.Dropout(0.5)), (2, 2, 2), r"'1' \(Dropout, dropout\): it draws random"),
    "spatial dropout": (nn.Dropout2d(0.5), (2, 2, 2), "draws random"),
    "embedding": (
        nn.Sequential(nn.Linear(3, 2), nn.Mish()),
        (3,),
        r"'1' \(Mish, mish\): the native engine does not support",
    ),
    "convolution in 3-D": (nn.Conv3d(1, 1, 1), (1, 2, 2, 2), r"Conv3d\): it takes"),
    "features of rank 2": (nn.Sequential(nn.Flatten(2), nn.Linear(4, 2)), (3, 2, 2), r"'1' \(Linear.*flatten"),
    "running statistics": (nn.InstanceNorm2d(2, track_running_stats=True).eval(), (2, 2, 2), "running statistics"),
    "spectral norm": (nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 2))), (3,), "'0.*"),
    "weight norm": (parametrizations.weight_norm(nn.Linear(3, 2)), (3,), "outside a layer"),
    "buffer": (Buffered(), (3,), r"\(Buffered, add\): it adds .*it reads 'shift', no parameter"),
    "scaled weight": (Scaled(), (3,), r"\(Scaled, mul\): it computes with parameters"),
    "transposed weight": (Transposed(), (3,), r"\(Transposed, t\): it computes with parameters"),
    "added parameter": (Adds(), (3,), "computes with parameters"),
    "control flow": (Call(lambda x: x if x.sum() > 0 else -x), (3,), r"\(Call\).*control flow"),
    "reading values": (Call(lambda x: x * x.max().item()), (3,), r"item reads the values"),
    "randomness": (Call(lambda x: x + torch.randn_like(x)), (3,), "randn_like.*draws random"),
    "constants": (Call(lambda x: x + torch.ones(3)), (3,), "no parameter"),
    "product": (Call(lambda x: x * torch.tanh(x)), (3,), "multiplies two tensors"),
    "quotient": (Call(lambda x: 1 / x), (3,), "divides by a tensor"),
    "broadcast": (Call(lambda x: x + x.mean((2, 3), keepdim=True)), (2, 3, 3), "different shapes"),
    "part": (Call(lambda x: x[:, :1].relu()), (3,), "keeps only some"),
    "several": (Call(lambda x: x.chunk(2, 1)[0]), (4,), "several tensors"),
    "statistics of the batch": (Call(lambda x: x - x.mean(0, keepdim=True)), (3,), "mixes the images"),
    "images mixed": (Call(lambda x: x.view(-1, 2).relu()), (4,), "mixes the images"),
    "images concatenated": (Call(lambda x: torch.cat((x, x), 0)), (4,), "mixes the images"),
    "images counted": (Call(lambda x: x / x.shape[0]), (4,), "depends on the number of images"),
    "images shuffled": (Call(lambda x: x.flip(0)), (4,), "mixes the images"),
    "overwriting": (Call(_overwrites), (4,), "overwrites a value that is read again"),
    "overwriting by an operator": (Call(_overwrites_by_operator), (4,), "overwrites a value that is read again"),
    "detached": (Call(lambda x: x.detach()), (4,), "detach.*does not support"),
    "another dtype": (Call(lambda x: x.half()), (4,), "changes torch.float32 to torch.float16"),
    "two outputs": (Call(lambda x: (x, x)), (4,), "a single tensor"),
    "another output": (Call(lambda x: x.flatten(2)), (2, 3, 4), r"only \[n\], \[n, features\] and \[n, C, H, W\]"),
    "wrong size": (nn.Sequential(nn.Linear(3, 2)), (4,), r"'0' \(Linear\): it takes 3 channels or features, not 4"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_planned_is_refused_by_name(what: str) -> None:
    module, input_shape, message = REFUSALS[what]
    with pytest.raises(PlanError, match=message) as caught:
        plan_of(module, input_shape, name="generator")
    assert str(caught.value).startswith("the generator") and isinstance(caught.value, ValueError)


def test_outputs_are_images_and_scores() -> None:
    assert plan_of(nn.Conv2d(1, 2, 1), (1, 3, 3), output="images").output_shape == (2, 3, 3)
    with pytest.raises(PlanError, match=r"expected images \[n, C, H, W\]"):
        plan_of(nn.Linear(2, 2), (2,), output="images")
    with pytest.raises(PlanError, match=r"returns \['n', 2\]; expected scores"):
        plan_of(nn.Linear(2, 2), (2,), output="scores")
    with pytest.raises(PlanError, match="expected scores"):
        plan_of(nn.Conv2d(1, 1, 3), (1, 3, 3), output="scores")


def test_maps_that_are_no_matrix_of_positions_are_found_out() -> None:
    assert position_map(lambda x: x + 1, 3, 4) is None
    assert position_map(lambda x: x.square(), 3, 4) is None
    assert position_map(lambda x: torch.zeros_like(x), 3, 4) is None
    transposed = position_map(lambda x: x.transpose(-1, -2), 3, 3)
    assert transposed is None


# What explain() prints


def test_arithmetic_counts_taps_inside_the_image() -> None:
    """The floor of a workload counts the convolutions' multiply-adds without padding taps."""
    from metagan_fast.benchmarks import operations

    generator, discriminator, latent_dim, image_shape = mgf.models.workload("dcgan-16")
    plans = plan_of(generator, (latent_dim,)), plan_of(discriminator, image_shape)
    inputs = torch.randn(1, latent_dim), torch.randn(1, *image_shape)
    costs = [operations.cost(m, x) for m, x in zip((generator, discriminator), inputs, strict=True)]
    for plan, cost in zip(plans, costs, strict=True):
        products = [plan.multiply_adds(op) for op in plan.operations if op.settings.kind == "convolution"]
        assert sum(products) == cost.forward
    for penalty, at_images in ((False, False), (True, False), (True, True)):
        expected = operations.inner_step(*costs, 4, penalty=penalty, at_real=at_images)
        found = inner_step_multiply_adds(*plans, 4, 4, 4 if penalty else 0, at_images=at_images)
        assert found == pytest.approx(expected, rel=0.03)  # pooling is left out
    compared = inner_step_multiply_adds(*plans, 3, 4, 0, generator_steps=2, relativistic=True)
    alone = inner_step_multiply_adds(*plans, 3, 4, 0, generator_steps=2)
    assert compared - alone == 2 * 3 * sum(plans[1].multiply_adds(op) for op in plans[1].operations)
    strided = plan_of(nn.ConvTranspose2d(1, 1, 4, stride=2, padding=1), (1, 2, 2))
    assert strided.multiply_adds(strided.operations[0]) == 6 * 6


def test_the_table_names_layers_shapes_and_sizes() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.PReLU(2), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(2, 1))
    lines = describe_plan(plan_of(module, (1, 5, 5)), mgf.FlatLayout.from_module(module)).splitlines()
    cells = [line.split() for line in lines]
    assert cells[1] == ["0", "convolution", "3x3", "2x3x3", "20", "162"]
    assert cells[2] == ["1", "prelu", "2x3x3", "2"]
    assert len({line.index(c[-1]) + len(c[-1]) for line, c in zip(lines, cells, strict=True) if len(c) > 4}) <= 2
