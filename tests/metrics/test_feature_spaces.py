"""Feature networks: what their objectives draw and score, what they learn, files, and the package's weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metagan_fast import checkpoint, tasks
from metagan_fast.metrics import FeatureExtractor, shipped
from metagan_fast.metrics.networks import FeatureNetwork
from metagan_fast.metrics.objectives import OBJECTIVES, Pool, PrototypicalEpisodes
from metagan_fast.tasks import TaskDistribution, embedded
from metagan_fast.tasks.images import ImageSet
from metagan_fast.training import config
from tolerances import tolerance

objectives = pytest.mark.parametrize("objective", OBJECTIVES)


class Shapes:
    """Classes of 12x12 images: a 5x5 pattern of a class at a random place, with noise."""

    def __init__(self, seed: int, classes: int, count: int = 20) -> None:
        draws = np.random.default_rng(seed)
        self.classes = tuple(f"shape-{index}" for index in range(classes))
        self._images = {}
        for name in self.classes:
            pattern = 200 * draws.integers(0, 2, (5, 5))
            images = draws.integers(0, 40, (count, 1, 12, 12))
            for image, (row, column) in zip(images, draws.integers(2, 7, (count, 2)), strict=True):
                image[0, row : row + 5, column : column + 5] += pattern
            self._images[name] = torch.from_numpy(images.astype(np.uint8))

    def images(self, name: str) -> Tensor:
        return self._images[name]


def train(data: Any, objective: str, steps: int, batch_size: int = 64, seed: int = 0) -> FeatureExtractor:
    return FeatureExtractor.train(data, objective, steps=steps, batch_size=batch_size, seed=seed)


def nearest_prototype(features: list[np.ndarray], shots: int = 4) -> float:
    """Return the share of each class's later images that are nearest to the mean of their class's first ones."""
    prototypes = np.stack([images[:shots].mean(0) for images in features])
    right = [
        np.argmin(((image - prototypes) ** 2).sum(1)) == label
        for label, images in enumerate(features)
        for image in images[shots:]
    ]
    return float(np.mean(right))


@pytest.mark.parametrize(("objective", "steps"), [("classifier", 40), ("prototype", 80)])
def test_networks_separate_unseen_classes(objective: str, steps: int) -> None:
    """By far better than pixels, in which a moved pattern is another one."""
    features = train(Shapes(0, 60), objective, steps)
    unseen = Shapes(1, 12)
    images = [unseen.images(name).float() / 127.5 - 1 for name in unseen.classes]
    by_pixels = nearest_prototype([x.flatten(1).numpy() for x in images])
    assert by_pixels < 0.2
    assert nearest_prototype([features(x).numpy() for x in images]) > by_pixels + 0.2


@objectives
def test_training_repeats_and_leaves_the_global_generator(objective: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (train(Shapes(0, 6), objective, 3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.digest == again.digest != other.digest
    assert (first.objective, first.record["objective"]) == (objective, objective)
    assert json.loads(json.dumps(first.record)) == first.record


def test_the_objectives_have_networks_of_their_own() -> None:
    states = [train(Shapes(0, 6), objective, 1)._state for objective in OBJECTIVES]
    assert list(OBJECTIVES) == ["classifier", "prototype"]
    assert states[0].keys() & states[1].keys() == {"mean", "scale"}
    with pytest.raises(ValueError, match="expected an objective of classifier, prototype; got 'autoencoder'"):
        train(Shapes(0, 2), "autoencoder", 1)


@objectives
def test_features_are_standardised(objective: str) -> None:
    data = Shapes(0, 6)
    features = train(data, objective, 20)
    found = features(torch.cat([data.images(name) for name in data.classes]).float() / 127.5 - 1)
    assert found.shape == (120, len(features._state["mean"])) and found.dtype == torch.float32
    assert found.mean(0).abs().max() < 1e-3 and (found.std(0) < 1.001).all() and (found.std(0) > 0.9).any()


@objectives
def test_the_layout_in_memory_changes_no_more_than_rounding(objective: str) -> None:
    features = train(Shapes(0, 6), objective, 3)
    network = OBJECTIVES[objective].network_class(1)
    network.load_state_dict(features._state)
    images = torch.rand(9, 1, 12, 12) * 2 - 1
    with torch.no_grad():
        expected = network.eval()(images)
    limit = tolerance("task-layer") * expected.abs().max().item()
    torch.testing.assert_close(features(images), expected, rtol=0, atol=limit)


class Counted:
    """Classes of the sizes given; every pixel of an image is its class's number, then its own."""

    def __init__(self, *counts: int) -> None:
        self.counts = counts
        self.classes = tuple(f"class-{index}" for index in range(len(counts)))

    def images(self, name: str) -> Tensor:
        label = self.classes.index(name)
        rows = [[label, index] for index in range(self.counts[label])]
        return torch.tensor(rows, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4).contiguous()


