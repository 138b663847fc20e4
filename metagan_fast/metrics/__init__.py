"""Judging generated images: KID per class, pooled FID, nearest-support distance, in learned features."""

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
