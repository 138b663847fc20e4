"""The torch executor: any module, any device, all tasks of a batch at once under `torch.func.vmap`."""

from __future__ import annotations

from .executor import TorchExecutor

__all__ = ["TorchExecutor"]
