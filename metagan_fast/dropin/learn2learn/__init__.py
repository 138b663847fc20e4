"""Stand-in for learn2learn: write `import metagan_fast.dropin.learn2learn as l2l`.

Here are the learners (`algorithms`), what they are made of (`clone_module`, `update_module`, `detach_module`), the
learned updates (`optim`) and small modules (`nn`). `MAML` and `MetaSGD` have one method more, `adapt_batch`. Data sets,
`vision`, `gym`, `text` and the Lightning wrappers are not covered.
"""

from __future__ import annotations

from typing import Any

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


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"metagan_fast.dropin.learn2learn has no {name!r}; it has {', '.join(__all__)}. "
        "What else learn2learn has, data sets among it, is not covered"
    )
