"""The learner: `MetaGAN`, its meta-learning algorithms and its state."""

from __future__ import annotations

from .adapted import AdaptedGAN
from .algorithms import FOMAML, MAML, AnnealedStepWeights, Reptile
from .metagan import MetaGAN

__all__ = ["FOMAML", "MAML", "AdaptedGAN", "AnnealedStepWeights", "MetaGAN", "Reptile"]
