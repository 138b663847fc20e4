"""Executors of the inner loops of a task batch: `native` on a CPU, `torch` for any module on any device."""

from __future__ import annotations

from .base import Executor, GeneratorObjective, InnerLoopResult, MetaGradient, Network, QueryObjective
from .native.executor import NativeExecutor
from .native.lowering import PlanError
from .task_sum import TaskSum
from .torch.executor import TorchExecutor

__all__ = [
    "Executor",
    "GeneratorObjective",
    "InnerLoopResult",
    "MetaGradient",
    "NativeExecutor",
    "Network",
    "PlanError",
    "QueryObjective",
    "TaskSum",
    "TorchExecutor",
]
