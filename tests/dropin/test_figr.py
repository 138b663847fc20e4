"""The stand-in for FIGR's trainer: its episodes and networks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from metagan_fast.benchmarks.baselines.figr_episode import PlainFIGR
from metagan_fast.benchmarks.dropin_cases.figr import CASES, prepare
from torch import Tensor, nn

import metagan_fast as mgf
from figr_cases import KINDS, SMALL, Noise, Trainer, make_trainer, vector
from figr_networks import OUTPUTS, PARAMETERS
from metagan_fast import _native
from metagan_fast.dropin import figr
from support import assert_close
from tolerances import tolerance

pytestmark = pytest.mark.usefixtures("own_folder")


def run_episode(trainer: figr.FIGR, plains: Mapping[Any, PlainFIGR]) -> dict[Any, tuple[float, float]]:
    """Run one episode of the trainer and, on the same images and noise, of each plain loop."""
    images = Noise.sample_training_task(copy.deepcopy(trainer.env), trainer.batch_size)[0] * 2 - 1  # type: ignore[arg-type]
    noise = trainer.learner.draw_noise(mgf.TaskBatch(images.unsqueeze(0))).to(device="cpu")
    trainer.reset_meta_model()
    trainer.meta_training_loop()
    return {dtype: plain.episode(images.to(dtype), noise) for dtype, plain in plains.items()}


# Episodes


@pytest.mark.parametrize("kind", KINDS)
def test_episodes_in_float64_are_figrs_own(kind: str) -> None:
    trainer = make_trainer(kind)
    for network in (trainer.g, trainer.d, trainer.meta_g, trainer.meta_d):
        network.double()
    plain = PlainFIGR(trainer.g, trainer.d)
    start = vector(trainer.g), vector(trainer.d)
    for _ in range(3):
        losses = run_episode(trainer, {torch.float64: plain})[torch.float64]
        for name, loss in zip(("discriminator", "generator"), losses, strict=True):
            value = torch.tensor(trainer.writer.scalars[f"Training_{name}_loss"][-1])
            assert_close(value, torch.tensor(loss), "float32-rounding")
    for names in (("meta_g", "meta_d"), ("g", "d")):
        for name, before in zip(names, start, strict=True):
            ours, theirs = vector(getattr(trainer, name)), vector(getattr(plain, name))
            assert_close(ours - before, theirs - before, "float64-parity")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("inner_epochs", "factor"), [("1", 3), ("10", 10)])
def test_episodes_are_as_near_to_float64_as_figrs_own_in_float32(kind: str, inner_epochs: str, factor: int) -> None:
    """A GAN's inner loop amplifies rounding, so the plain loop's own distance is the measure.

    The norm of a one-channel pixel has a kink at 0, where float32 loops diverge by chance: so three channels.
    """
    trainer = make_trainer(kind, inner_epochs=inner_epochs, channels=3)
    exact_start = copy.deepcopy(trainer.g).double(), copy.deepcopy(trainer.d).double()
    plains = {torch.float32: PlainFIGR(trainer.g, trainer.d), torch.float64: PlainFIGR(*exact_start)}
    start = vector(trainer.g), vector(trainer.d)
    run_episode(trainer, plains)
    own, exact = plains.values()
    for names in (("meta_g", "meta_d"), ("g", "d")):
        for name, before in zip(names, start, strict=True):
            ours, float32, float64 = (vector(getattr(each, name)) for each in (trainer, own, exact))
            change = (float64 - before).norm()
            allowed = max(factor * (float32 - float64).norm() / change, tolerance("float32-inner-step"))
            assert (ours - float64).norm() / change <= allowed, name


@pytest.mark.skipif(not _native.is_available()[0], reason="needs the extension")
@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_runs_figrs_networks(kind: str) -> None:
    trainer = make_trainer(kind)
    assert trainer._adapting.explain().startswith("executor: native, float32")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_an_episode_on_a_gpu_is_figrs_own() -> None:
    trainer = Trainer(SMALL, env=Noise(), device="cuda")
    plain = PlainFIGR(copy.deepcopy(trainer.g).cpu(), copy.deepcopy(trainer.d).cpu())
    start = vector(plain.g), vector(plain.d)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        run_episode(trainer, {torch.float32: plain})
    for name, before in zip(("meta_g", "meta_d"), start, strict=True):
        ours = vector(getattr(trainer, name)).cpu()
        assert_close(ours - before, vector(getattr(plain, name)) - before, "gpu-loop")
    trainer.validation_run()
    trainer.checkpoint_model()
    saved = torch.load(trainer._folder / "checkpoint", weights_only=True)
    assert not any(value.is_cuda for value in saved["generator"].values())


def test_inner_steps_one_by_one_are_the_whole_inner_loop() -> None:
    whole, single = make_trainer(), make_trainer()
    whole.meta_training_loop()
    images = figr.normalize_data(single.env.sample_training_task(4)[0])
    losses = [single.inner_loop(images) for _ in range(3)]
    assert torch.equal(vector(whole.meta_g), vector(single.meta_g))
    assert torch.equal(vector(whole.meta_d), vector(single.meta_d))
    for position, name in enumerate(("discriminator", "generator")):
        total = torch.tensor(sum(each[position] for each in losses))
        assert_close(torch.tensor(whole.writer.scalars[f"Training_{name}_loss"][0]), total, "float32-rounding")


def test_noise_differs_between_steps_and_episodes() -> None:
    trainer = make_trainer()
    images = torch.zeros(1, 4, 1, 16, 8)
    first = trainer.learner.draw_noise(mgf.TaskBatch(images)).generator_latents
    trainer.meta_training_loop()
    second = trainer.learner.draw_noise(mgf.TaskBatch(images)).generator_latents
    drawn = torch.cat([first, second]).flatten(1)
    assert len(drawn.unique(dim=0)) == len(drawn) == 6


def test_the_inner_step_of_a_subclass_is_the_one_that_is_taken() -> None:
    class Constant(Trainer):
        def inner_loop(self, real_batch: Tensor) -> tuple[float, float]:
            with torch.no_grad():
                self.meta_g.final_conv.bias += 1.0
            return 2.0, -1.0

    trainer = make_trainer(trainer=Constant)
    before = trainer.g.final_conv.bias.clone()
    trainer.reset_meta_model()
    trainer.meta_training_loop()
    assert trainer.writer.scalars == {"Training_discriminator_loss": [6.0], "Training_generator_loss": [-3.0]}
    assert_close(trainer.meta_g.final_conv.bias, before + 3, "float32-rounding")
    assert_close(trainer.g.final_conv.bias, before + 1e-4, "float32-rounding")  # Adam's first step


def test_losses_are_figrs() -> None:
    scores = torch.tensor([[1.0], [2.0], [5.0], [7.0]])
    targets = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert figr.wassertein_loss(scores, targets).item() == (1 + 2 - 5 - 7) / 4
    weight = torch.randn(3, 2, 2, requires_grad=True)  # a linear critic: its gradient is its weight, at any image
    real, fake = torch.rand(2, 4, 3, 2, 2)
    penalty = figr.calc_gradient_penalty(lambda x: (x * weight).flatten(1).sum(1), real, fake)
    assert_close(penalty, 10 * (weight.square().sum(0).sqrt() - 1).square().mean(), "float32-rounding")
    assert torch.autograd.grad(penalty, weight)[0].abs().sum() > 0
    data = torch.tensor([0.0, 0.25, 1.0])
    assert figr.normalize_data(data.clone()).tolist() == [-1.0, -0.5, 1.0]
    assert figr.unnormalize_data(figr.normalize_data(data.clone())).tolist() == data.tolist()


def test_validation_writes_the_images_above_three_rows_of_generated_ones() -> None:
    trainer = make_trainer()
    before = vector(trainer.g)
    trainer.validation_run()
    ((name, grid, episode),) = trainer.writer.images
    assert (name, episode, grid.shape) == ("Validation_generated", 0, (1, 4 * 16, 4 * 8))
    (images,) = trainer.env.images
    assert np.array_equal(grid[:, :16], np.concatenate(list(images.numpy()), axis=-1))
    assert grid.min() >= 0 and grid.max() <= 1
    tiles = grid[0, 16:].reshape(3, 16, 4, 8).transpose(0, 2, 1, 3).reshape(12, -1)
    assert len(np.unique(tiles, axis=0)) == 12
    latents = mgf.noise.draw_sample_latents(1, 12, 100, seed=0)[0]
    with torch.no_grad():
        fifth = trainer.meta_g(latents)[4]  # the second of the second image's column
    assert_close(torch.tensor(grid[:, 32:48, 8:16]) * 2 - 1, fifth, "float32-rounding")
    assert set(trainer.writer.scalars) == {"Validation_discriminator_loss", "Validation_generator_loss"}
    assert torch.equal(vector(trainer.g), before)


# Networks


def filled(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for k, parameter in enumerate(network.double().parameters()):
            elements = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_((0.3 * torch.sin(0.37 * elements + k)).view(parameter.shape))
    return network


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_figrs_names_and_compute_what_its_do(name: str) -> None:
    latents = (100,) if name.endswith("Generator") else ()
    network = filled(getattr(figr, name)(*latents, 1, 16, 8, 2, 2))
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert list(shapes.items()) == list(PARAMETERS[name].items())
    assert [key for key, _ in network.named_parameters()] == list(shapes)
    size = (2, 100) if latents else (2, 1, 16, 8)
    inputs = torch.cos(0.11 * torch.arange(torch.Size(size).numel(), dtype=torch.float64)).view(size)
    output = network(inputs)
    shape, values = OUTPUTS[name]
    assert tuple(output.shape) == shape
    found = output.flatten()[:: max(1, output.numel() // 4)][:4]
    assert_close(found, torch.tensor(values, dtype=torch.float64), "float64-rounding")


def test_default_networks_have_figrs_sizes() -> None:
    networks = figr.DCGANGenerator(100), figr.DCGANDiscriminator()
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == [17_898_945, 18_040_257]


def test_sides_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match=r"divisible by 2\*\*blocks = 16"):
        figr.DCGANGenerator(100, 1, 28, 28)


# The benchmark


def test_the_benchmarks_trainers_end_with_the_same_parameters() -> None:
    case = replace(CASES[0], prepare=lambda quick: prepare(quick, **{"--hidden_size": "2"}))
    records = list(case.measure(thread_counts=[1], quick=True))
    assert [record.contender for record in records] == ["FIGR", "drop-in"]
    assert records[1].error is not None and records[1].error <= case.allowed
