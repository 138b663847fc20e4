"""Learners: a module with `clone()` and `adapt()`."""

from .gbml import GBML
from .maml import MAML, maml_update
from .meta_sgd import MetaSGD, meta_sgd_update

__all__ = ["GBML", "MAML", "MetaSGD", "maml_update", "meta_sgd_update"]
