"""Stateful optimizers of modules (`meta`) and of functional parameters (`func`)."""

from __future__ import annotations

from ..._originals import fall_back_to
from . import func, meta
from .func import FuncOptimizer
from .meta import MetaAdam, MetaAdamW, MetaOptimizer, MetaRMSProp, MetaRMSprop, MetaSGD

__all__ = [
    "FuncOptimizer",
    "MetaAdam",
    "MetaAdamW",
    "MetaOptimizer",
    "MetaRMSProp",
    "MetaRMSprop",
    "MetaSGD",
    "func",
    "meta",
]
__getattr__, __dir__ = fall_back_to(__name__, "torchopt.optim")
