"""FlatLayout: offsets, views, bindings, derivatives."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from metagan_fast.flat import ALIGNMENT, FlatLayout
from tolerances import tolerance


class Tied(nn.Module):
    """A module with a tied weight, a scalar parameter, an empty one and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5, bias=False)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("count", torch.arange(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.second(torch.tanh(self.first(x))) + self.nothing.sum()


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)).double()


def loss_of(module: nn.Module, layout: FlatLayout):
    x = torch.randn(6, 3, dtype=torch.float64)
    return lambda flat: functional_call(module, layout.views(flat), (x,)).square().mean()


@given(st.lists(st.lists(st.integers(0, 7), max_size=3), max_size=6), st.integers(0, 3))
def test_round_trip(shapes: list[list[int]], tasks: int) -> None:
    module = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])
    layout = FlatLayout.from_module(module)
    assert layout.numel % ALIGNMENT == 0
    assert all(offset % ALIGNMENT == 0 for offset in layout.offsets)
    assert [slot.shape for slot in layout.slots] == [tuple(shape) for shape in shapes]

    flat = layout.flatten(module)
    assert flat.shape == (layout.numel,)
    views = layout.views(flat)
    assert all(torch.equal(views[name], parameter) for name, parameter in module.named_parameters())
    assert all(view.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr() for view in views.values())
    assert torch.count_nonzero(flat) == sum(torch.count_nonzero(view) for view in views.values())

    if shapes:
        rows = {name: torch.randn(tasks, *view.shape) for name, view in views.items()}
        stacked = layout.flatten(rows)
        assert stacked.shape == (tasks, layout.numel)
        assert stacked.is_contiguous()
        assert all(torch.equal(view, rows[name]) for name, view in layout.views(stacked).items())


def test_layout_is_plain_data() -> None:
    layout = FlatLayout.from_module(Tied())
    assert layout == FlatLayout.from_module(Tied().double())
    assert hash(layout) == hash(pickle.loads(pickle.dumps(layout)))
    with pytest.raises(AttributeError):
        layout.numel = 1


def test_tied_parameters_have_one_slot_and_stay_tied() -> None:
    module = Tied()
    layout = FlatLayout.from_module(module)
    slot = next(slot for slot in layout.slots if slot.name == "first.weight")
    assert slot.names == ("first.weight", "second.weight")
    assert [slot.name for slot in layout.slots] == ["scale", "nothing", "first.weight", "first.bias"]

    flat = layout.flatten(module)
    layout.bind(module, flat)
    assert module.first.weight is module.second.weight
    assert layout.is_bound(module, flat)
    x = torch.randn(2, 5)
    other = torch.randn(layout.numel)
    expected = copy.deepcopy(module)
    layout.bind(expected, other.clone())
    assert torch.equal(functional_call(module, layout.views(other), (x,)), expected(x))


def test_no_parameters() -> None:
    module = nn.Tanh()
    layout = FlatLayout.from_module(module)
    flat = layout.flatten(module)
    assert layout.numel == 0
    assert flat.shape == (0,)
    assert layout.views(torch.zeros(4, 0)) == {}
    assert layout.expand(torch.zeros(3, 0)).shape == (3, 0)
    layout.bind(module, flat)
    assert layout.is_bound(module, flat)


def test_non_contiguous_parameters_are_flattened_in_logical_order() -> None:
    module = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    module.bias = nn.Parameter(torch.randn(4, 2).t()[0])
    values = copy.deepcopy(module)
    layout = FlatLayout.from_module(module)
    flat = layout.flatten(module)
    assert torch.equal(flat[:48], values.weight.detach().contiguous().flatten())
    layout.bind(module, flat)
    assert module.weight.is_contiguous()
    assert torch.equal(module.weight, values.weight)
    assert torch.equal(module.bias, values.bias)


def test_flatten_converts_and_copies() -> None:
    module = nn.Linear(3, 2)
    layout = FlatLayout.from_module(module)
    flat = layout.flatten(module, dtype=torch.bfloat16, device="cpu")
    assert flat.dtype == torch.bfloat16
    copied = layout.flatten(module)
    copied.zero_()
    assert module.weight.abs().sum() > 0
    assert layout.flatten(module.double()).dtype == torch.float64


