"""The stand-in for FIGR's trainer: its episodes, networks, files, data and command line."""

from __future__ import annotations

import copy
import gzip
import logging
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from metagan_fast.benchmarks import dropins
from metagan_fast.benchmarks.baselines.figr_episode import PlainFIGR
from metagan_fast.benchmarks.dropin_cases.figr import CASES, prepare
from PIL import Image
from torch import Tensor, nn

import metagan_fast as mgf
from figr_networks import OUTPUTS, PARAMETERS
from metagan_fast import _native
from metagan_fast.dropin import figr
from metagan_fast.dropin.figr.__main__ import main
from support import assert_close, join
from tolerances import tolerance

SMALL = {"--height": "16", "--length": "8", "--hidden_size": "2", "--blocks": "2", "--inner_epochs": "3"}
KINDS = ("DCGAN", "ResNet")


class Noise:
    """A data set of one's own: images of uniform noise, other ones each time."""

    height, length = 16, 8

    def __init__(self, channels: int = 1) -> None:
        self.channels = channels
        self.images: list[Tensor] = []

    def sample_training_task(self, batch_size: int) -> tuple[Tensor, str]:
        generator = torch.Generator().manual_seed(len(self.images))
        self.images.append(torch.rand(batch_size, self.channels, self.height, self.length, generator=generator))
        return self.images[-1], "a task"

    sample_validation_task = sample_training_task


