"""Optimizers with a state: of modules (`meta`), and of functional parameters (`func`)."""

from __future__ import annotations

from metagan_fast.dropin._originals import hand_on
from metagan_fast.dropin.torchopt.optim import func, meta
from metagan_fast.dropin.torchopt.optim.func import FuncOptimizer
from metagan_fast.dropin.torchopt.optim.meta import (
    MetaAdam,
    MetaAdamW,
    MetaOptimizer,
    MetaRMSProp,
    MetaRMSprop,
    MetaSGD,
)

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
