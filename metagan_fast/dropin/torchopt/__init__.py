"""Drop-in replacement for TorchOpt's differentiable optimizers, with one fused step over one flat buffer.

Change `import torchopt` to `from metagan_fast.dropin import torchopt`; `docs/migrate/torchopt.md` lists the
differences. Names that are not covered resolve to TorchOpt, if it is installed.
"""

from __future__ import annotations

from .._originals import fall_back_to
from . import alias, base, combine, optim, update, utils
from .alias import adam, adamw, rmsprop, sgd
from .base import GradientTransformation
from .combine import chain
from .optim import FuncOptimizer, MetaAdam, MetaAdamW, MetaOptimizer, MetaRMSProp, MetaRMSprop, MetaSGD
from .update import apply_updates
from .utils import ModuleState, extract_state_dict, module_clone, module_detach_, recover_state_dict, stop_gradient

__all__ = [
    "FuncOptimizer",
    "GradientTransformation",
    "MetaAdam",
    "MetaAdamW",
    "MetaOptimizer",
    "MetaRMSProp",
    "MetaRMSprop",
    "MetaSGD",
    "ModuleState",
    "adam",
    "adamw",
    "alias",
    "apply_updates",
    "base",
    "chain",
    "combine",
    "extract_state_dict",
    "module_clone",
    "module_detach_",
    "optim",
    "recover_state_dict",
    "rmsprop",
    "sgd",
    "stop_gradient",
    "update",
    "utils",
]
__version__ = "0.7.3"
"""Version of TorchOpt whose interface this is."""
__getattr__, __dir__ = fall_back_to(__name__, "torchopt")
