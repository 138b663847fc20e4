"""Lazy loader of the Triton kernels, and the checks whether Triton works here."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from typing import Any

KERNELS = "metagan_fast.kernels"


@functools.cache
def is_available() -> tuple[bool, str]:
    """Return whether Triton can launch on a GPU here, and if not, why."""
    if reason := _not_installed():
        return False, reason
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # a missing or broken driver may raise anything
        return False, f"Triton finds no GPU driver ({error})"
    return True, ""


def is_interpreted() -> tuple[bool, str]:
    """Return whether Triton's interpreter runs the kernels on CPU tensors, and if not, why."""
    if reason := _not_installed():
        return False, reason
    if os.environ.get("TRITON_INTERPRET", "").lower() not in ("1", "true", "yes", "on"):
        return False, "Triton needs a GPU; on a CPU only its interpreter runs: set TRITON_INTERPRET=1 before the start"
    reason = interpreter_problem()
    return not reason, reason


def interpreter_problem() -> str:
    """Return why the interpreter of the installed Triton fails, "" if it works."""
    if release("triton") < (3, 6) and release("numpy") >= (2, 4):  # it converts 1-d arrays to numbers
        return "the interpreter of Triton before 3.6 fails with numpy 2.4 or newer: pip install 'numpy<2.4'"
    return ""


def release(package: str) -> tuple[int, ...]:
    """Return the major and minor version of an installed package."""
    return tuple(map(int, importlib.metadata.version(package).split(".")[:2]))


def implementation(op: str) -> Callable[..., Any]:
    """Return an op's function, which imports its kernel on the first call."""

    def run(*tensors: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(f"{KERNELS}.updates.{op}"), op)(*tensors, **options)

    return run


def _not_installed() -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    return ""
