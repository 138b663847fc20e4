"""The engine's passes over every kind of layer, against float64 autograd by double backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import metagan_fast as mgf
from engine_passes import (
    READ,
    WRITTEN,
    assert_passes,
    autograd_passes,
    draw_passes,
    engine_passes,
    unpaired_autograd,
)
from layer_cases import ACTIVATIONS, CASES, Case
from metagan_fast import _native
from metagan_fast.executors.native.lowering import make_plan
from networks import batch_norm_dcgan, tiny_gan
from support import instruction_set

_core = pytest.importorskip("metagan_fast._core", reason="the extension is not built")


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("paired", [False, True], ids=["first-order", "second-order"])
@given(data=st.data())
def test_passes_equal_autograd(kind: str, paired: bool, data: st.DataObject) -> None:
    case: Case = data.draw(CASES[kind])
    given = draw_passes(case)
    oracle = autograd_passes if paired else unpaired_autograd
    found = engine_passes(case, given, paired=paired)
    assert_passes(found, oracle(case, given), oracle(case, given, torch.float32))


@pytest.mark.parametrize("name", _core.available_isas())
@pytest.mark.parametrize("kind", CASES)
@settings(max_examples=5)
@given(data=st.data())
def test_every_instruction_set_passes(kind: str, name: str, data: st.DataObject) -> None:
    case: Case = data.draw(CASES[kind])
    given = draw_passes(case)
    with instruction_set(name):
        found = engine_passes(case, given)
    assert_passes(found, autograd_passes(case, given), autograd_passes(case, given, torch.float32))


@pytest.mark.parametrize("kind", CASES)
@settings(max_examples=8)
@given(data=st.data())
def test_threads_do_not_change_a_byte(kind: str, data: st.DataObject) -> None:
    case: Case = data.draw(CASES[kind])
    given = draw_passes(case)
    alone = engine_passes(case, given)
    for threads in (2, 4):
        together = engine_passes(case, given, threads=threads)
        assert all(torch.equal(together[name], alone[name]) for name in WRITTEN)


@pytest.mark.parametrize("build", ACTIVATIONS, ids=lambda build: str(build()))
def test_every_activation_passes_for_every_instruction_set(build: Callable[[], nn.Module], isa: str) -> None:
    """Full vectors and a remainder. At kinks, multiples of 1/4, values and slopes are PyTorch's; values keep NaN."""
    case = Case(build(), (1, 5, 13), images=2)
    kinks = torch.linspace(-8, 8, 65).view(1, 1, 5, 13).repeat(2, 1, 1, 1)
    given = draw_passes(case)
    for inputs, paired, oracle in ((kinks, False, unpaired_autograd), (kinks + 1 / 8, True, autograd_passes)):
        given["inputs"] = inputs
        found = engine_passes(case, given, paired=paired)
        assert_passes(found, oracle(case, given), oracle(case, given, torch.float32))
    with_nan = kinks.clone()
    with_nan[0, 0, 0, 0] = with_nan[-1, -1, -1, -1] = torch.nan
    assert torch.equal(engine_passes(case, given | {"inputs": with_nan})["outputs"].isnan(), with_nan.isnan())


def _flat(module: nn.Module) -> nn.Module:
    return nn.Sequential(module, nn.Flatten(0))


