"""Numbers of NumPy and PyTorch as arguments: converted to Python's; other values are refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metagan_fast as mgf
from metagan_fast import metrics, models, noise, schedules
from metagan_fast._utils import coerce
from metagan_fast.functional import (
    adam_step,
    clip_grad_norm,
    ema_update,
    reptile_interpolate,
    rmsprop_step,
    sgd_step,
    use_backend,
)
from metagan_fast.training.outer_loop import Training
from networks import tiny_batch, tiny_gan

WRAPPERS: dict[str, dict[type, Callable[[Any], Any]]] = {
    "numpy": {int: np.int64, float: np.float64, bool: np.bool_},
    "numpy-arrays": {int: np.array, float: np.array, bool: np.array},
    "torch": {int: torch.tensor, float: lambda x: torch.tensor(x, dtype=torch.float64), bool: torch.tensor},
}
kinds = pytest.mark.parametrize("kind", WRAPPERS)


def wrapped(value: Any, kind: str) -> Any:
    """Convert numbers, also in a tuple, to another library's type; return anything else unchanged."""
    if isinstance(value, tuple):
        return tuple(wrapped(item, kind) for item in value)
    wrap = WRAPPERS[kind].get(type(value))
    return value if wrap is None else wrap(value)


SETTINGS = [
    mgf.InnerLoop("rmsprop", 0.5, 3, 2, 1, 0.25, (0.5, 0.75), 1e-6, 0.5, 0.125, 0.375),
    mgf.Reptile("sgd", 0.5, 0.25, (0.5, 0.75), 1e-6, 0.125, 2.0, 1.0, True),
    mgf.FOMAML(lr=0.5, step_weights=(0.25, 0.75)),
    mgf.MAML(lr=0.5, first_order_steps=3),
    mgf.AnnealedStepWeights(2, 5),
    schedules.Linear(1.0, 0.5, 4),
    schedules.Cosine(1.0, 0.5, 4),
    mgf.losses.LeastSquares(0.5, 0.25, 0.125, separate_batches=True),
    mgf.losses.WGAN(0.5),
    mgf.losses.WGANGP(0.5),
    mgf.losses.FIGR(0.5),
    mgf.losses.GradientPenalty(0.5),
    mgf.losses.ZeroCenteredPenalty(0.5),
    Training(4, 3, 2, 1, 2, 3, 4, 5, 6),
    noise.NoiseShape(2, 3, 4, 5, 2, 1, 2, 1, True),
]


@kinds
@pytest.mark.parametrize("plain", SETTINGS, ids=lambda settings: type(settings).__name__)
def test_settings_hold_python_numbers(plain: Any, kind: str) -> None:
    given = {f.name: wrapped(getattr(plain, f.name), kind) for f in dataclasses.fields(plain)}
    assert repr(type(plain)(**given)) == repr(plain)  # reprs name NumPy's and PyTorch's types


@kinds
def test_a_learner_of_other_numbers_trains_and_saves_the_same_bytes(kind: str, tmp_path: Path) -> None:
    batch = tiny_batch(query=0)
    files = []
    for number in (lambda value: value, lambda value: wrapped(value, kind)):
        torch.manual_seed(0)
        learner = mgf.MetaGAN(
            *tiny_gan(),
            latent_dim=number(6),
            inner=mgf.InnerLoop(lr=number(0.05), steps=number(2)),
            meta=mgf.Reptile(lr=schedules.Linear(number(0.5), number(0.25), number(3))),
            seed=number(3),
            allow_random=number(False),
        )
        learner.meta_step(mgf.TaskBatch(batch.support, first_task=number(1)))
        images = learner.adapt(batch.support[0], steps=number(1)).sample(number(2), seed=number(4))
        adapted = learner.inner_loop(batch, steps=number(1))
        images = torch.cat([images, *learner.sample_tasks(adapted, number(2), number(5), first_task=number(1))])
        learner.save(tmp_path / "run")
        files.append(((tmp_path / "run").read_bytes(), images.numpy().tobytes()))
    assert files[0] == files[1]


