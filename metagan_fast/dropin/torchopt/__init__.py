"""Stand-in for the library TorchOpt: its differentiable optimizers, with one fused step over one flat buffer.

Change `import torchopt` to `from metagan_fast.dropin import torchopt`. `docs/migrate/torchopt.md` lists what differs.
"""

from __future__ import annotations

from metagan_fast.dropin.torchopt.optim import (
    FuncOptimizer,
    MetaAdam,
    MetaAdamW,
    MetaOptimizer,
    MetaRMSProp,
    MetaRMSprop,
    MetaSGD,
)
from metagan_fast.dropin.torchopt.transforms import (
    GradientTransformation,
    adam,
    adamw,
    apply_updates,
    chain,
    rmsprop,
    sgd,
)
from metagan_fast.dropin.torchopt.utils import (
    ModuleState,
    extract_state_dict,
    module_clone,
    module_detach_,
    recover_state_dict,
    stop_gradient,
)

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
    "apply_updates",
    "chain",
    "extract_state_dict",
    "module_clone",
    "module_detach_",
    "recover_state_dict",
    "rmsprop",
    "sgd",
    "stop_gradient",
]
