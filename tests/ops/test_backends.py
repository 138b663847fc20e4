"""The dispatch table: order, fallback, and errors of a backend requested by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from metagan_fast import functional
from metagan_fast._utils import log
from metagan_fast.ops import _dispatch

Row = _dispatch.Implementation


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    _dispatch.select.cache_clear()
    yield
    _dispatch.select.cache_clear()


def rows(*natives: tuple[bool, str]) -> tuple[Row, ...]:
    """Return a table of one op: the given native rows, then the reference."""
    floats = frozenset({torch.float32})
    native = [Row("sgd_step", "native", "cpu", floats, lambda a=a: a, lambda *_, **__: ("native",)) for a in natives]
    return (
        *native,
        Row(
            "sgd_step",
            "reference",
            _dispatch.ANY,
            floats,
            lambda: (True, ""),
            lambda *_, **__: ("reference",),
        ),
    )


def test_every_op_has_a_public_function_a_twin_and_a_reference() -> None:
    for op in _dispatch.OPS:
        assert callable(getattr(functional, op)) and callable(getattr(functional, op + "_"))
        assert {op, op + "_"} <= set(functional.__all__)
        assert any(row.op == op and row.backend == "reference" for row in _dispatch.IMPLEMENTATIONS)


def test_the_first_match_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "IMPLEMENTATIONS", rows((True, "")))
    x = torch.ones(2)
    assert _dispatch.dispatch("sgd_step", x) == ("native",)
    with functional.use_backend("reference"):
        assert _dispatch.dispatch("sgd_step", x) == ("reference",)
    assert _dispatch.dispatch("sgd_step", x) == ("native",)
    assert _dispatch.dispatch("sgd_step", torch.ones(2, device="meta")) == ("reference",)


def test_fallback_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(log, "_said", set())
    monkeypatch.setattr(_dispatch, "IMPLEMENTATIONS", rows((False, "it was never built")))
    with caplog.at_level(logging.WARNING):
        for dtype in (torch.float32, torch.float32):
            _dispatch.select.cache_clear()
            assert _dispatch.dispatch("sgd_step", torch.ones(2, dtype=dtype)) == ("reference",)
    assert [record.message for record in caplog.records] == [
        "backend 'native' is not used, expect less speed: it was never built"
    ]


def test_a_backend_asked_for_by_name_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "IMPLEMENTATIONS", rows((False, "it was never built")))
    with functional.use_backend("native"):
        with pytest.raises(RuntimeError, match="it was never built"):
            _dispatch.dispatch("sgd_step", torch.ones(2))
        with pytest.raises(RuntimeError, match="runs on cpu, not on meta"):
            _dispatch.dispatch("sgd_step", torch.ones(2, device="meta"))
        with pytest.raises(RuntimeError, match=r"does not take torch\.float64"):
            _dispatch.dispatch("sgd_step", torch.ones(2, dtype=torch.float64))


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
