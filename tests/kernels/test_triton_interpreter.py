"""The Triton kernels in Triton's interpreter, in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metagan_fast import _triton

FOLDER = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("file", ["triton_interpreted.py", "task_layers_interpreted.py"])
def test_in_the_interpreter(file: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    if problem := _triton.interpreter_problem():
        pytest.skip(problem)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(FOLDER / file)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert "skipped" not in run.stdout.splitlines()[-1]