@pytest.mark.parametrize("seed", [np.uint32(3), np.uint8(3), np.int64(3), torch.tensor(3)])
def test_a_seed_draws_the_same_whatever_its_type(seed: Any) -> None:
    shape = noise.NoiseShape(tasks=2, shots=2, latent_dim=4, steps=1)
    drawn = noise.draw_noise(shape, seed=seed, meta_step=seed, first_task=seed)
    expected = noise.draw_noise(shape, seed=3, meta_step=3, first_task=3)
    assert torch.equal(drawn.generator_latents, expected.generator_latents)
    assert noise.noise_counters(seed=seed, meta_step=seed) == noise.noise_counters(seed=3, meta_step=3)
    assert torch.equal(noise.draw_sample_latents(1, 2, 4, seed=seed), noise.draw_sample_latents(1, 2, 4, seed=3))


@kinds
def test_tasks_of_other_numbers(kind: str) -> None:
    def load(number: Callable[[Any], Any]) -> mgf.tasks.Tasks:
        shares = tuple(map(number, (0.5, 0.25, 0.25)))
        return mgf.tasks.load("digits", image_size=number(8), seed=number(2), split=shares, min_images=number(3))

    tasks, plain = load(lambda value: wrapped(value, kind)), load(lambda value: value)
    assert json.dumps(tasks.split_record()) == json.dumps(plain.split_record())
    counts = {"tasks": 2, "shots": 3, "query": 1, "step": 5}
    batch = tasks.train.sample(**{name: wrapped(value, kind) for name, value in counts.items()})
    assert torch.equal(batch.support, plain.train.sample(**counts).support)
    part = batch.slice(wrapped(1, kind), wrapped(2, kind))
    assert type(part.first_task) is int and part.first_task == 1


@kinds
def test_models_of_other_numbers(kind: str) -> None:
    cases: dict[str, dict[str, Any]] = {
        "mlp": {"image_shape": (1, 4, 4), "latent_dim": 3, "hidden": (5,)},
        "dcgan": {"image_size": 4, "channels": 1, "width": 2, "blocks": 1, "latent_dim": 3},
        "resnet": {"image_size": (4, 8), "channels": 1, "width": 2, "blocks": 1, "latent_dim": 3},
        "classic-dcgan": {"image_size": 8, "channels": 1, "width": 2, "latent_dim": 3, "batch_norm": False},
    }
    for name, options in cases.items():
        given = {key: wrapped(value, kind) for key, value in options.items()}
        assert repr(models.build(name, **given)) == repr(models.build(name, **options))


def test_what_a_classifier_and_an_interval_record_can_be_written() -> None:
    train = mgf.tasks.load("digits", image_size=8).train
    one, two = np.int64(1), np.int64(2)
    features = metrics.FeatureExtractor.train(train, steps=one, batch_size=two, seed=one)  # type: ignore[arg-type]
    assert json.loads(json.dumps(features.record))["steps"] == 1
    values = torch.arange(4.0)
    interval = metrics.bootstrap_interval(values, resamples=np.int64(9), seed=np.uint8(1))  # type: ignore[arg-type]
    assert interval == metrics.bootstrap_interval(values, resamples=9, seed=1)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("wrap", [np.float32, torch.tensor], ids=["numpy", "torch"])
def test_fused_ops_compute_with_python_numbers(wrap: Callable[[float], Any], backend: str) -> None:
    """A float32 number keeps its value; its arithmetic, such as 1 - beta, does not stay in float32."""
    x = torch.linspace(-1, 1, 32, dtype=torch.float64)
    v = x.square()
    ops: list[Callable[[Any, Any], Any]] = [
        lambda a, n: sgd_step(x, x, 0.1, momentum_buffer=v, momentum=a, dampening=a, weight_decay=a, max_norm=a)[0],
        lambda a, n: adam_step(x, x, x, v, 0.1, step=n, betas=(a, a), eps=a, weight_decay=a)[0],
        lambda a, n: rmsprop_step(x, x, v, 0.1, alpha=a, eps=a, weight_decay=a, momentum=a, momentum_buffer=v)[0],
        lambda a, n: reptile_interpolate(x, x.expand(2, -1), a),
        lambda a, n: ema_update(x, v, a),
        lambda a, n: clip_grad_norm(x, a)[0],
    ]
    with use_backend(backend):
        for op in ops:
            value = float(np.float32(0.3))
            step = torch.tensor(3) if wrap is torch.tensor else np.int64(3)
            assert torch.equal(op(wrap(value), step), op(value, 3))


