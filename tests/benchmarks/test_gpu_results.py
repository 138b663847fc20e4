"""The command for machines with a GPU: the parts that run without one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from metagan_fast.benchmarks import gpu, workloads


def test_without_a_device_it_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "results.json")]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_outcomes_of_tests_are_read(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs one\n")
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.skipif(True, reason='one device only')\n"
        "def test_two_devices(): pass\n"
    )
    found = {test["name"].partition("::")[2]: test for test in gpu.run_tests(tmp_path)}
    outcomes = {name: test["outcome"] for name, test in found.items()}
    assert outcomes == {"test_good": "passed", "test_bad": "failed", "test_two_devices": "skipped"}
    assert "one device only" in found["test_two_devices"]["message"]


def test_timings_hold_what_is_needed_to_judge_them() -> None:
    case = next(case for case in workloads.CASES if case.name == "mlp-8")
    short = dataclasses.replace(case, tasks=2, steps=1)
    found = {timing["contender"]: timing for timing in gpu.measure(short, device="cpu", rounds=1)}
    assert list(found) == ["plain", "one by one", "graphs"]
    for timing in found.values():
        assert timing["seconds"] > 0
        assert timing["distance"] == 0  # on a CPU both ways are the same
        json.dumps(timing)
