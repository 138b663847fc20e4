"""Evaluation of few-shot generation: figures of generated images in learned feature spaces.

Distances (KID, FID, to the nearest shot), density and coverage, recognisability, bootstrap intervals, evaluation.

Example:
    >>> import torch
    >>> from metagan_fast import metrics
    >>> first, second = torch.randn(200, 8), torch.randn(200, 8)  # features of two sets of images
    >>> abs(metrics.kernel_distance(first, second).item()) < 0.2
    True
    >>> (metrics.kernel_distance(first, second + 1) > 1).item()
    True
    >>> metrics.nearest_distance(first[:3], first).tolist()  # copies
    [0.0, 0.0, 0.0]
"""

from __future__ import annotations

from . import shipped
from .augmented_copies import Augmentation, tune
from .coverage import density_coverage
from .distances import frechet_distance, kernel_distance, nearest_distance
from .episodes import Episode, Episodes
from .evaluation import evaluate
from .features import FeatureExtractor
from .intervals import bootstrap_interval, ratio_interval
from .recognition import diversity, few_shot_accuracy, recognisability
from .results import Evaluation, Figure, Row

__all__ = [
    "Augmentation",
    "Episode",
    "Episodes",
    "Evaluation",
    "FeatureExtractor",
    "Figure",
    "Row",
    "bootstrap_interval",
    "density_coverage",
    "diversity",
    "evaluate",
    "few_shot_accuracy",
    "frechet_distance",
    "kernel_distance",
    "nearest_distance",
    "ratio_interval",
    "recognisability",
    "shipped",
    "tune",
]
