"""Feature networks of a run: the package's, the folder's, or newly trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import metagan_fast as mgf
from metagan_fast.metrics import FeatureExtractor, shipped
from metagan_fast.training.features import feature_classifier, feature_spaces
from metagan_fast.training.run_folder import RunFolder

train = FeatureExtractor.train


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Objectives that training was asked for; it is short."""
    asked = []

    def short(classes: Any, objective: str = "classifier", **rest: Any) -> FeatureExtractor:
        asked.append(objective)
        return train(classes, objective, steps=2, batch_size=8, **rest)

    monkeypatch.setattr(FeatureExtractor, "train", short)
    return asked


@pytest.fixture(scope="module")
def digits() -> mgf.tasks.TaskDistribution:
    return mgf.tasks.load("digits").train


def ignore(name: str, done: int, total: int) -> None:
    """Take no notice of the progress of training."""


def digests(spaces: dict[str, FeatureExtractor]) -> list[str]:
    return [features.digest for features in spaces.values()]


def test_networks_are_trained_once(folder: RunFolder, trained: list[str], digits: Any) -> None:
    said: list[str] = []
    steps: list[tuple[str, int, int]] = []
    classifier = feature_classifier(folder, digits, said.append, lambda *step: steps.append(step))
    assert steps == [("feature classifier", 1, 2), ("feature classifier", 2, 2)]
    assert trained == ["classifier"] and said == ["training the feature classifier on the training classes ..."]
    spaces = feature_spaces(folder, digits, said.append, ignore)
    assert trained == ["classifier", "prototype"] and "prototype" in said[1]
    assert list(spaces) == ["classifier", "prototype"] and spaces["classifier"].digest == classifier.digest
    assert [features.objective for features in spaces.values()] == list(spaces)
    assert digests(feature_spaces(folder, digits, said.append, ignore)) == digests(spaces)
    assert feature_classifier(folder, digits, said.append, ignore).digest == classifier.digest
    assert len(trained) == len(said) == 2
    files = {path.name for path in folder.path.iterdir() if path.is_file()}
    assert files == {"features.safetensors", "features-prototype.safetensors"}


def test_the_packages_networks_need_no_training(
    folder: RunFolder, trained: list[str], digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come first in figures; but a best checkpoint is chosen by what chose the ones before it."""
    ours = {name: train(digits, name, steps=1, batch_size=8, seed=5) for name in ("classifier", "prototype")}
    monkeypatch.setattr(shipped, "spaces", lambda distribution: ours if distribution is digits else None)
    said: list[str] = []
    assert feature_spaces(folder, digits, said.append, ignore) == ours
    assert feature_classifier(folder, digits, said.append, ignore) is ours["classifier"]
    assert not said and not trained and not folder.features.exists()
    own = train(digits, steps=1, batch_size=8, seed=6)
    own.save(folder.features)
    assert feature_classifier(folder, digits, said.append, ignore).digest == own.digest
    assert feature_spaces(folder, digits, said.append, ignore) == ours


def test_overwriting_a_run_removes_its_networks(folder: RunFolder, trained: list[str], digits: Any) -> None:
    folder.write_config({"versions": {"metagan_fast": "1"}})
    feature_spaces(folder, digits, print, ignore)
    assert folder.prototype_features.exists()
    RunFolder.create(folder.path, overwrite=True)
    assert not folder.features.exists() and not folder.prototype_features.exists()
