"""`train --dry-run` and `--max-memory`: what a run would take, without a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from metagan_fast import cli

QUICK = ("train", "--preset", "quick", "--out")


@pytest.mark.parametrize("executor", ["native", "torch"])
def test_a_dry_run_tells_what_a_run_takes_and_writes_nothing(
    executor: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--executor", executor, "--tasks", "3", "--channels", "1", "--image-size", "8", "--data", "nowhere")
    assert cli.main([*QUICK, str(tmp_path / "run"), "--dry-run", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "dry run: nothing is trained or written"
    text = {line.split()[0]: line for line in lines}
    assert f"executor    {executor}" in text["executor"]
    assert "40" in text["meta-steps"]
    assert "3 a meta-step, of 4 support" in text["tasks"]
    assert "of a meta-step: 3 tasks, at once" in "\n".join(lines)
    assert "MB at its peak" in lines[-1]
    assert not list(tmp_path.iterdir())


def test_open_settings_come_from_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*QUICK, str(tmp_path / "run"), "--dry-run", "--warm-up", "3", "--ema", "0.9"]) == 0
    text = capsys.readouterr().out
    assert "digits, images 1x8x8" in text
    assert "of a warm-up step" in text
    assert "of a validation" in text
    assert "moving average" in text


def test_a_run_that_does_not_fit_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*QUICK, str(tmp_path / "run"), "--dry-run", "--max-memory", "10KB"]) == 2
    assert "expected max_memory to hold one task" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main([*QUICK, str(tmp_path / "run"), "--max-memory", "much"])
    assert '"2GB"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
