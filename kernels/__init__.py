"""Triton kernels. Triton is imported when a kernel first runs."""

from __future__ import annotations

import functools
import importlib.util


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
