"""The native executor: whole inner loops in the C++ engine, on networks lowered to its operations."""

from __future__ import annotations

from .executor import NativeExecutor
from .lowering import PlanError

__all__ = ["NativeExecutor", "PlanError"]