NETWORKS = {
    "tiny-generator": lambda: Case(tiny_gan()[0], (6,), 3),
    "tiny-discriminator": lambda: Case(_flat(tiny_gan()[1]), (1, 8, 8), 3),
    "batch-norm-generator": lambda: Case(batch_norm_dcgan()[0], (8,), 4),
    "batch-norm-discriminator": lambda: Case(batch_norm_dcgan()[1], (1, 16, 16), 4),
    "dcgan-generator": lambda: Case(mgf.models.workload("dcgan-16").generator, (100,), 4),
    "dcgan-discriminator": lambda: Case(mgf.models.workload("dcgan-16").discriminator, (1, 16, 16), 4),
    "resnet-generator": lambda: Case(mgf.models.resnet(8, 2, 4, 2, 10)[0], (10,), 3),
    "resnet-discriminator": lambda: Case(mgf.models.resnet(8, 2, 4, 2, 10)[1], (2, 8, 8), 3),
    "wide-convolution": lambda: Case(nn.Conv2d(70, 50, 5, padding=2), (70, 9, 11), 5),
    "wide-transposed": lambda: Case(nn.ConvTranspose2d(70, 50, 4, 2, 1), (70, 5, 7), 5),
    "winograd-5": lambda: Case(nn.Conv2d(20, 24, 5, padding=2), (20, 12, 16), 5),
    "winograd-5-tall": lambda: Case(nn.Conv2d(18, 50, (3, 5), padding=(4, 1)), (18, 17, 38), 4),
    "winograd-5-few-channels": lambda: Case(nn.Conv2d(9, 8, 5, padding=2), (9, 6, 64), 2),  # rows of whole vectors
    "winograd-3": lambda: Case(nn.Conv2d(20, 24, 3, padding=1), (20, 8, 16), 4),
    "winograd-3-transposed": lambda: Case(nn.ConvTranspose2d(40, 17, 3, padding=(0, 1)), (40, 8, 68), 3),
    "padded-pixel": lambda: Case(nn.Conv2d(1, 1, 1, stride=(1, 3), padding=(0, 1)), (1, 1, 1), 3),
    "wide-linear": lambda: Case(nn.Linear(1000, 300), (1000,), 17),
    "few-images": lambda: Case(nn.Linear(130, 300), (130,), 4),
    "deep-few-images": lambda: Case(nn.Linear(40000, 5), (40000,), 3),
}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_threads_that_share_out_single_rows_do_not_change_a_byte(precision: str) -> None:
    """With many images a thread transforms few rows at a time; rows at the edge have fewer taps."""
    torch.manual_seed(0)
    case = Case(nn.Conv2d(112, 112, 5, padding=2), (112, 16, 16), images=72)
    given = draw_passes(case)
    alone, together = (engine_passes(case, given, threads=threads, precision=precision) for threads in (1, 2))
    for name, value in alone.items():
        assert torch.equal(value, together[name]), name


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks_and_wide_layers(name: str) -> None:
    case = NETWORKS[name]()
    given = draw_passes(case)
    exact, rounded = autograd_passes(case, given), autograd_passes(case, given, torch.float32)
    found = engine_passes(case, given)
    assert_passes(found, exact, rounded)
    again = engine_passes(case, given, threads=2)
    assert all(torch.equal(found[key], again[key]) for key in WRITTEN)


def _linear() -> dict[str, Any]:
    module = nn.Sequential(nn.Linear(3, 2))
    return make_plan(module, mgf.FlatLayout.from_module(module), (3,)).to_core()


_SETTINGS = _linear()["operations"][0]["settings"]
BAD_OPERATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": "dance"}, "unknown kind of operation 'dance'"),
    "input": ({"inputs": [7]}, "expected values 0 to 2 .exclusive., got 7"),
    "output": ({"output": 5}, "expected values 0 to 2 .exclusive., got 5"),
    "unknown field": ({"settings": _SETTINGS | {"speed": 1}}, "unknown field 'speed'"),
    "no weight": ({"settings": _SETTINGS | {"weight": None}}, "expected a weight, got none"),
    "type": ({"settings": _SETTINGS | {"weight": "w"}}, "expected another type of 'weight', got 'w'"),
    "missing field": (
        {"settings": {name: value for name, value in _SETTINGS.items() if name != "bias"}},
        "expected a field 'bias', got none",
    ),
    "missing field of a window": (
        {"settings": _SETTINGS | {"y": {"kernel": 1, "stride": 1, "padding": 0}}},
        "y: expected a field 'dilation', got none",
    ),
    "name of an enumeration": (
        {"kind": "activation", "settings": {"function": "tan", "constants": (), "slope": None, "slopes": 0}},
        "function: unknown value 'tan'; expected one of 'relu', .*'sigmoid'",
    ),
    "slopes": (
        {"kind": "activation", "settings": {"function": "prelu", "constants": (), "slope": 0, "slopes": 3}},
        "expected a slope, 1 or 2 numbers, got 3",
    ),
    "offsets of a sparse matrix": (
        {"kind": "resample", "settings": {"offsets": (0, 2), "columns": (0,), "weights": (1.0,)}},
        "expected 2 offsets from 0 to the number of columns, 1",
    ),
}


@pytest.mark.parametrize("what", BAD_OPERATIONS)
def test_bad_plans_name_the_operation(what: str) -> None:
    change, message = BAD_OPERATIONS[what]
    plan = _linear()
    network = plan | {"operations": [plan["operations"][0] | change]}
    call = _native.EngineCall(images=2, threads=1, paired=0)
    for name in (*READ, *WRITTEN):
        call.arguments[name] = 0
    with pytest.raises(ValueError, match=f"^0: {message}"):
        _core.network_passes(network, call.arguments)
