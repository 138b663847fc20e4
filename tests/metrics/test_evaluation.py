"""The evaluation against methods whose figures are known."""

from __future__ import annotations

import io
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from metagan_fast import metrics, plots
from metagan_fast.metrics import Episodes, Evaluation, FeatureExtractor
from metagan_fast.metrics.results import FIGURES, METHODS
from striped_classes import Bars, learner
from tolerances import tolerance

ROUNDING = tolerance("float64-rounding")
HELD_OUT = range(1, 40, 6)


@pytest.fixture(scope="module")
def features() -> FeatureExtractor:
    return FeatureExtractor.train(Bars(range(0, 40, 3)), steps=40, batch_size=32)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data() -> Any:
    return SimpleNamespace(train=Bars(range(0, 40, 3)), validation=Bars(range(2, 40, 9)))


@pytest.fixture(scope="module")
def found(features: FeatureExtractor, data: Any) -> Evaluation:
    return metrics.evaluate(
        learner(),
        Bars(HELD_OUT),  # type: ignore[arg-type]
        {"classifier": features, "pixels": flat_pixels},
        tasks=data,
        random=learner(2.0),
        shots=(4, 1),
        steps=(8, 0, 3),
        samples=16,
        draws=2,
    )


def flat_pixels(images: Tensor) -> Tensor:
    """Return every third pixel, as a feature function of a user's own."""
    return images.flatten(1)[:, ::3]


def kid(found: Evaluation, method: str, space: str = "classifier") -> float:
    return found.row(method).figures[space]["kid"].mean


def test_rows(found: Evaluation) -> None:
    assert found.classes == Bars(HELD_OUT).classes
    assert found.spaces == ("classifier", "pixels") and found.shots == (4, 1) and found.steps == (8, 0, 3)
    assert [row.method for row in found.headline] == list(METHODS)
    assert {(row.method, row.shots, row.steps) for row in found.rows if row.method == "adapted"} == {
        ("adapted", shots, steps) for shots in (4, 1) for steps in (8, 0, 3)
    }
    assert not any(row.method == "random" for row in found.rows if row.shots == 1)
    for row in found.rows:
        for figures in row.figures.values():
            assert list(figures) == list(FIGURES)
            for name, figure in figures.items():
                if name == "fid":
                    assert figure.low is None
                else:
                    assert figure.low is not None and figure.high is not None
                    assert figure.low <= figure.mean <= figure.high


def test_the_learner_stays(features: FeatureExtractor) -> None:
    trained = learner()
    before = trained.generator_parameters.clone()
    metrics.evaluate(trained, Bars(HELD_OUT), features, samples=4)  # type: ignore[arg-type]
    assert torch.equal(trained.generator_parameters, before) and trained.step == 0


def test_order_of_methods_that_is_known(found: Evaluation) -> None:
    assert abs(kid(found, "real")) < 0.1 * kid(found, "random")
    assert kid(found, "real") < kid(found, "copies") < kid(found, "wrong class")
    assert kid(found, "augmented copies") >= kid(found, "real")
    unadapted, without = found.row("unadapted"), found.row("adapted", steps=0)
    assert unadapted.kid_per_class != without.kid_per_class or unadapted.figures == without.figures


def test_copies_are_told_from_new_images(found: Evaluation) -> None:
    for space in found.spaces:
        copies, real = found.row("copies").figures[space], found.row("real").figures[space]
        assert copies["copy_ratio"].mean == 0 and copies["pixel_copy_ratio"].mean == 0
        assert real["copy_ratio"].mean == 1 and real["pixel_copy_ratio"].mean == 1
        assert copies["diversity"].mean < real["diversity"].mean
        assert real["coverage"].mean > copies["coverage"].mean


def test_pooled_fid_cannot_see_a_wrong_class(found: Evaluation) -> None:
    """Classes exchanged among each other leave the pooled distribution as it is."""
    real, wrong = (found.row(name).figures["classifier"] for name in ("real", "wrong class"))
    half_the_digits = math.sqrt(ROUNDING)  # all that square roots of singular covariances keep
    assert wrong["fid"].mean == pytest.approx(real["fid"].mean, rel=half_the_digits)
    assert wrong["recognisability"].mean < 0.2 < 0.8 < real["recognisability"].mean
    assert wrong["accuracy"].mean < real["accuracy"].mean


def test_differences_are_paired(found: Evaluation) -> None:
    for space in found.spaces:
        assert set(found.differences[space]) == set(METHODS) - {"adapted"}
        for name, figure in found.differences[space].items():
            assert figure.mean == pytest.approx(kid(found, "adapted", space) - kid(found, name, space), rel=1e-9)
            own, other = (torch.tensor(found.row(each).kid_per_class[space]) for each in ("adapted", name))
            assert (figure.low, figure.high) == pytest.approx(metrics.bootstrap_interval(own - other), rel=1e-5)


def test_kid_of_real_images_by_hand(features: FeatureExtractor) -> None:
    bars = Bars(HELD_OUT)
    episodes = Episodes.draw(bars, shots=4, draws=2, seed=5)  # type: ignore[arg-type]
    found = metrics.evaluate(learner(), bars, features, samples=4, episodes=episodes)  # type: ignore[arg-type]
    expected = []
    for draw in episodes.draws:
        for name, episode in zip(bars.classes, draw, strict=True):
            images = features(bars.images(name).float() / 127.5 - 1)
            expected.append(metrics.kernel_distance(images[list(episode.others)], images[list(episode.references)]))
    by_class = torch.stack(expected).view(2, -1).mean(0)
    assert found.row("real").kid_per_class["features"] == pytest.approx(by_class.tolist(), rel=1e-5, abs=1e-6)
    assert found.settings["episodes"] == episodes.digest


