"""Metrics of generated images in a learned feature space: KID per class, pooled FID, nearest-support distance.

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

from .distances import bootstrap_interval, frechet_distance, kernel_distance, nearest_distance
from .evaluation import Difference, Evaluation, Scores, evaluate
from .features import FeatureExtractor

__all__ = [
    "Difference",
    "Evaluation",
    "FeatureExtractor",
    "Scores",
    "bootstrap_interval",
    "evaluate",
    "frechet_distance",
    "kernel_distance",
    "nearest_distance",
]
