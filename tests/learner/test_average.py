"""The moving average of an initialisation: its formula, its place in checkpoints, `MetaGAN.load`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import metagan_fast as mgf
from metagan_fast import checkpoint
from metagan_fast.learner.average import MovingAverage
from networks import tiny_batch, tiny_gan
from support import assert_close

DECAY = 0.5


def batch() -> mgf.TaskBatch:
    torch.manual_seed(2)
    return tiny_batch(query=0)


def make_learner(seed: int = 0) -> mgf.MetaGAN:
    torch.manual_seed(seed)
    inner = mgf.InnerLoop(steps=1, lr=0.1)
    return mgf.MetaGAN(*tiny_gan(), latent_dim=6, inner=inner, meta=mgf.Reptile(optimizer="adam", lr=0.1))


def trained(steps: int) -> tuple[mgf.MetaGAN, MovingAverage]:
    learner = make_learner()
    average = MovingAverage(learner, DECAY)
    for _ in range(steps):
        learner.meta_step(batch())
        average.follow(learner)
    return learner, average


def save(learner: mgf.MetaGAN, average: MovingAverage, path: Path) -> None:
    tensors, metadata = learner.state()
    checkpoint.write(path, tensors | average.tensors(), metadata)


def test_the_average_is_that_of_the_formula() -> None:
    learner = make_learner()
    average = MovingAverage(learner, DECAY)
    expected = learner.generator_parameters.double(), learner.discriminator_parameters.double()
    weights = [
        2 / 11,
        3 / 12,
        4 / 13,
        5 / 14,
        6 / 15,
        7 / 16,
        8 / 17,
        DECAY,
        DECAY,
    ]  # (1 + t) / (10 + t), then the decay
    for step, weight in enumerate(weights, start=1):
        learner.meta_step(batch())
        for _ in range(2):  # the second has no effect
            average.follow(learner)
        now = learner.generator_parameters, learner.discriminator_parameters
        expected = tuple(weight * old + (1 - weight) * new for old, new in zip(expected, now, strict=True))  # type: ignore[assignment]
        assert average.learner.step == step
    assert_close(average.learner.generator_parameters.double(), expected[0], "float32-rounding")
    assert_close(average.learner.discriminator_parameters.double(), expected[1], "float32-rounding")


def test_the_learner_does_not_notice() -> None:
    alone = make_learner()
    for _ in range(3):
        alone.meta_step(batch())
    followed, average = trained(3)
    assert torch.equal(followed.generator_parameters, alone.generator_parameters)
    assert not torch.equal(average.learner.generator_parameters, alone.generator_parameters)


def test_load_takes_the_average_unless_told_otherwise(tmp_path: Path) -> None:
    learner, average = trained(3)
    save(learner, average, tmp_path / "both.safetensors")
    learner.save(tmp_path / "plain.safetensors")
    expected = {
        ("both", True): average.learner,
        ("both", False): learner,
        ("plain", True): learner,
        ("plain", False): learner,
    }
    for (name, choice), owner in expected.items():
        loaded = mgf.MetaGAN.load(tmp_path / f"{name}.safetensors", *tiny_gan(), average=choice)
        assert torch.equal(loaded.generator_parameters, owner.generator_parameters)
        assert torch.equal(loaded.discriminator_parameters, owner.discriminator_parameters)
        assert loaded.step == 3
        assert {n for n in loaded.state()[0] if n.startswith("meta.")}


def test_a_learner_and_its_average_go_on_as_before(tmp_path: Path) -> None:
    learner, average = trained(3)
    save(learner, average, tmp_path / "both.safetensors")
    other = make_learner(seed=1)
    again = MovingAverage(other, DECAY)
    tensors, metadata = checkpoint.read(tmp_path / "both.safetensors")
    other.load_state(tensors, metadata)
    again.load(tensors, other.step)
    for owner, follower in ((learner, average), (other, again)):
        owner.meta_step(batch())
        follower.follow(owner)
    assert torch.equal(other.generator_parameters, learner.generator_parameters)
    assert torch.equal(again.learner.generator_parameters, average.learner.generator_parameters)
    assert torch.equal(again.learner.discriminator_parameters, average.learner.discriminator_parameters)


def test_networks_load_alone() -> None:
    source, target = make_learner(), make_learner(seed=1)
    source.meta_step(batch())
    moments = {name: x.clone() for name, x in target.state()[0].items() if name.startswith("meta.")}
    target.load_networks(source.state()[0])
    assert torch.equal(target.generator_parameters, source.generator_parameters) and target.step == 0
    assert all(torch.equal(x, target.state()[0][name]) for name, x in moments.items())
    with pytest.raises(ValueError, match=r"does not fit this learner: 'discriminator\..*' is missing"):
        target.load_networks({n: x for n, x in source.state()[0].items() if n.startswith("generator.")})
