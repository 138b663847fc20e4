"""Feature spaces of a run: the package's where they fit its data, else trained once and kept in its folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..metrics import FeatureExtractor, shipped
from ..metrics.objectives import OBJECTIVES
from ..tasks import TaskDistribution
from .run_folder import RunFolder

Say = Callable[[str], None]
Report = Callable[[str, int, int], None]


def feature_spaces(folder: RunFolder, train: TaskDistribution, say: Say, report: Report) -> dict[str, FeatureExtractor]:
    """Return the feature networks by objective, "classifier" first; train those that the run lacks.

    The package's come before the run's own, so that figures of runs on the same data compare.

    Args:
        folder: the run's; it keeps what is trained.
        train: the training classes.
        say: told in one line that training begins.
        report: called after each step of training with a name, the steps done and their total; an exception ends it.
    """
    found = shipped.spaces(train)
    return found or {objective: _own(folder, objective, train, say, report) for objective in OBJECTIVES}


def feature_classifier(folder: RunFolder, train: TaskDistribution, say: Say, report: Report) -> FeatureExtractor:
    """Return the classifier in whose features the best checkpoint is chosen; train it if there is none.

    The run's own comes before the package's: earlier checkpoints of the run were judged by it.

    Args:
        folder, train, say, report: as for `feature_spaces`.
    """
    found = None if folder.features.exists() else shipped.spaces(train)
    return found["classifier"] if found else _own(folder, "classifier", train, say, report)


def _own(folder: RunFolder, objective: str, train: TaskDistribution, say: Say, report: Report) -> FeatureExtractor:
    path, name = _place(folder, objective)
    if path.exists():
        return FeatureExtractor.load(path)
    say(f"training the feature {name} on the training classes ...")
    features = FeatureExtractor.train(train, objective, report=partial(report, f"feature {name}"))
    features.save(path)
    return features


def _place(folder: RunFolder, objective: str) -> tuple[Path, str]:
    """Return the file of a network and its name for people."""
    return {
        "classifier": (folder.features, "classifier"),
        "prototype": (folder.prototype_features, "prototypes"),
    }[objective]