class Corner(FeatureNetwork):
    """The first pixel of each channel."""

    size = 2

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.unused = nn.Parameter(torch.zeros(channels))

    def embed(self, images: Tensor) -> Tensor:
        self.seen = (images[:, :, 0, 0] + 1) * 127.5
        return images[:, :, 0, 0]


@pytest.mark.parametrize("batch_size", [12, 1])
def test_episodes_by_hand(monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    monkeypatch.setattr(PrototypicalEpisodes, "network_class", Corner)
    counts = (4, 9, 5, 12, 4)
    data = Counted(*counts)
    pool = Pool(torch.cat([data.images(name) for name in data.classes]), torch.tensor(counts))
    objective, draws = PrototypicalEpisodes(2, len(counts)), torch.Generator().manual_seed(3)
    drawn = set()
    for _ in range(200):
        scores, labels = objective(pool, batch_size, draws)
        network: Any = objective.network
        seen = network.seen.round().int().reshape(-1, 4, 2).numpy()
        ways = len(seen)
        assert ways == (3 if batch_size == 12 else 2)
        assert len({int(each[0, 0]) for each in seen}) == ways
        for each in seen:
            assert len({int(x) for x in each[:, 0]}) == 1 and len({int(x) for x in each[:, 1]}) == 4
            drawn |= {(int(label), int(index)) for label, index in each}
        features = seen / 127.5 - 1
        expected = [
            [-((query - other[:2].mean(0)) ** 2).sum() for other in features] for each in features for query in each[2:]
        ]
        np.testing.assert_allclose(scores.numpy(), expected, rtol=0, atol=10 * tolerance("float32-rounding"))
        assert labels.tolist() == [way for way in range(ways) for _ in range(2)]
    assert drawn == {(label, index) for label, count in enumerate(counts) for index in range(count)}


@pytest.mark.parametrize("counts", [(2,), (1, 2), (3, 7, 1)], ids=str)
@objectives
def test_few_images_and_classes_train(objective: str, counts: tuple[int, ...]) -> None:
    features = train(Counted(*counts), objective, 2, batch_size=8)
    assert features(torch.zeros(2, 2, 4, 4)).isfinite().all()


@objectives
def test_networks_survive_a_file(objective: str, tmp_path: Path) -> None:
    features = train(Shapes(0, 4), objective, 2)
    features.save(tmp_path / "file")
    loaded = FeatureExtractor.load(tmp_path / "file")
    assert (loaded.digest, loaded.record, loaded.objective) == (features.digest, features.record, objective)


def test_a_file_without_an_objective_is_a_classifier(tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    features = train(Shapes(0, 4), "classifier", 2)
    names = {f"norms.{n}.{x}" for n in range(3) for x in ("weight", "bias", "running_mean", "running_var")}
    names |= {f"norms.{n}.num_batches_tracked" for n in range(3)} | {f"convolutions.{n}.weight" for n in range(3)}
    assert features._state.keys() == names | {"mean", "scale"}
    record = {name: features.record[name] for name in ("image_shape", "classes", "images", "steps")}
    checkpoint.write(tmp_path / "file", features._state, {"features": record})
    loaded = FeatureExtractor.load(tmp_path / "file")
    assert (loaded.objective, loaded.digest, loaded.record) == ("classifier", features.digest, record)


# The package's weights


@pytest.fixture(scope="module")
def glyphs() -> ImageSet:
    """Return the training scripts, as every default run has them."""
    found = embedded.read_glyphs()
    assert found.parts is not None
    return found.select(name for name, part in zip(found.classes, found.parts, strict=True) if part == "train").packed()


def test_the_default_run_has_the_packages_spaces() -> None:
    data = config.build_tasks(config.resolve(config.from_preset("default")))
    found = shipped.spaces(data.train)
    assert found is not None and list(found) == ["classifier", "prototype"]
    assert [features.objective for features in found.values()] == ["classifier", "prototype"]
    total = hashlib.sha256(json.dumps([(name, *data.train.images(name).shape) for name in data.train.classes]).encode())
    for name in data.train.classes:
        total.update(data.train.images(name).numpy().tobytes())
    for features in found.values():
        assert features.record["images_sha256"] == total.hexdigest()


def test_other_classes_images_or_sizes_have_no_spaces(glyphs: ImageSet) -> None:
    def spaces(images: ImageSet) -> Mapping[str, FeatureExtractor] | None:
        return shipped.spaces(TaskDistribution(images))

    assert spaces(glyphs) is not None
    assert spaces(dataclasses.replace(glyphs, groups=None)) is not None  # training draws classes alone
    assert spaces(glyphs.select(glyphs.classes[1:])) is None
    assert spaces(glyphs.select((*glyphs.classes[1:], glyphs.classes[0]))) is None
    assert spaces(dataclasses.replace(glyphs, classes=("other", *glyphs.classes[1:]))) is None
    moved = (glyphs.counts[0] + 1, glyphs.counts[1] - 1, *glyphs.counts[2:])
    assert spaces(dataclasses.replace(glyphs, counts=moved)) is None
    images = glyphs.images.copy()
    images[-1, 0, 31, 31] ^= 1
    assert spaces(dataclasses.replace(glyphs, images=images)) is None
    assert spaces(dataclasses.replace(glyphs, images=np.ascontiguousarray(glyphs.images[:, :, ::2, ::2]))) is None


def test_data_of_other_sizes_are_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "images_digest", None)
    assert shipped.spaces(tasks.load("digits").train) is None


def test_files_are_those_recorded() -> None:
    lines = (shipped.FOLDER / "SHA256SUMS").read_text().splitlines()
    recorded = dict(reversed(line.split("  ")) for line in lines)
    found = {path.name: path.read_bytes() for path in shipped.FOLDER.iterdir() if path.name != "SHA256SUMS"}
    assert {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} == recorded
    assert found.keys() == {shipped.path(objective).name for objective in OBJECTIVES}
    assert sum(map(len, found.values())) <= 600_000


@objectives
def test_recorded_accuracies_repeat(objective: str) -> None:
    """All classes of the validation scripts, divided once, where the record has the mean of many divisions."""
    features = FeatureExtractor.load(shipped.path(objective))
    validation = tasks.load("glyphs").validation
    draws = np.random.default_rng(0)  # a class's first images are the most unusual ones
    shuffled = [draws.permutation(validation.images(name).numpy()) for name in validation.classes]
    images = [torch.from_numpy(x).float() / 127.5 - 1 for x in shuffled]
    recorded = features.record["validation_accuracy"][f"{len(images)}-way"]
    assert nearest_prototype([features(x).numpy() for x in images]) == pytest.approx(recorded, abs=0.04)
