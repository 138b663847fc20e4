"""Optimizers with a state: of modules (`meta`), and of functional parameters (`func`)."""

from __future__ import annotations

from ..._originals import hand_on
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
__getattr__, __dir__ = hand_on(__name__, "torchopt.optim")
