"""The Triton kernels on a GPU: parity, streams, graphs, no synchronisation."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import ops_cases
from metagan_fast import FlatLayout, _triton, functional
from ops_cases import CASES, CLIP_CASES, LR_FORMS, NUMBERED, Case, same_bits
from support import assert_close

AVAILABLE, WHY_NOT = _triton.is_available()
if AVAILABLE and not torch.cuda.is_available():
    AVAILABLE, WHY_NOT = False, "this PyTorch sees no GPU"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not AVAILABLE, reason=WHY_NOT)]

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def on_gpu(arguments: ops_cases.Arguments) -> ops_cases.Arguments:
    return {name: x.cuda() if isinstance(x, Tensor) else x for name, x in arguments.items()}


def run(function: Callable, arguments: ops_cases.Arguments) -> tuple[Tensor, ...]:
    with functional.use_backend("triton"):
        return ops_cases.call(function, arguments)


def reference(case: Case, arguments: ops_cases.Arguments) -> tuple[Tensor, ...]:
    with functional.use_backend("reference"):
        return ops_cases.call(case.function, arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_as_the_reference(case: Case, dtype: torch.dtype) -> None:
    for i, numel in enumerate((1, 33, 2080, 5000, 100_003)):
        arguments = ops_cases.make(case, 3, numel, dtype, lr_form=LR_FORMS[i], margin=ops_cases.MARGIN)
        for actual, expected in zip(run(case.function, on_gpu(arguments)), reference(case, arguments), strict=True):
            if case.rounds_exactly(dtype):
                assert same_bits(actual.cpu(), expected)
            else:
                assert_close(actual.cpu(), expected, "float64-square-root")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CLIP_CASES, ids=str)
@pytest.mark.parametrize("numel", [5000, 1_200_007])
def test_clip_grad_norm(case: Case, dtype: torch.dtype, numel: int) -> None:
    arguments = ops_cases.make(case, 3, numel, dtype)
    first = run(case.function, on_gpu(arguments))
    for actual, again, expected in zip(
        first, run(case.function, on_gpu(arguments)), reference(case, arguments), strict=True
    ):
        assert_close(actual.cpu(), expected, "clip-norm")
        assert same_bits(actual.cpu(), again.cpu())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numel", [33, 5000, 8192])
def test_clipping_in_one_launch_has_the_bits_of_two(
    dtype: torch.dtype, numel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = on_gpu(ops_cases.make(CLIP_CASES[0], 300, numel, dtype))
    one = run(functional.clip_grad_norm, arguments)
    assert all(map(same_bits, run(functional.clip_grad_norm_, ops_cases.clone(arguments)), one))
    clip = importlib.import_module("metagan_fast.kernels.updates.clip_grad_norm")
    monkeypatch.setattr(clip, "in_one_launch", clip.in_two_launches)
    assert all(map(same_bits, run(functional.clip_grad_norm, arguments), one))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case.op in ("sgd_step", "adam_step")], ids=str)
@pytest.mark.parametrize("numel", [5000, 20_000])
def test_clipping_and_reset_within_a_step(case: Case, dtype: torch.dtype, numel: int) -> None:
    """Bytes equal those of clipping and step one after the other."""
    arguments = on_gpu(ops_cases.make(case, 3, numel, dtype, lr_form="task"))
    clipped, _ = run(functional.clip_grad_norm, {"grads": arguments["grads"], "max_norm": 0.5})
    expected = run(case.function, {**arguments, "grads": clipped})
    for more in ({}, {"zero_grads": True}):
        fused = {**ops_cases.clone(arguments), "max_norm": 0.5, **more}
        assert all(map(same_bits, run(case.twin, fused), expected))
        assert bool(fused["grads"].any()) != bool(more)


@pytest.mark.parametrize("case", [case for case in CASES if case.has_lr], ids=str)
def test_one_learning_rate_a_parameter_tensor(case: Case) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 40))
    layout = FlatLayout.from_module(module)
    used = layout.flatten(module).bool()
    arguments = ops_cases.make(case, 2, layout.numel, torch.float32)
    arguments |= {"lr": torch.rand(len(layout.slots)), "layout": layout}
    for actual, expected in zip(run(case.function, on_gpu(arguments)), reference(case, arguments), strict=True):
        assert same_bits(actual.cpu()[..., used], expected[..., used])


@pytest.mark.parametrize("case", (*CASES, *CLIP_CASES), ids=str)
def test_nothing_waits_and_a_graph_holds_the_op(case: Case) -> None:
    arguments = on_gpu(ops_cases.make(case, 3, 2080, torch.float32, lr_form="task"))
    expected = run(case.function, arguments)  # compiles
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(case.function, arguments)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(case.function, arguments)
    for x in results:
        x.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(same_bits, results, expected))


@pytest.mark.parametrize("case", NUMBERED, ids=str)
def test_a_graph_reads_numbers_anew(case: Case) -> None:
    arguments = ops_cases.make(case, 2, 1000, torch.float32)
    later = {**arguments, **({"step": 7, "lr": 0.01} if case.has_lr else {"step_size": 0.7})}
    given, then = (on_gpu(ops_cases.in_tensors(case, x)) for x in (arguments, later))
    run(case.function, given)  # the warm-up
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(case.function, given)
    for numbers in (arguments, later):
        graph.replay()
        for actual, expected in zip(results, reference(case, numbers), strict=True):
            assert same_bits(actual.cpu(), expected)
        for name in {"lr", "step", "step_size"} & given.keys():
            given[name].copy_(then[name])


def test_the_current_stream_is_used() -> None:
    average, params = torch.zeros(2080, device="cuda"), torch.zeros(2080, device="cuda")
    functional.ema_update(average, params, 0.5)  # compiles
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        params.fill_(1.0)
        with functional.use_backend("triton"):
            functional.ema_update_(average, params, 0.5)
    stream.synchronize()
    assert (average == 0.5).all()
