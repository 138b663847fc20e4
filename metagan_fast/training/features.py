"""Feature classifier of a run, trained once and kept in its folder."""

from __future__ import annotations

from collections.abc import Callable

from ..metrics import FeatureExtractor
from ..tasks import TaskDistribution
from .run_folder import RunFolder


def feature_classifier(folder: RunFolder, train: TaskDistribution, say: Callable[[str], None]) -> FeatureExtractor:
    """Return the run's feature classifier; train it at the first call.

    Args:
        folder: the run's; it keeps the classifier.
        train: the training classes.
        say: told in one line that training begins.
    """
    if folder.features.exists():
        return FeatureExtractor.load(folder.features)
    say("training the feature classifier on the training classes ...")
    features = FeatureExtractor.train(train)
    features.save(folder.features)
    return features
