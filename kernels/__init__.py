"""Triton kernels, the GPU twins of `csrc/updates.h`: same names, same order of operations.

`updates.py` holds the formulas, `blocks.py` what a program reads and writes, `_launch.py` what the host passes, and
one file an op its kernel and the function that launches it. `task_linear.py` and `task_convolution.py` are layers with
weights of each task's own. Triton is imported when an op first runs.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any


@functools.cache
def is_available() -> tuple[bool, str]:
    """Return whether Triton can launch on a GPU here, and if not, why."""
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed: pip install triton"
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # whatever a missing or broken driver raises
        return False, f"Triton finds no GPU driver ({error})"
    return True, ""


def is_interpreted() -> tuple[bool, str]:
    """Return whether Triton's interpreter runs the kernels, on tensors of a CPU, and if not, why."""
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed: pip install triton"
    if os.environ.get("TRITON_INTERPRET", "").lower() not in ("1", "true", "yes", "on"):
        return False, "Triton needs a GPU; on a CPU only its interpreter runs: set TRITON_INTERPRET=1 before the start"
    return True, ""


def implementation(op: str) -> Callable[..., Any]:
    """Return the function of an op, which imports its kernel when it is first called."""

    def run(*tensors: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{op}"), op)(*tensors, **options)

    return run
