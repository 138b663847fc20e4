"""Feature classifier of a run, trained once and kept in its folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..metrics import FeatureExtractor
from ..tasks import TaskDistribution
from .run_folder import RunFolder


def feature_classifier(
    folder: RunFolder,
    train: TaskDistribution,
    say: Callable[[str], None],
    report: Callable[[str, int, int], None],
) -> FeatureExtractor:
    """Return the run's feature classifier; train it at the first call.

    Args:
        folder: the run's; it keeps the classifier.
        train: the training classes.
        say: told in one line that training begins.
        report: called after each of its steps with a name, the steps done and their total; an exception ends it.
    """
    if folder.features.exists():
        return FeatureExtractor.load(folder.features)
    say("training the feature classifier on the training classes ...")
    features = FeatureExtractor.train(train, report=partial(report, "feature classifier"))
    features.save(folder.features)
    return features
