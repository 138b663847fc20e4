"""The Triton backend's place in the dispatch table, and its errors where it cannot run."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest
import torch

from metagan_fast import _triton, functional
from metagan_fast.ops import _dispatch


def test_before_the_reference_on_a_gpu_and_after_it_on_a_cpu() -> None:
    rows = [(row.name, row.device) for row in _dispatch.BACKENDS]
    reference = rows.index(("reference", _dispatch.ANY))
    assert rows.index(("triton", "cuda")) < reference < rows.index(("triton", "cpu"))


def test_by_name_on_a_cpu_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    _dispatch.select.cache_clear()
    expected = r"runs on cuda, not on cpu; Triton (needs a GPU.*set TRITON_INTERPRET=1|is not installed)"
    with functional.use_backend("triton"), pytest.raises(RuntimeError, match=expected):
        functional.ema_update(torch.zeros(4), torch.zeros(4), 0.5)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for check in (_triton.is_available.__wrapped__, _triton.is_interpreted):
        available, reason = check()
        assert not available
        assert "pip install triton" in reason


@pytest.mark.parametrize(
    ("triton", "numpy", "works"),
    [("3.5.1", "2.4.0", False), ("3.5.1", "2.3.5", True), ("3.6.0", "2.4.6", True), ("3.10.0+git1", "2.10.0rc1", True)],
)
def test_the_interpreter_of_an_old_triton_refuses_a_new_numpy(
    triton: str, numpy: str, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"triton": triton, "numpy": numpy}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    available, reason = _triton.is_interpreted()
    assert available == works
    assert ("pip install 'numpy<2.4'" in reason) != works


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_driver() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    available, reason = _triton.is_available.__wrapped__()
    assert not available
    assert "finds no GPU driver" in reason
