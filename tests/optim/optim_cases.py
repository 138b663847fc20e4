"""Optimizers with options, and runs of two of them side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from metagan_fast import _native, optim
from support import assert_close, join

NATIVE, WHY_NOT = _native.can_gather()
needs_native = pytest.mark.skipif(not NATIVE, reason=WHY_NOT)

NAMES = ("SGD", "Adam", "AdamW", "RMSprop")
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("Adam", {"lr": 0.1}),
    ("Adam", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1, "maximize": True}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.1}),
    ("RMSprop", {"lr": 0.1, "momentum": 0.9, "centered": True, "weight_decay": 0.1}),
)
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (7,), (33,), (5, 13), (2, 3, 4, 5), (1, 1, 3), (300,))


def case_id(value: object) -> str:
    return "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


@st.composite
def options(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Return arguments that the optimizer of a name takes."""
    chosen: dict[str, Any] = {
        "lr": draw(st.sampled_from([0.1, 1e-3])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "maximize": draw(st.booleans()),
    }
    if name == "SGD":
        chosen["momentum"] = draw(st.sampled_from([0.0, 0.5, 0.9]))
        if chosen["momentum"]:
            chosen["dampening"] = draw(st.sampled_from([0.0, 0.3]))
            chosen["nesterov"] = chosen["dampening"] == 0 and draw(st.booleans())
    elif name == "RMSprop":
        chosen["alpha"] = draw(st.sampled_from([0.99, 0.5]))
        chosen["eps"] = draw(st.sampled_from([1e-8, 1e-3]))
        chosen["momentum"] = draw(st.sampled_from([0.0, 0.9]))
        chosen["centered"] = draw(st.booleans())
    else:
        chosen["betas"] = draw(st.sampled_from([(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)]))
        chosen["eps"] = draw(st.sampled_from([1e-8, 1e-3]))
        chosen["amsgrad"] = draw(st.booleans())
    return chosen


class Run:
    """Parameters under an optimizer; runs made with the same seed see the same values and gradients."""

    def __init__(
        self,
        module: Any,
        name: str,
        arguments: dict[str, Any],
        shapes: Sequence[tuple[int, ...]] = SHAPES,
        dtype: torch.dtype = torch.float32,
        stored: torch.dtype | None = None,
        change: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        self.random = torch.Generator().manual_seed(1)
        self.stored = stored or dtype  # dtype that values are rounded to before they become `dtype`
        self.params = [nn.Parameter(change(self.values(shape, dtype))) for shape in shapes]
        self.optimizer = getattr(module, name)(self.params, **arguments)

    def values(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=self.random, dtype=torch.float64).to(self.stored).to(dtype)

    def step(self, without: frozenset[int] = frozenset()) -> None:
        """Take a step; parameters `without` have no gradient."""
        for i, param in enumerate(self.params):
            grad = self.values(tuple(param.shape), param.dtype)
            param.grad = None if i in without else torch.empty_like(param).copy_(grad)
        self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and state by name."""
        named = {f"param {i}": param for i, param in enumerate(self.params)}
        for i, param in enumerate(self.params):
            named |= {f"{key} {i}": value for key, value in self.optimizer.state.get(param, {}).items()}
        return named


def check(actual: Run, expected: Run, name: str | None) -> None:
    """Assert that parameters and state agree: to a tolerance, or to the bit if there is none."""
    a, b = actual.tensors(), expected.tensors()
    assert a.keys() == b.keys()
    kinds: dict[str, list[str]] = {}
    for key in a:
        assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape, key
        assert a[key].stride() == b[key].stride(), key
        if name is None:
            assert torch.equal(a[key], b[key]), key
        kinds.setdefault(key.split()[0], []).append(key)
    for keys in kinds.values() if name is not None else ():  # a single number may happen to end near 0
        assert_close(join({key: a[key] for key in keys}), join({key: b[key] for key in keys}), name)


@contextlib.contextmanager
def natively() -> Iterator[None]:
    """Make torch's update functions fail where there is a native step."""
    refuse = mock.Mock(side_effect=AssertionError("torch's own step was called"))
    names = ("sgd", "adam", "rmsprop") if NATIVE else ()
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(optim, name, refuse))
        yield


def close(dtype: torch.dtype) -> str:
    return "float64-rounding" if dtype == torch.float64 else "optimizer-steps"
