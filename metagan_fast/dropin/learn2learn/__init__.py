"""Drop-in replacement for learn2learn: `import metagan_fast.dropin.learn2learn as l2l`.

It covers the learners (`algorithms`), their building blocks (`clone_module`, `update_module`, `detach_module`), learned
updates (`optim`) and small modules (`nn`). `MAML` and `MetaSGD` have an additional method, `adapt_batch`. All other
names (data sets, `vision`, `gym`, `text`, the Lightning wrappers) resolve to learn2learn, if it is installed.
"""

from __future__ import annotations

from .._originals import fall_back_to
from . import algorithms, nn, optim, utils
from .algorithms import GBML, MAML, MetaSGD, maml_update, meta_sgd_update
from .optim import ParameterUpdate
from .utils import (
    accuracy,
    clone_module,
    clone_named_parameters,
    clone_parameters,
    detach_module,
    magic_box,
    update_module,
)

__all__ = [
    "GBML",
    "MAML",
    "MetaSGD",
    "ParameterUpdate",
    "accuracy",
    "algorithms",
    "clone_module",
    "clone_named_parameters",
    "clone_parameters",
    "detach_module",
    "magic_box",
    "maml_update",
    "meta_sgd_update",
    "nn",
    "optim",
    "update_module",
    "utils",
]
__version__ = "0.2.1"
"""Version of learn2learn whose interface this is."""
__getattr__, __dir__ = fall_back_to(__name__, "learn2learn")
