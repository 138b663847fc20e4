"""`import metagan_fast` loads what training needs and nothing heavy besides PyTorch."""

from __future__ import annotations

import subprocess
import sys

import pytest

LATER = (
    *("PIL", "fontTools", "matplotlib", "scipy", "sklearn", "starlette", "tensorboard", "tqdm", "uvicorn"),
    *("torch._dynamo", "torch._inductor", "torch.onnx", "torch.utils.tensorboard", "triton"),
    *("metagan_fast.benchmarks", "metagan_fast.cli", "metagan_fast.draw", "metagan_fast.dropin"),
    *("metagan_fast.kernels", "metagan_fast.metrics", "metagan_fast.plots", "metagan_fast.training"),
)
"""Modules that load at first use."""


@pytest.mark.slow
def test_heavy_modules_load_at_first_use() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import metagan_fast; "
        f"print(*sorted(set({LATER}) & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.split() == []
