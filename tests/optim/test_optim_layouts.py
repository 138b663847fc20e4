"""The optimizers on parameters and gradients of any memory layout, and the cases left to torch."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from metagan_fast import optim
from metagan_fast._utils import log
from optim_cases import CASES, NAMES, Run, case_id, check, natively, needs_native


def flat_run(module: Any, starts: Sequence[int], ends: Sequence[int], together: frozenset[str]) -> dict[str, Tensor]:
    """Return parts of three vectors after steps with momentum: as views if `together`, else as copies."""
    vectors = {"params": torch.linspace(-1, 1, 100), "grads": torch.linspace(3, -2, 100), "buffers": torch.ones(100)}

    def parts(name: str) -> list[Tensor]:
        views = [vectors[name][a:b] for a, b in zip(starts, ends, strict=True)]
        return views if name in together else [view.clone() for view in views]

    params = [nn.Parameter(part) for part in parts("params")]
    buffers = parts("buffers")
    optimizer = module.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1)
    for param, grad, buffer in zip(params, parts("grads"), buffers, strict=True):
        param.grad = grad
        optimizer.state[param]["momentum_buffer"] = buffer
    for _ in range(3):
        optimizer.step()
    if "params" in together:  # the rest of the vector as well
        return {"whole": vectors["params"], "buffers": torch.cat(buffers)}
    whole = torch.cat([torch.linspace(-1, 1, 100)[: starts[0]], *params, torch.linspace(-1, 1, 100)[ends[-1] :]])
    return {"whole": whole.detach(), "buffers": torch.cat(buffers)}


@pytest.mark.parametrize("together", [{"params"}, {"params", "grads"}, {"params", "buffers"}, {"grads", "buffers"}])
def test_adjacent_parameters_are_updated_as_if_apart(together: set[str]) -> None:
    starts, ends = [10, 17, 50, 60], [17, 50, 60, 93]
    apart = flat_run(optim, starts, ends, frozenset())
    for chosen in (together, {"params", "grads", "buffers"}):
        with natively():
            actual = flat_run(optim, starts, ends, frozenset(chosen))
        assert all(torch.equal(actual[name], apart[name]) for name in apart)


def test_overlapping_parameters_are_updated_one_after_the_other() -> None:
    starts, ends, together = [0, 30], [50, 100], frozenset({"params"})
    ours, torchs = (flat_run(module, starts, ends, together) for module in (optim, torch.optim))
    assert all(torch.equal(ours[name], torchs[name]) for name in torchs)


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def every_other(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 0]


class Marked(Tensor):
    """A subclass of Tensor."""


@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
@pytest.mark.parametrize("change", [channels_last, lambda x: x.transpose(0, -1) if x.ndim > 1 else x])
def test_any_order_of_dimensions_is_native(name: str, arguments: dict[str, Any], change: Any) -> None:
    shapes = [(2, 3, 4, 5), (4, 6), (3,)]
    ours = Run(optim, name, arguments, shapes, change=change)
    torchs = Run(torch.optim, name, arguments, shapes, change=change)
    for i in range(3):
        with natively() if i else contextlib.nullcontext():
            ours.step()
        torchs.step()
    check(ours, torchs, "optimizer-steps")


@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
@pytest.mark.parametrize(
    "dtype, change",
    [
        (torch.float16, lambda x: x),
        (torch.complex64, lambda x: x),
        (torch.float32, every_other),
        (torch.float32, lambda x: x.as_subclass(Marked)),
    ],
    ids=["float16", "complex", "gaps", "subclass"],
)
def test_what_is_left_to_torch(name: str, arguments: dict[str, Any], dtype: torch.dtype, change: Any) -> None:
    shapes = [(5,), (2, 3, 4)]
    ours = Run(optim, name, arguments, shapes, dtype, change=change)
    torchs = Run(torch.optim, name, arguments, shapes, dtype, change=change)
    for _ in range(3):
        ours.step()
        torchs.step()
    check(ours, torchs, None)


@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
def test_mixed_dtypes_and_gradients_laid_out_otherwise(name: str, arguments: dict[str, Any]) -> None:
    def run(module: Any) -> Run:
        result = Run(module, name, arguments, [(1,)])
        result.params = [
            nn.Parameter(torch.linspace(-1, 1, 12, dtype=dtype).reshape(3, 4))
            for dtype in (torch.float32, torch.float64, torch.float16, torch.float32)
        ]
        result.optimizer = getattr(module, name)(result.params, **arguments)
        for step in range(3):
            for i, param in enumerate(result.params):
                grad = torch.linspace(2, -1, 12, dtype=param.dtype) * (step + 1)
                param.grad = grad.reshape(4, 3).t() if i == 3 else grad.reshape(3, 4)
            result.optimizer.step()
        return result

    check(run(optim), run(torch.optim), "optimizer-steps")


def test_gradients_negative_by_a_mark_alone() -> None:
    z = torch.tensor([2.0 + 3.0j]).conj().imag
    assert z.is_neg() and z.is_contiguous()
    param = nn.Parameter(torch.zeros(1))
    param.grad = z
    optim.SGD([param], lr=1.0).step()
    assert param.item() == 3.0


@pytest.mark.parametrize("name", NAMES)
def test_sparse_gradients(name: str) -> None:
    def run(module: Any) -> tuple[Tensor, Tensor, BaseException | None]:
        dense, embedding = nn.Parameter(torch.ones(3)), nn.Embedding(5, 2, sparse=True)
        embedding.weight.data.fill_(1.0)
        optimizer = getattr(module, name)([dense, embedding.weight], lr=0.1)
        error = None
        for _ in range(2):
            optimizer.zero_grad()
            (dense.sum() + embedding(torch.tensor([1, 3])).sum()).backward()
            try:
                optimizer.step()
            except RuntimeError as caught:
                error = caught
        return dense, embedding.weight, error

    ours, torchs = run(optim), run(torch.optim)
    assert str(ours[2]) == str(torchs[2]) and type(ours[2]) is type(torchs[2])
    assert torch.equal(ours[0], torchs[0]) and torch.equal(ours[1], torchs[1])  # unchanged where there is an error


@pytest.mark.parametrize("name", NAMES)
def test_memory_that_moved_is_found(name: str) -> None:
    def run(module: Any) -> Run:
        result = Run(module, name, {"lr": 0.1, **({"momentum": 0.9} if name in ("SGD", "RMSprop") else {})})
        result.step()
        for param in result.params:
            param.data = param.data.clone()
            state = result.optimizer.state[param]
            state |= {key: value.clone() for key, value in state.items()}
        result.step()
        old = result.params[4]  # a parameter grown, with its state
        state = result.optimizer.state.pop(old)
        new = result.params[4] = nn.Parameter(torch.cat([old.data, old.data]))
        result.optimizer.param_groups[0]["params"][4] = new
        result.optimizer.state[new] = {k: torch.cat([v, v]) if v.ndim else v for k, v in state.items()}
        result.step()
        return result

    with natively():
        ours = run(optim)
    check(ours, run(torch.optim), "optimizer-steps")


@needs_native
def test_what_is_left_to_torch_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with mock.patch.object(log, "_said", set()), caplog.at_level(logging.INFO):
        native = Run(optim, "SGD", {"lr": 0.1, "momentum": 0.9})
        native.step()
        native.step()
        assert not caplog.records
        half = Run(optim, "Adam", {"lr": 0.1}, [(3,), (4,)], torch.float16)
        half.step()
        half.step()
    (record,) = caplog.records
    assert record.levelno == logging.INFO and "float16" in record.getMessage()
