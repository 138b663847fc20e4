"""Executors run the inner loops of a task batch: `native` on a CPU, `torch` for any module on any device."""

from __future__ import annotations

from .base import Adapted, Executor, GeneratorObjective, MetaGradient, Networks, Parameters, QueryObjective
from .native.executor import NativeExecutor
from .native.lowering import PlanError
from .torch.executor import TorchExecutor

__all__ = [
    "Adapted",
    "Executor",
    "GeneratorObjective",
    "MetaGradient",
    "NativeExecutor",
    "Networks",
    "Parameters",
    "PlanError",
    "QueryObjective",
    "TorchExecutor",
]
