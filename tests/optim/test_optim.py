"""The optimizers' results against torch.optim's, by every implementation."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metagan_fast.benchmarks.dropin_cases import optim as dropin_cases
from torch import Tensor, nn

from metagan_fast import _native, optim
from optim_cases import CASES, NAMES, SHAPES, Run, case_id, check, close, natively, needs_native, options
from support import assert_close, instruction_set, relative_error
from tolerances import tolerance


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_numbers_of_torch(name: str, data: st.DataObject) -> None:
    arguments = data.draw(options(name))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    shapes = [(300,), *data.draw(st.lists(st.sampled_from(SHAPES), max_size=6))]
    absent = data.draw(st.lists(st.frozensets(st.integers(0, 5), max_size=2), min_size=4, max_size=4))
    ours = Run(optim, name, arguments, shapes, dtype)
    torchs = Run(torch.optim, name, arguments, shapes, dtype)
    exact = Run(torch.optim, name, arguments, shapes, torch.float64, stored=dtype)
    first_is_torchs = bool(arguments.get("dampening"))
    for without in absent:
        with contextlib.nullcontext() if first_is_torchs else natively():
            ours.step(without)
        torchs.step(without)
        exact.step(without)
    check(ours, torchs, close(dtype))
    a, b, e = (torch.cat([param.detach().flatten() for param in run.params]) for run in (ours, torchs, exact))
    floor = tolerance(close(dtype)) / 10
    assert relative_error(a, e) <= tolerance("optimizer-times-torch") * relative_error(b, e) + floor


@needs_native
@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
def test_bfloat16_is_rounded_once(name: str, arguments: dict[str, Any]) -> None:
    ours = Run(optim, name, arguments, dtype=torch.bfloat16)
    for _ in range(3):
        ours.step()
    before, state = [param.detach().clone() for param in ours.params], copy.deepcopy(ours.optimizer.state_dict())
    with natively():
        ours.step()
    wide = Run(torch.optim, name, arguments)
    for param, value, of_ours in zip(wide.params, before, ours.params, strict=True):
        param.data = value.float()
        param.grad = of_ours.grad.float()
    wide.optimizer.load_state_dict(state)
    wide.optimizer.step()
    expected = wide.tensors()
    for key, value in ours.tensors().items():
        assert_close(value, expected[key].to(value.dtype), "bf16-store")


@needs_native
@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
def test_same_bits_for_every_instruction_set_and_thread_count(
    name: str, arguments: dict[str, Any], isa: str, set_threads: Callable[[int], None]
) -> None:
    def run(threads: int) -> Run:
        set_threads(threads)
        result = Run(optim, name, arguments, [(40000,), (3,), (33, 7), (50000,)])
        for _ in range(2):
            result.step()
        return result

    with instruction_set("portable"):
        expected = run(1)
    for threads in (1, 2, 3):
        check(run(threads), expected, None)


@pytest.mark.parametrize("flag", ["foreach", "fused"])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_flags_of_torchs_functions_have_no_say(name: str, flag: str) -> None:
    run = Run(optim, name, {"lr": 0.1, flag: True})
    with natively():
        run.step()
    assert run.optimizer.state_dict()["param_groups"][0][flag] is True


@pytest.mark.parametrize("name", NAMES)
def test_differentiable_steps_are_torchs(name: str) -> None:
    def run(module: Any) -> Tensor:
        scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        weight = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        param = weight.clone()
        param.retain_grad()
        optimizer = getattr(module, name)([weight], lr=0.1, differentiable=True)
        optimizer.param_groups[0]["params"] = [param]
        param.grad = scale * param.detach() ** 2
        optimizer.step()
        (gradient,) = torch.autograd.grad((param**2).sum(), scale)
        return gradient

    assert torch.equal(run(optim), run(torch.optim))


@pytest.mark.parametrize("name", NAMES)
def test_compiled_steps(name: str) -> None:
    runs = [Run(module, name, {"lr": 0.1}, [(5,)]) for module in (optim, torch.optim)]
    torch.compiler.reset()
    compiled = torch.compile(runs[0].optimizer.step, backend="eager")
    for _ in range(2):
        for run, step in zip(runs, (compiled, runs[1].optimizer.step), strict=True):
            for param in run.params:
                param.grad = run.values(tuple(param.shape), param.dtype)
            step()
    check(*runs, "optimizer-steps")


@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
def test_without_the_extension(name: str, arguments: dict[str, Any]) -> None:
    ours, torchs = Run(optim, name, arguments), Run(torch.optim, name, arguments)
    with mock.patch.object(_native, "can_gather", lambda: (False, "this installation has no compiled extension")):
        for _ in range(3):
            ours.step()
    for _ in range(3):
        torchs.step()
    check(ours, torchs, None)


@settings(max_examples=10)
@given(size=st.integers(1, 200), name=st.sampled_from(NAMES))
def test_training_goes_where_torch_goes(size: int, name: str) -> None:
    def train(module: Any) -> Tensor:
        torch.manual_seed(size)
        net = nn.Sequential(nn.Linear(3, size), nn.Tanh(), nn.Linear(size, 1)).double()
        x, y = torch.randn(16, 3).double(), torch.randn(16, 1).double()
        optimizer = getattr(module, name)(net.parameters(), lr=1e-2)
        for _ in range(10):
            optimizer.zero_grad()
            ((net(x) - y) ** 2).mean().backward()
            optimizer.step()
        return torch.cat([param.flatten() for param in net.parameters()])

    assert_close(train(optim), train(torch.optim), "float64-parity")


@pytest.mark.parametrize("case", dropin_cases.CASES, ids=lambda case: case.name)
def test_benchmark_cases_agree(case: Any) -> None:
    original, *others = case.measure(thread_counts=[1], quick=True)
    assert original.contender == "torch"
    assert [record.contender for record in others][-1] == "metagan_fast"
    assert all(record.error <= record.error_allowed for record in others)
