"""`metagan-fast info`: facts for a bug report, and its self-check."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import metagan_fast as mgf
from metagan_fast import _native, functional
from metagan_fast._utils import log, torch_version
from metagan_fast.cli import info, main, self_check
from metagan_fast.ops import _dispatch

needs_extension = pytest.mark.skipif(not _native.is_available()[0], reason="the extension is not built")


@pytest.fixture
def no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "checks", lambda: iter(()))


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    main(["info", "--json"])
    return json.loads(capsys.readouterr().out)


def test_the_text_holds_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for line in (
        f"metagan_fast     {mgf.__version__}",
        f"torch            {torch.__version__}",
        "processor        ",
        "memory           ",
        "threads          ",
        "instruction set  ",
        "backend native   ",
        "backend cuda     ",
        "kernels on cpu   ",
        f"package          {Path(mgf.__file__).parent}",
        f"extension        {_native._core.__file__ if _native.is_available()[0] else 'none'}",
    ):
        assert f"\n{line}" in shown
    assert "FAILED" not in shown


@needs_extension
def test_json_has_the_same_facts(capsys: pytest.CaptureFixture[str]) -> None:
    facts = report(capsys)
    assert facts["versions"]["metagan_fast"] == mgf.__version__
    assert facts["extension"]["digest"] == _native._core.SOURCE_DIGEST and "pybind11" in facts["extension"]["build"]
    assert facts["default-network"] == "native, float32: the engine supports every layer"
    assert facts["instruction-set"].startswith(_native._core.isa())
    checks = {check["name"]: check for check in facts["self-check"]["checks"]}
    assert {"native adam_step on cpu", "engine inner step, WGAN-GP", "engine MAML meta-gradient"} <= set(checks)
    assert all(check["passed"] and check["error"] <= check["limit"] for check in checks.values())


def test_every_op_is_checked() -> None:
    assert {name for name in functional.__all__ if not name.endswith("_")} - {"use_backend"} == set(self_check._OPS)


@needs_extension
def test_a_wrong_kernel_fails_the_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """And one that raises; the others are still compared."""
    native = next(row for row in _dispatch.BACKENDS if row.name == "native")

    def function(op: Any) -> Any:
        def wrong(*tensors: Any, **options: Any) -> Any:
            if op.name == "rmsprop_step":
                raise RuntimeError("no such\nkernel")
            results = native.function(op)(*tensors, **options)
            return tuple(x * 1.001 for x in results) if op.name == "ema_update" else results

        return wrong

    broken = dataclasses.replace(native, function=function)
    rows = tuple(broken if row is native else row for row in _dispatch.BACKENDS)
    monkeypatch.setattr(_dispatch, "BACKENDS", rows)
    _dispatch.select.cache_clear()
    assert main(["info"]) == 1
    _dispatch.select.cache_clear()
    shown = capsys.readouterr().out
    assert "FAILED: 2 of" in shown
    assert "native rmsprop_step on cpu: RuntimeError: no such kernel" in shown
    assert "native ema_update on cpu: relative error 1.0e-03, expected at most 1e-06" in shown


@pytest.mark.usefixtures("no_check")
@pytest.mark.parametrize("broken", [True, False])
def test_an_extension_that_does_not_load_is_said_why(
    broken: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing one is a way to install; a broken one is a failure."""
    monkeypatch.setattr(_native, "is_available", lambda: (False, "GLIBC_2.99 not found"))
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: object() if broken else None)
    assert main(["info"]) == int(broken)
    shown = capsys.readouterr().out
    assert "extension        none\n" in shown and "nothing to compare" in shown
    assert ("broken           GLIBC_2.99 not found\n" in shown) == broken


@pytest.mark.usefixtures("no_check")
def test_threads_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("METAGAN_FAST_THREADS", "3")
    assert report(capsys)["threads"] == "3, from METAGAN_FAST_THREADS=3"
    monkeypatch.setenv("METAGAN_FAST_THREADS", "many")
    assert "must be a positive integer, got 'many'" in report(capsys)["threads"]


@pytest.mark.parametrize("version", ["2.13.0+cpu", "2.15.1"])
def test_tested_versions_of_torch_are_silent(version: str) -> None:
    assert torch_version.problem(version) == ""


@pytest.mark.parametrize("version", ["2.8.0", "2.90.0", "3.0.0a0+git1"])
def test_another_version_of_torch_is_logged_once(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch_version, "problem", lambda of=torch_version.problem: of(version))
    monkeypatch.setattr(log, "_said", set())
    with caplog.at_level(logging.WARNING):
        torch_version.log_if_untested()
        torch_version.log_if_untested()
    (line,) = caplog.messages
    assert line.startswith(f"metagan_fast was not tested with torch {version}, only with 2.")


@pytest.mark.slow
def test_an_untested_torch_gives_one_line_at_import() -> None:
    code = "import torch; torch.__version__ = '9.1.0'; import metagan_fast"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stderr.startswith("metagan_fast was not tested with torch 9.1.0") and done.stderr.count("\n") == 1
