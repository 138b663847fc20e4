"""The profile of the engine by kind of work: its shares, its table, its command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("metagan_fast._core", reason="the extension is not built")

from metagan_fast.benchmarks import profile, workloads

MEASURES = ("seconds", "floor")


def _tiny(name: str) -> workloads.WorkloadCase:
    found = next(case for case in workloads.CASES if case.name == name)
    return dataclasses.replace(found, workload="mlp-8", tasks=2, steps=2)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in profile.CASES:
        monkeypatch.setitem(profile.CASES, name, _tiny(name))


@pytest.mark.parametrize("name", ["mlp-8", "maml-32"])
def test_shares_sum_to_one(name: str) -> None:
    found = profile.profile(profile.CASES[name], rounds=2)
    shares = {kind: share for kind, share in found.items() if kind not in MEASURES}
    assert {"multiply", "update", "idle"} < set(shares)
    assert all(0 <= share <= 1 for share in shares.values()), shares
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["multiply"] > 0
    assert found["seconds"] > 0
    assert 0 < found["floor"] < 2  # at most 1 in theory; a busy machine disturbs one of the two times


def test_profiling_ends_with_the_profile() -> None:
    profile.profile(profile.CASES["mlp-8"], rounds=1)
    before = profile._core.profile()
    problem = profile.CASES["mlp-8"].draw()
    problem.learner("native").inner_loop(problem.batch, noise=problem.noise)
    assert profile._core.profile() == before


def test_table_has_a_column_a_case() -> None:
    figures = {"multiply": 0.25, "idle": 0.75, "seconds": 1.5, "floor": 0.5}
    lines = profile.table({"figr": figures, "dcgan-16": {**figures, "seconds": 2.5}}).splitlines()
    assert lines[0].split() == ["figr", "dcgan-16"]
    assert [line.split() for line in lines[1:]] == [
        ["multiply", "25.0%", "25.0%"],
        ["idle", "75.0%", "75.0%"],
        ["seconds", "1.500", "2.500"],
        ["floor", "50.0%", "50.0%"],
    ]


def test_unknown_case_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        profile.main(["dcgan-17"])
    assert "expected one of mlp-8, dcgan-16" in capsys.readouterr().err


def test_command_prints_and_writes_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "profile.jsonl"
    for _ in range(2):
        assert profile.main(["mlp-8", "dcgan-16", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["mlp-8", "dcgan-16"]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert list(line["profile"]) == ["mlp-8", "dcgan-16"]
        assert line["profile"]["mlp-8"]["seconds"] > 0
        assert line["versions"]["torch"] == torch.__version__
