"""Learners: modules with `clone()` and `adapt()`."""

from __future__ import annotations

from ..._originals import fall_back_to
from . import base_learner, gbml, maml, meta_sgd
from .gbml import GBML
from .maml import MAML, maml_update
from .meta_sgd import MetaSGD, meta_sgd_update

__all__ = [
    "GBML",
    "MAML",
    "MetaSGD",
    "base_learner",
    "gbml",
    "maml",
    "maml_update",
    "meta_sgd",
    "meta_sgd_update",
]
__getattr__, __dir__ = fall_back_to(__name__, "learn2learn.algorithms")
