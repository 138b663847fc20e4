"""The dispatch table: order, fallback, and errors of a backend requested by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from metagan_fast import functional
from metagan_fast._utils import log
from metagan_fast.ops import _dispatch
from metagan_fast.ops._dispatch import Backend, dispatch
from metagan_fast.ops._op import OPS

SGD = OPS["sgd_step"]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    _dispatch.select.cache_clear()
    yield
    _dispatch.select.cache_clear()


def rows(*natives: tuple[bool, str]) -> tuple[Backend, ...]:
    """Return a table of backends whose ops return op and backend: the given native rows, then the reference."""
    floats = frozenset({torch.float32})
    native = [Backend("native", "cpu", floats, lambda a=a: a, lambda op: lambda: (op.name, "native")) for a in natives]
    return (
        *native,
        Backend("reference", _dispatch.ANY, floats, lambda: (True, ""), lambda op: lambda: (op.name, "reference")),
    )


def test_every_op_has_a_public_function_a_twin_and_a_reference() -> None:
    assert set(functional.__all__) == {"use_backend", *OPS, *(f"{name}_" for name in OPS)}
    for name, op in OPS.items():
        assert op.name == name
        assert callable(getattr(functional, name)) and callable(getattr(functional, name + "_"))
        with functional.use_backend("reference"):
            assert dispatch(op, torch.ones(2)) is op.plain


def test_the_first_match_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "BACKENDS", rows((True, "")))
    x = torch.ones(2)
    assert dispatch(SGD, x)() == ("sgd_step", "native")
    with functional.use_backend("reference"):
        assert dispatch(SGD, x)() == ("sgd_step", "reference")
    assert dispatch(SGD, x)() == ("sgd_step", "native")
    assert dispatch(SGD, torch.ones(2, device="meta"))() == ("sgd_step", "reference")


def test_fallback_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(log, "_said", set())
    monkeypatch.setattr(_dispatch, "BACKENDS", rows((False, "it was never built")))
    with caplog.at_level(logging.WARNING):
        for dtype in (torch.float32, torch.float32):
            _dispatch.select.cache_clear()
            assert dispatch(SGD, torch.ones(2, dtype=dtype))() == ("sgd_step", "reference")
    assert [record.message for record in caplog.records] == [
        "backend 'native' is not used, expect less speed: it was never built"
    ]


def test_a_backend_asked_for_by_name_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "BACKENDS", rows((False, "it was never built")))
    with functional.use_backend("native"):
        with pytest.raises(RuntimeError, match="it was never built"):
            dispatch(SGD, torch.ones(2))
        with pytest.raises(RuntimeError, match="runs on cpu, not on meta"):
            dispatch(SGD, torch.ones(2, device="meta"))
        with pytest.raises(RuntimeError, match=r"does not take torch\.float64"):
            dispatch(SGD, torch.ones(2, dtype=torch.float64))


def test_an_unknown_backend() -> None:
    with (
        pytest.raises(ValueError, match=r"'fast'; expected one of native"),
        functional.use_backend("fast"),
    ):
        pass


def test_the_choice_ends_with_the_block() -> None:
    with pytest.raises(KeyError), functional.use_backend("reference"):
        raise KeyError
    assert _dispatch._requested.get() is None
