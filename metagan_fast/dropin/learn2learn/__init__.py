"""Stand-in for learn2learn: write `import metagan_fast.dropin.learn2learn as l2l`.

Here are the learners (`algorithms`), what they are made of (`clone_module`, `update_module`, `detach_module`), the
learned updates (`optim`) and small modules (`nn`). `MAML` and `MetaSGD` have one method more, `adapt_batch`. What is
not covered, data sets, `vision`, `gym`, `text` and the Lightning wrappers among it, is learn2learn's own where that is
installed.
"""

from __future__ import annotations

from .._originals import hand_on
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
"""The version of learn2learn that is stood in for."""
__getattr__, __dir__ = hand_on(__name__, "learn2learn")