class Writer:
    """Keep what goes to TensorBoard."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[float]] = {}
        self.images: list[tuple[str, np.ndarray, int]] = []

    def add_scalar(self, name: str, value: float, episode: int) -> None:
        self.scalars.setdefault(name, []).append(value)

    def flush(self) -> None:
        pass

    def add_image(self, name: str, image: np.ndarray, episode: int) -> None:
        self.images.append((name, image, episode))


class Trainer(figr.FIGR):
    """Write no events."""

    def make_writer(self) -> Any:
        return Writer()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_trainer(kind: str = "DCGAN", trainer: type[figr.FIGR] = Trainer, channels: int = 1, **options: str) -> Any:
    given = SMALL | {"--neural_network": kind} | {f"--{name}": value for name, value in options.items()}
    return trainer(given, env=Noise(channels), device="cpu")


def vector(network: nn.Module) -> Tensor:
    return join(dict(network.named_parameters())).detach().double()


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

    On images of one channel a pixel's norm has a kink at 0, where two float32 loops part by luck: so three channels.
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


# Checkpoints


def run_to(episodes: int, **options: str) -> Any:
    trainer = make_trainer(episodes=str(episodes), validation_every="2", **options)
    trainer.training()
    return trainer


def everything(trainer: figr.FIGR) -> dict[str, Tensor]:
    return trainer.learner.state()[0]


def test_a_checkpoint_is_figrs_file() -> None:
    trainer = run_to(3)
    saved = torch.load(trainer._folder / "checkpoint", weights_only=True)
    assert list(saved) == ["discriminator", "generator", "episode"] and saved["episode"] == 2
    assert trainer._folder == Path("Runs/DCGAN_FIGR8_olr0.0001_ilr0.001_bsize4_ie3_h16_l8_hs2_b2")
    assert tuple(saved["generator"]) == tuple(PARAMETERS["DCGANGenerator"])
    for role, network in (("generator", trainer.g), ("discriminator", trainer.d)):
        assert all(torch.equal(saved[role][name], value) for name, value in network.state_dict().items())
        for value in saved[role].values():  # not a view of all parameters, each of which would be written again
            assert value.untyped_storage().nbytes() == 4 * value.numel()


def test_a_resumed_run_ends_with_the_same_bytes() -> None:
    write_figr8(58)
    options = SMALL | {"--validation_every": "2"}
    Trainer(options | {"--episodes": "3"}, device="cpu").training()
    resumed = Trainer(options | {"--episodes": "5"}, device="cpu")
    assert resumed.eps == 3
    resumed.training()
    Path("Runs").rename("resumed")
    straight = Trainer(options | {"--episodes": "5"}, device="cpu")
    straight.training()
    assert resumed.eps == straight.eps == 5
    assert resumed.env.state() == straight.env.state()
    for name, value in everything(straight).items():
        assert torch.equal(everything(resumed)[name], value), name
    for name, losses in resumed.writer.scalars.items():
        assert losses == straight.writer.scalars[name][-len(losses) :]
    with pytest.raises(ValueError, match="held out other classes"):
        Trainer(options | {"--seed": "1"}, device="cpu")


def test_ctrl_c_saves_what_the_running_episode_ends_with() -> None:
    trainer = make_trainer(validation_every="100")

    def interrupted(batch_size: int) -> tuple[Tensor, str]:
        if len(trainer.env.images) == 2:  # the first episode also validates
            signal.raise_signal(signal.SIGINT)
        return Noise.sample_training_task(trainer.env, batch_size)

    trainer.env.sample_training_task = interrupted
    trainer.training()
    assert trainer.learner.step == 2
    assert torch.load(trainer._folder / "checkpoint")["episode"] == 1
    assert make_trainer().eps == 2


def test_figrs_own_checkpoint_is_taken_up_with_a_fresh_optimizer(caplog: pytest.LogCaptureFixture) -> None:
    first = run_to(3)
    (first._folder / "state.safetensors").unlink()
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer()
    assert "Adam starts afresh" in caplog.text
    assert trainer.eps == 3 and torch.equal(vector(trainer.g), vector(first.g))
    assert torch.equal(vector(trainer.d), vector(first.d))
    assert not any(value.any() for name, value in everything(trainer).items() if name.startswith("meta."))


def test_the_optimizer_of_other_networks_is_not_taken() -> None:
    first = run_to(1)
    path = first._folder / "checkpoint"
    saved = torch.load(path)
    saved["generator"]["final_conv.bias"] += 1
    torch.save(saved, path)
    trainer = make_trainer()
    assert trainer.g.final_conv.bias.item() == saved["generator"]["final_conv.bias"].item()
    assert not everything(trainer)["meta.generator.0"].any()


def test_checkpoints_that_do_not_fit_are_refused() -> None:
    folder = make_trainer()._folder
    folder.mkdir(parents=True)
    (folder / "checkpoint").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"cannot read .*checkpoint"):
        make_trainer()
    networks = figr.ResNetGenerator(100, 1, 16, 8, 2, 2), figr.ResNetDiscriminator(1, 16, 8, 2, 2)
    states = [network.state_dict() for network in networks]
    torch.save({"discriminator": states[1], "generator": states[0], "episode": 4}, folder / "checkpoint")
    with pytest.raises(ValueError, match="is of other networks than DCGAN's"):
        make_trainer()


# Data


def drawing(number: int, height: int = 20, width: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width), dtype=np.uint8))


def write_figr8(classes: int = 52, images: int = 4) -> None:
    for number in range(classes):
        folder = Path(f"data/FIGR-8/Data/icon {number:02}")
        folder.mkdir(parents=True)
        for i in range(images):
            drawing(100 * number + i).save(folder / f"{i}.png")


def write_omniglot() -> None:
    for number in range(24):
        folder = Path(f"data/omniglot-py/images_background/Alphabet{number % 3}/character{number // 3:02}")
        folder.mkdir(parents=True)
        for i in range(4):
            drawing(100 * number + i).convert("1").save(folder / f"{number:04}_{i}.png")


def write_mnist(folder: str = "data/MNIST/raw", compressed: bool = False) -> None:
    Path(folder).mkdir(parents=True)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 5)
    images = np.stack([np.asarray(drawing(number, 28, 28)) for number in range(50)])
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        content = header + array.tobytes()
        path = Path(folder, f"train-{name}-ubyte")
        if compressed:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
        else:
            path.write_bytes(content)


def test_figr8_holds_out_fifty_classes_by_the_seed() -> None:
    write_figr8(60)
    env, again, other = (figr.FIGR8MetaEnv(16, 8, seed=seed) for seed in (1, 1, 2))
    assert len(env.validation_task) == 50 and len(env.training_task) == 10
    assert not env.validation_task & env.training_task and env.all_tasks == env.validation_task | env.training_task
    assert env.validation_task == again.validation_task != other.validation_task
    for name in ("validation_task", "training_task"):
        assert pickle.loads(Path(f"{name}.pkl").read_bytes()) == getattr(other, name)
    kept = figr.FIGR8MetaEnv(16, 8, seed=3, validation_task=env.validation_task)
    assert kept.training_task == env.training_task


def test_images_are_figrs() -> None:
    write_figr8()
    env = figr.FIGR8MetaEnv(16, 8)
    batch, task = env.sample_training_task(4)
    files = sorted(Path("data/FIGR-8/Data", task).iterdir())
    pixels = [np.asarray(Image.open(file).resize((8, 16), Image.Resampling.BILINEAR)) for file in files]
    expected = torch.tensor(np.stack(pixels)).float().div(255).unsqueeze(1)
    assert batch.shape == (4, 1, 16, 8) and batch.dtype == torch.float32
    order = [(expected - image).flatten(1).norm(dim=1).argmin().item() for image in batch]
    assert sorted(order) == [0, 1, 2, 3]
    assert_close(batch, expected[order], "float32-rounding")


def test_omniglot_holds_out_twenty_characters_across_alphabets() -> None:
    write_omniglot()
    env = figr.OmniglotMetaEnv(16, 8)
    assert len(env.validation_task) == 20 and len(env.training_task) == 4
    drawn = {env.sample_training_task(2)[1] for _ in range(40)}
    assert drawn == env.training_task
    assert {env.sample_validation_task(2)[1] for _ in range(20)} <= env.validation_task


@pytest.mark.parametrize("write", [write_mnist, lambda: write_mnist("data/raw", True)], ids=["torchvision", "old, gz"])
def test_mnist_holds_out_nine(write: Callable[[], None]) -> None:
    write()
    env = figr.MnistMetaEnv()
    assert env.validation_task == {"9"} and env.training_task == set("012345678")
    batch, task = env.sample_validation_task(5)
    assert task == "9" and batch.shape == (5, 1, 28, 28)
    expected = torch.tensor(np.stack([np.asarray(drawing(number, 28, 28)) for number in range(45, 50)])) / 255
    assert_close(batch.flatten(1).sum(1).sort()[0], expected.flatten(1).sum(1).sort()[0], "float32-rounding")


def test_draws_go_on_where_they_stood() -> None:
    write_figr8(70)
    env = figr.FIGR8MetaEnv(16, 8)
    drawn = [env.sample_training_task(2) for _ in range(6)]
    assert len({task for _, task in drawn}) > 1
    resumed = figr.FIGR8MetaEnv(16, 8)
    for _ in range(3):
        resumed.sample_training_task(2)
    state, resumed = resumed.state(), figr.FIGR8MetaEnv(16, 8)
    resumed.load_state(state)
    images, task = resumed.sample_training_task(2)
    assert task == drawn[3][1] and torch.equal(images, drawn[3][0])
    with pytest.raises(ValueError, match="held out other classes"):
        figr.FIGR8MetaEnv(16, 8, seed=1).load_state(state)


@pytest.mark.parametrize(
    ("env", "place"),
    [
        (figr.MnistMetaEnv, r"data/MNIST/raw/train-images-idx3-ubyte .*download=True"),
        (figr.OmniglotMetaEnv, r"data/omniglot-py/images_background; .*images_background.zip"),
        (figr.FIGR8MetaEnv, r"data/FIGR-8/Data; download FIGR-8 from github.com/marcdemers/FIGR-8"),
    ],
)
def test_missing_data_say_what_to_do(env: type[figr.MetaEnv], place: str) -> None:
    with pytest.raises(FileNotFoundError, match=place):
        env(16, 8)


def test_data_that_are_too_few_say_so() -> None:
    write_figr8(50, images=3)
    with pytest.raises(ValueError, match="50 are held out for validation: none is left"):
        figr.FIGR8MetaEnv(16, 8)
    env = figr.FIGR8MetaEnv(16, 8, validation_task={"icon 00"})
    with pytest.raises(ValueError, match=r"class 'icon 01' has 3 images, but batch_size=4; lower --batch_size"):
        env.sample_training_task(4)
    with pytest.raises(ValueError, match="'no icon', which is no class"):
        figr.FIGR8MetaEnv(16, 8, validation_task={"no icon"})


# The benchmark


def test_the_benchmarks_trainers_end_with_the_same_parameters() -> None:
    case = replace(CASES[0], prepare=lambda quick: prepare(quick, **{"--hidden_size": "2"}))
    records = list(dropins.run(case, thread_counts=[1], quick=True))
    assert [record.contender for record in records] == ["FIGR", "drop-in"]
    assert records[1].error is not None and records[1].error <= case.allowed


# The command line


def test_options_have_figrs_defaults() -> None:
    """As FIGR's help text has them."""
    defaults = {name: option.default for name, option in figr.OPTIONS.items()}
    assert SimpleNamespace(**{name[2:]: value for name, value in list(defaults.items())[:8]}) == SimpleNamespace(
        inner_learning_rate="1e-3",
        outer_learning_rate="1e-4",
        batch_size="4",
        inner_epochs="10",
        height="32",
        length="32",
        dataset="FIGR8",
        neural_network="DCGAN",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "Mnits"}, "expected --dataset of Mnist, Omniglot, FIGR8; got 'Mnits'"),
        ({"neural_network": "MLP"}, "expected --neural_network of ResNet, DCGAN; got 'MLP'"),
        ({"batch_sise": "4"}, "got '--batch_sise'"),
        ({"validation_every": "0"}, "expected --validation_every of at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)


def test_the_command_line_trains_and_writes_what_figr_writes() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_figr8(51)
    arguments = [f"{name}={value}" for name, value in (SMALL | {"--episodes": "2", "--batch_size": "3"}).items()]
    command = [sys.executable, "-m", "metagan_fast.dropin.figr", "--dataset", "FIGR8", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (run,) = Path("Runs").iterdir()
    assert run.name == "DCGAN_FIGR8_olr0.0001_ilr0.001_bsize3_ie3_h16_l8_hs2_b2"
    assert {"checkpoint", "state.safetensors"} < {path.name for path in run.iterdir()}
    assert torch.load(run / "checkpoint")["episode"] == 1
    events = EventAccumulator(str(run)).Reload()
    assert [event.step for event in events.Scalars("Training_discriminator_loss")] == [0, 1]
    assert [event.step for event in events.Scalars("Validation_generator_loss")] == [0]
    (image,) = events.Images("Validation_generated")
    assert (image.height, image.width) == (64, 24)


def test_the_command_line_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--dataset", "Omniglot"])
    assert stop.value.code == 2
    assert "Omniglot is not there" in capsys.readouterr().err
