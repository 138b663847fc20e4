"""metagan_fast: meta-train GANs on many small tasks, fast.

A few gradient steps on 4 to 20 images of a new class make a meta-trained GAN generate that class. `MetaGAN` is the
entry point; `functional` holds the fused operations for custom training loops.
"""

from __future__ import annotations

import os

from . import functional, losses, models, optim, schedules, tasks
from ._utils import torch_version
from .checkpoint import CheckpointError
from .executors import InnerLoopResult, MetaGradient
from .flat import FlatLayout
from .inner import InnerLoop
from .learner import FOMAML, MAML, AdaptedGAN, AnnealedStepWeights, MetaGAN, Reptile
from .noise import Noise
from .tasks import TaskBatch

__version__ = "0.2.0"

torch_version.log_if_untested()


def pretrained(name: str | os.PathLike[str]) -> MetaGAN:
    """Return a meta-trained GAN; see `metagan_fast.training.pretrained`.

    Args:
        name: "glyphs", of the package; or the path of a folder that `train` or `metagan-fast publish` wrote.

    Raises:
        ValueError: unknown name.
    """
    from .training.pretrained import pretrained as load  # slow to import, and above everything here

    return load(name)


Adapted = InnerLoopResult  # its name before 0.2

__all__ = [
    "FOMAML",
    "MAML",
    "Adapted",
    "AdaptedGAN",
    "AnnealedStepWeights",
    "CheckpointError",
    "FlatLayout",
    "InnerLoop",
    "InnerLoopResult",
    "MetaGAN",
    "MetaGradient",
    "Noise",
    "Reptile",
    "TaskBatch",
    "functional",
    "losses",
    "models",
    "optim",
    "pretrained",
    "schedules",
    "tasks",
]