def test_bound_parameters_and_buffer_are_one_memory() -> None:
    module = small()
    layout = FlatLayout.from_module(module)
    parameters = list(module.parameters())
    flat = layout.flatten(module)
    assert not layout.is_bound(module, flat)
    layout.bind(module, flat)
    assert layout.is_bound(module, flat)
    assert all(before is after for before, after in zip(parameters, module.parameters(), strict=True))

    before = flat.clone()
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(1.0)
    assert torch.count_nonzero(flat - before) == sum(parameter.numel() for parameter in parameters)
    flat.zero_()
    assert all(torch.count_nonzero(parameter) == 0 for parameter in module.parameters())


def test_bind_takes_the_buffer_values() -> None:
    module = small()
    layout = FlatLayout.from_module(module)
    flat = layout.flatten({name: torch.full_like(p, 3.0) for name, p in module.named_parameters()})
    layout.bind(module, flat)
    assert all((parameter == 3).all() for parameter in module.parameters())


def test_what_a_binding_survives() -> None:
    module, other = small(), small()
    layout = FlatLayout.from_module(module)
    flat = layout.flatten(module)
    layout.bind(module, flat)

    module.load_state_dict(other.state_dict())
    assert layout.is_bound(module, flat)
    assert torch.equal(flat, layout.flatten(other))
    module.train(False)
    module.to(torch.float64)
    assert layout.is_bound(module, flat)
    assert not layout.is_bound(copy.deepcopy(module), flat)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda module: module.float(),
        lambda module: module.load_state_dict(small().state_dict(), assign=True),
        lambda module: setattr(module[0], "bias", nn.Parameter(torch.zeros(4, dtype=torch.float64))),
        lambda module: setattr(module[0], "bias", None),
        lambda module: setattr(module, "extra", nn.Linear(1, 1).double()),
        lambda module: module.__setitem__(0, nn.Linear(4, 3).double()),
        lambda module: setattr(module[0].weight, "data", module[0].weight.data.view(3, 4).t()),
    ],
    ids=["float", "assign", "replaced", "removed", "added", "reshaped", "strided"],
)
def test_what_ends_a_binding(break_it) -> None:
    module = small()
    layout = FlatLayout.from_module(module)
    flat = layout.flatten(module)
    layout.bind(module, flat)
    break_it(module)
    assert not layout.is_bound(module, flat)


def test_untied_parameters_end_a_binding() -> None:
    module = Tied()
    layout = FlatLayout.from_module(module)
    flat = layout.flatten(module)
    layout.bind(module, flat)
    module.second.weight = nn.Parameter(module.second.weight.detach().clone())
    assert not layout.is_bound(module, flat)


def test_views_are_one_split_whose_backward_is_one_concatenation() -> None:
    module = small()
    layout = FlatLayout.from_module(module)
    flat = layout.flatten(module).requires_grad_()
    splits = {view.grad_fn.next_functions[0][0] for view in layout.views(flat).values()}
    assert [node.name() for node in splits] == ["SplitWithSizesBackward0"]
    (gradient,) = torch.autograd.grad(loss_of(module, layout)(flat), flat, create_graph=True)
    assert gradient.grad_fn.name() == "CatBackward0"


def test_derivatives() -> None:
    module = small()
    layout = FlatLayout.from_module(module)
    flat = layout.flatten(module)
    loss = loss_of(module, layout)
    leaf = flat.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, leaf)
    assert torch.autograd.gradgradcheck(loss, leaf)

    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    mask = torch.cat([torch.arange(s.offset, s.offset + s.numel) for s in layout.slots])
    padding = torch.ones(layout.numel, dtype=torch.bool).index_fill(0, mask, False)
    assert torch.count_nonzero(expected[padding]) == 0

    close = {"rtol": tolerance("float64-rounding"), "atol": tolerance("float64-rounding")}
    torch.testing.assert_close(grad(loss)(flat), expected, **close)
    torch.testing.assert_close(jvp(loss, (flat,), (expected,))[1], expected.dot(expected), **close)
    rows = torch.randn(3, layout.numel, dtype=torch.float64)
    per_row = torch.stack([grad(loss)(row) for row in rows])
    torch.testing.assert_close(vmap(grad(loss))(rows), per_row, **close)

    direction = torch.randn_like(flat)
    second = vmap(grad(lambda row: grad(loss)(row).dot(direction)))(rows)
    expected_second = torch.stack([torch.autograd.functional.hvp(loss, row, direction)[1] for row in rows])
    torch.testing.assert_close(second, expected_second, **close)


