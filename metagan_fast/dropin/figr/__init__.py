"""Drop-in replacement for FIGR's trainer (github.com/OctThe16th/FIGR); episodes run in the engine.

    from metagan_fast.dropin.figr import FIGR  # was: from train import FIGR
    python -m metagan_fast.dropin.figr --dataset Omniglot  # was: python train.py --dataset Omniglot

`docs/migrate/figr.md` lists the differences. Source: Clouâtre & Demers 2019, arXiv:1901.02199.
"""

from __future__ import annotations

from .environments import FIGR8MetaEnv, MetaEnv, MnistMetaEnv, OmniglotMetaEnv, device
from .functions import calc_gradient_penalty, normalize_data, unnormalize_data, wassertein_loss
from .networks import DCGANDiscriminator, DCGANGenerator, ResNetDiscriminator, ResNetGenerator
from .options import OPTIONS
from .trainer import FIGR, Environment

__all__ = [
    "FIGR",
    "OPTIONS",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "Environment",
    "FIGR8MetaEnv",
    "MetaEnv",
    "MnistMetaEnv",
    "OmniglotMetaEnv",
    "ResNetDiscriminator",
    "ResNetGenerator",
    "calc_gradient_penalty",
    "device",
    "normalize_data",
    "unnormalize_data",
    "wassertein_loss",
]