NO_COUNTS = [4.5, 4.0, True, np.bool_(True), torch.tensor(True), "4", None, [4], torch.tensor([4]), float("nan")]
NO_REALS = [True, np.bool_(True), "0.1", None, [0.1], np.array([0.1]), 1j, np.complex64(1), 10**400]


@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
def test_no_whole_number(value: Any) -> None:
    with pytest.raises(ValueError, match="expected steps to be a whole number, got") as raised:
        coerce.count("steps", value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", NO_REALS, ids=lambda value: repr(value)[:20])
def test_no_real_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"expected lr to (be a number|fit a float), got") as raised:
        coerce.real("lr", value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 100


def test_a_number_whose_gradient_would_be_lost() -> None:
    with pytest.raises(ValueError, match=r"expected lr to be a number, got a tensor that requires grad"):
        mgf.InnerLoop(lr=torch.tensor(0.1, requires_grad=True))  # type: ignore[arg-type]


def test_ranges() -> None:
    assert coerce.seed(np.uint64(2**64 - 1)) == 2**64 - 1
    for value in (-1, 2**64, 10**5000):
        with pytest.raises(ValueError, match=r"expected seed to be at (least|most)"):
            coerce.seed(value)
    with pytest.raises(ValueError, match="expected steps to be at most"):
        coerce.count("steps", 2**63)


DOORS: list[tuple[str, Callable[[], Any]]] = [
    ("steps", lambda: mgf.InnerLoop(steps=4.5)),  # type: ignore[arg-type]
    ("lr", lambda: mgf.InnerLoop(lr="0.1")),  # type: ignore[arg-type]
    ("betas", lambda: mgf.InnerLoop("adam", betas=0.9)),  # type: ignore[arg-type]
    ("betas", lambda: mgf.Reptile(betas=(0.9, 0.99, 0.999))),  # type: ignore[arg-type]
    ("serial", lambda: mgf.Reptile(serial="no")),  # type: ignore[arg-type]
    ("step_weights", lambda: mgf.FOMAML(step_weights=3)),  # type: ignore[arg-type]
    ("steps", lambda: schedules.Linear(1.0, 0.0, 0)),
    ("learning rate at step 2", lambda: schedules.rate_at(lambda step: None, 2)),  # type: ignore[arg-type,return-value]
    ("weight", lambda: mgf.losses.WGANGP(weight="10")),  # type: ignore[arg-type]
    ("first_task", lambda: mgf.TaskBatch(torch.zeros(1, 1, 1, 2, 2), first_task=0.5)),  # type: ignore[arg-type]
    ("shots", lambda: mgf.tasks.load("digits").train.sample(shots=2.5)),  # type: ignore[arg-type]
    ("image_size", lambda: mgf.tasks.load("digits", image_size=(8, 8, 1))),  # type: ignore[arg-type]
    ("latent_dim", lambda: mgf.MetaGAN(*tiny_gan(), latent_dim=6.0)),  # type: ignore[arg-type]
    ("seed", lambda: mgf.MetaGAN(*tiny_gan(), latent_dim=6, seed=1.5)),  # type: ignore[arg-type]
    ("allow_random", lambda: mgf.MetaGAN(*tiny_gan(), latent_dim=6, allow_random="no")),  # type: ignore[arg-type]
    ("width", lambda: models.build("dcgan", width=2.5)),
    ("keep", lambda: Training(4, keep=1.5)),  # type: ignore[arg-type]
    ("weight_decay", lambda: sgd_step(torch.ones(32), torch.ones(32), 0.1, weight_decay="0")),  # type: ignore[arg-type]
    ("confidence", lambda: metrics.bootstrap_interval(torch.ones(3), confidence=95)),
    ("resamples", lambda: metrics.ratio_interval(torch.ones(3), torch.ones(3), resamples=0)),
    ("nearest", lambda: metrics.density_coverage(torch.ones(9, 1), torch.ones(9, 1), nearest=2.5)),  # type: ignore[arg-type]
    ("rotation", lambda: metrics.Augmentation(rotation="5")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("name", "build"), DOORS)
def test_every_door_names_the_number_that_it_refuses(name: str, build: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=name):
        build()