def test_flatten_of_a_mapping_and_expand_are_differentiable() -> None:
    module = Tied().double()
    layout = FlatLayout.from_module(module)
    values = tuple(torch.randn(2, *slot.shape, dtype=torch.float64, requires_grad=True) for slot in layout.slots)
    names = [slot.name for slot in layout.slots]
    assert torch.autograd.gradcheck(lambda *v: layout.flatten(dict(zip(names, v, strict=True))), values)
    rates = torch.randn(2, len(layout.slots), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layout.expand, rates)
    assert torch.autograd.gradgradcheck(layout.expand, rates)


def test_expand() -> None:
    layout = FlatLayout.from_module(Tied())
    rates = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    rows = layout.expand(rates)
    assert rows.shape == (2, layout.numel)
    assert torch.equal(layout.expand(rates[1]), rows[1])
    for row, rate in zip(rows, rates, strict=True):
        for value, view in zip(rate, layout.views(row).values(), strict=True):
            assert (view == value).all()
    assert rows.sum() == sum(rates.sum(0) * torch.tensor([slot.numel for slot in layout.slots]))
    assert torch.equal(vmap(layout.expand)(rates), rows)


def frozen() -> nn.Module:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    return module


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), "one dtype on one device.*float64"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")), "one dtype on one device.*meta"),
        (
            nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.complex64))]),
            "floating-point.*complex64",
        ),
        (
            nn.ParameterList([nn.Parameter(torch.zeros(2).int(), requires_grad=False)]),
            "floating-point.*int32",
        ),
        (frozen(), "'bias' has requires_grad=False"),
        (nn.LazyLinear(3), "no shape yet"),
    ],
)
def test_modules_that_no_buffer_can_hold(module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlatLayout.from_module(module)


def test_errors() -> None:
    module = nn.Linear(3, 2)
    layout = FlatLayout.from_module(module)
    flat = layout.flatten(module)
    weight, bias = module.weight.detach(), module.bias.detach()
    with pytest.raises(ValueError, match=r"\[tasks, 64\], got \[63\]"):
        layout.views(flat[1:])
    with pytest.raises(ValueError, match=r"missing \['bias'\], unknown \['b'\]"):
        layout.flatten({"weight": weight, "b": bias})
    with pytest.raises(ValueError, match=r"\[2\] for 'bias'.*got \[3\]"):
        layout.flatten({"weight": weight, "bias": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"\[2, 3\] for 'weight'.*got \[1, 1, 2, 3\]"):
        layout.flatten({"weight": weight[None, None], "bias": bias[None, None]})
    with pytest.raises(ValueError, match=r"for 'bias'.*got \[2\]"):
        layout.flatten({"weight": weight[None], "bias": bias})
    with pytest.raises(ValueError, match="float64; pass dtype="):
        layout.flatten({"weight": weight, "bias": bias.double()})
    assert layout.flatten({"weight": weight, "bias": bias.double()}, dtype=torch.float64).dtype == torch.float64
    with pytest.raises(ValueError, match="parameters of this layout"):
        layout.flatten(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="2 against 1"):
        layout.bind(nn.Linear(3, 2, bias=False), flat)
    with pytest.raises(ValueError, match="float64 on cpu as the buffer"):
        layout.bind(module, flat.double())
    with pytest.raises(ValueError, match="contiguous buffer"):
        layout.bind(module, torch.zeros(2 * layout.numel)[::2])
    with pytest.raises(ValueError, match=r"2 slots, got \[3\]"):
        layout.expand(torch.zeros(3))
