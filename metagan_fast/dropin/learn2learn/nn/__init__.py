"""Small modules that scripts use, and linear maps of two Kronecker factors."""

from __future__ import annotations

from ..._originals import hand_on
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
__getattr__, __dir__ = hand_on(__name__, "learn2learn.nn")
