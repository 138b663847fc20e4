"""The native executor: networks lowered to the C++ engine's operations, and inner loops run in one call of it."""

from __future__ import annotations

from .executor import NativeExecutor
from .lowering import PlanError

__all__ = ["NativeExecutor", "PlanError"]
