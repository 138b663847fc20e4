"""The CUDA backend on a GPU: parity, streams, graphs, sizes beyond 2^31 elements, several devices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ops_cases
from metagan_fast import FlatLayout, _native, functional
from ops_cases import CASES, CLIP_CASES, LR_FORMS, NUMBERED, Case, same_bits
from test_parity import ulps

AVAILABLE, WHY_NOT = _native.cuda_is_available()
if AVAILABLE and not torch.cuda.is_available():
    AVAILABLE, WHY_NOT = False, "this PyTorch has no CUDA"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not AVAILABLE, reason=WHY_NOT)]

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def moved(arguments: ops_cases.Arguments, device: str = "cuda") -> ops_cases.Arguments:
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in arguments.items()}


def on(backend: str, case: Case, arguments: ops_cases.Arguments) -> tuple[Tensor, ...]:
    with functional.use_backend(backend):
        return ops_cases.call(case.function, arguments)


def check(case: Case, actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for name, a, b in zip(case.written, actual, expected, strict=True):
        if case.rounds_exactly(b.dtype):
            assert same_bits(a.cpu(), b), name
        else:
            assert ulps(a.cpu(), b) <= 2, name


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numel", [1, 33, 20_000, 20_011])
def test_same_bits_as_the_reference_on_a_cpu(case: Case, dtype: torch.dtype, numel: int) -> None:
    for lr_form in LR_FORMS:
        arguments = ops_cases.make(case, 3, numel, dtype, lr_form=lr_form)
        check(case, on("cuda", case, moved(arguments)), on("reference", case, arguments))


@pytest.mark.parametrize("case", CLIP_CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numel", [5000, 70_001])
def test_clip_grad_norm(case: Case, dtype: torch.dtype, numel: int) -> None:
    arguments = ops_cases.make(case, 3, numel, dtype)
    expected, actual = on("reference", case, arguments), on("cuda", case, moved(arguments))
    assert ulps(actual[1].cpu(), expected[1]) <= 2
    assert ulps(actual[0].cpu(), expected[0]) <= (4 if dtype == torch.float64 else 2)
    assert all(map(same_bits, on("cuda", case, moved(arguments)), actual))


@pytest.mark.parametrize("case", [case for case in CASES if case.has_lr], ids=str)
def test_one_learning_rate_a_parameter_tensor(case: Case) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 40), torch.nn.PReLU())
    layout = FlatLayout.from_module(module)
    arguments = ops_cases.make(case, 2, layout.numel, torch.float32)
    arguments |= {"lr": torch.rand(len(layout.slots)), "layout": layout}
    used = layout.flatten(module).bool()
    results = zip(on("cuda", case, moved(arguments)), on("reference", case, arguments), strict=True)
    for a, b in results:
        assert same_bits(a.cpu()[..., used], b[..., used])


def test_work_waits_in_the_current_stream() -> None:
    stream = torch.cuda.Stream()
    params, grads = torch.zeros(1 << 20, device="cuda"), torch.zeros(1 << 20, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        grads.fill_(1.0)
        functional.sgd_step_(params, grads, 0.5)
        assert not stream.query()  # the call returns before its work is done
    stream.synchronize()
    assert (params == -0.5).all()


@pytest.mark.parametrize("case", CASES + CLIP_CASES, ids=str)
def test_graph_capture(case: Case) -> None:
    arguments = moved(ops_cases.make(case, 2, 1000, torch.float32, lr_form="task-column"))
    expected = on("cuda", case, arguments)  # the warm-up, too
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = on("cuda", case, arguments)
    for result in results:
        result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(same_bits, results, expected))


@pytest.mark.parametrize("case", NUMBERED, ids=str)
def test_a_graph_reads_numbers_anew(case: Case) -> None:
    arguments = ops_cases.make(case, 2, 1000, torch.float32)
    later = {**arguments, **({"step": 7, "lr": 0.01} if case.has_lr else {"step_size": 0.7})}
    given, then = (moved(ops_cases.in_tensors(case, x)) for x in (arguments, later))
    on("cuda", case, given)  # the warm-up
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = on("cuda", case, given)
    for numbers in (arguments, later):
        graph.replay()
        for actual, expected in zip(results, on("reference", case, numbers), strict=True):
            assert same_bits(actual.cpu(), expected)
        for name in {"lr", "step", "step_size"} & given.keys():
            given[name].copy_(then[name])


def test_beyond_two_to_the_31_elements() -> None:
    numel = (1 << 31) + 64
    if torch.cuda.mem_get_info()[0] < 5 * numel:
        pytest.skip("needs 11 GB of free memory")
    average = torch.zeros(numel, dtype=torch.bfloat16, device="cuda")
    params = torch.ones(1, dtype=torch.bfloat16, device="cuda").expand(numel).contiguous()
    functional.ema_update_(average, params, 0.5)
    assert (average[-128:] == 0.5).all() and (average[:128] == 0.5).all()


def test_many_rows() -> None:
    """More rows than the second dimension of a grid may have blocks."""
    params, grads = torch.zeros(200_000, 300, device="cuda"), torch.ones(200_000, 300, device="cuda")
    functional.sgd_step_(params, grads, 0.5)
    assert (params == -0.5).all()
    _, norms = functional.clip_grad_norm(grads, 1.0)
    assert torch.allclose(norms, torch.full_like(norms, 300**0.5))


def test_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    params, grads = torch.zeros(100, device="cuda:1"), torch.ones(100, device="cuda:1")
    with torch.cuda.device(0):
        functional.sgd_step_(params, grads, 0.5)
        assert torch.cuda.current_device() == 0
    assert (params == -0.5).all()
