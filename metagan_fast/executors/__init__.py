"""Executors run the inner loops of a task batch: `torch` for any module on any device."""

from __future__ import annotations

from ._types import Adapted, Executor, GeneratorObjective, MetaGradient, Networks, Parameters, QueryObjective
from .torch_executor import TorchExecutor

__all__ = [
    "Adapted",
    "Executor",
    "GeneratorObjective",
    "MetaGradient",
    "Networks",
    "Parameters",
    "QueryObjective",
    "TorchExecutor",
]
