"""Utility modules, and linear maps with Kronecker factors."""

from __future__ import annotations

from ..._originals import fall_back_to
from . import kroneckers, misc
from .kroneckers import KroneckerLinear, kronecker_addmm
from .misc import Flatten, Lambda, Scale, freeze, unfreeze

__all__ = [
    "Flatten",
    "KroneckerLinear",
    "Lambda",
    "Scale",
    "freeze",
    "kronecker_addmm",
    "kroneckers",
    "misc",
    "unfreeze",
]
__getattr__, __dir__ = fall_back_to(__name__, "learn2learn.nn")