def test_the_noise_is_that_of_the_seed_alone(features: FeatureExtractor) -> None:
    def judged(**options: Any) -> Any:
        own = learner()
        own.step = options.pop("step", 0)
        return metrics.evaluate(own, Bars(range(5)), features, samples=6, **options).row("adapted")  # type: ignore[arg-type]

    assert judged() == judged(step=7)
    assert judged() != judged(seed=1)
    few = judged(most_tasks=2).kid_per_class["features"]
    assert few == pytest.approx(judged().kid_per_class["features"], rel=1e-4)


def test_the_best_samples_are_judged(features: FeatureExtractor) -> None:
    def judged(**options: Any) -> tuple[Evaluation, list[Tensor]]:
        seen: list[Tensor] = []

        def space(images: Tensor) -> Tensor:
            seen.extend(images)
            return features(images)

        return metrics.evaluate(learner(), Bars(range(3)), space, **options), seen  # type: ignore[arg-type]

    best, kept = judged(samples=6, best_of=3)
    _, candidates = judged(samples=18)
    assert best.settings["best_of"] == 3
    everything = torch.stack(candidates).flatten(1)
    assert all((everything == image.flatten()).all(1).any() for image in kept)
    assert len(kept) < len(candidates)


def test_progress_counts_the_classes_adapted(features: FeatureExtractor) -> None:
    seen: list[tuple[int, int]] = []
    metrics.evaluate(
        learner(),
        Bars(range(5)),  # type: ignore[arg-type]
        features,
        random=learner(2.0),
        shots=(2, 1),
        steps=(2, 0, 1),
        samples=2,
        most_tasks=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert {total for _, total in seen} == {5 * (2 * 2 + 1)}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1][0] == seen[-1][1]


def test_result_survives_json_and_is_shown(found: Evaluation) -> None:
    again = Evaluation.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.rows == found.rows and again.differences == found.differences
    table = found.table()
    for word in (*METHODS, *(kind.heading for kind in FIGURES.values()), "3 steps", "pixels"):
        assert word in table
    assert f"{kid(found, 'real'):.3f} [" in table
    lines = found.class_table().splitlines()
    assert len(lines) == 1 + len(found.classes) and lines[1].startswith(found.classes[0])
    with pytest.raises(KeyError, match="no row of adapted with 2 shots"):
        found.row("adapted", shots=2)


def test_plot(found: Evaluation, features: FeatureExtractor) -> None:
    image = Image.open(io.BytesIO(plots.evaluation(found)))
    assert image.width > image.height > 400
    assert len(set(image.convert("L").tobytes())) > 20
    headline = metrics.evaluate(learner(), Bars(range(3)), features, samples=4)  # type: ignore[arg-type]
    single = Image.open(io.BytesIO(plots.evaluation(headline)))
    assert (single.width, single.height) < image.size
    assert plots.evaluation(headline) == plots.evaluation(headline)


def test_a_class_on_which_the_gan_diverged_is_named(features: FeatureExtractor) -> None:
    with pytest.raises(FloatingPointError, match=r"adapted GAN makes images .* of 2 of 2 classes, 'bars-1' among them"):
        metrics.evaluate(learner(float("nan")), Bars(range(1, 3)), features)  # type: ignore[arg-type]


def test_parts_of_the_data_that_cannot_serve(features: FeatureExtractor) -> None:
    """Training classes of one image, validation classes of too few, and judging the training part itself."""
    held_out, few = Bars(range(3)), Bars(range(4, 9), count=7)
    for training, expected in (
        (Bars(range(9, 12), count=1), False),
        (Bars(range(9, 12), count=2), True),
        (held_out, False),
    ):
        data: Any = SimpleNamespace(train=training, validation=few)
        found = metrics.evaluate(learner(), held_out, features, tasks=data, samples=4)  # type: ignore[arg-type]
        methods = [row.method for row in found.rows]
        assert ("nearest class" in methods) == expected and "augmented copies" not in methods
        assert found.settings["augmentation"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "samples to be at least 2"),
        ({"shots": ()}, "at least one number of shots"),
        ({"shots": (4, 0)}, "shots to be at least 1"),
        ({"steps": -1}, "steps to be at least 0"),
        ({"draws": 0}, "draws to be at least 1"),
        ({"best_of": 0}, "best_of to be at least 1"),
        ({"shots": 21}, "classes of at least 25 images"),
    ],
)
def test_refused_settings(features: FeatureExtractor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(learner(), Bars(range(3)), features, **options)  # type: ignore[arg-type]


def test_more_shots_than_the_episodes_have(features: FeatureExtractor) -> None:
    episodes = Episodes.draw(Bars(range(3)), shots=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most the episodes' 2 shots, got 4"):
        metrics.evaluate(learner(), Bars(range(3)), features, episodes=episodes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one feature space"):
        metrics.evaluate(learner(), Bars(range(3)), {})  # type: ignore[arg-type]
