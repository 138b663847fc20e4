"""metagan_fast: meta-train GANs on many small tasks, fast.

A few gradient steps on 4 to 20 images of a new class make a meta-trained GAN generate that class. `MetaGAN` is the
entry point; `functional` holds the fused operations for custom training loops.
"""

from __future__ import annotations

from . import functional, losses, models, optim, schedules, tasks
from .checkpoint import CheckpointError
from .executors import InnerLoopResult, MetaGradient
from .flat import FlatLayout
from .inner import InnerLoop
from .learner import FOMAML, MAML, AdaptedGAN, AnnealedStepWeights, MetaGAN, Reptile
from .noise import Noise
from .tasks import TaskBatch

__version__ = "0.1.0"


def pretrained(name: str) -> MetaGAN:
    """Return a meta-trained GAN of the package; see `metagan_fast.training.pretrained`.

    Args:
        name: "glyphs".

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
