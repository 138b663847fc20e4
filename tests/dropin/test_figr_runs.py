"""The stand-in for FIGR's runs: checkpoints, options, command line."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from figr_cases import SMALL, Noise, Trainer, make_trainer, vector, write_figr8
from figr_networks import PARAMETERS
from metagan_fast.dropin import figr
from metagan_fast.dropin.figr.__main__ import main
from metagan_fast.training.folder_lock import locked

pytestmark = pytest.mark.usefixtures("own_folder")


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


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["inner_loop", "validation_run"])
def test_any_exception_saves_the_last_complete_episode(place: str, error: BaseException) -> None:
    """The exception comes before or after the update of episode 2; a resumed run ends as an undisturbed one."""
    write_figr8(58)
    options = SMALL | {"--validation_every": "2"}
    straight = Trainer(options | {"--episodes": "5"}, device="cpu")
    straight.training()
    Path("Runs").rename("straight")

    def fail(trainer: figr.FIGR, *arguments: Any) -> Any:
        if trainer.eps == 2:
            raise error
        return getattr(figr.FIGR, place)(trainer, *arguments)

    class Failing(Trainer):
        pass

    setattr(Failing, place, fail)
    failing = Failing(options | {"--episodes": "5"}, device="cpu")
    with pytest.raises(type(error)):
        failing.training()
    done = 2 if place == "inner_loop" else 3
    assert failing.eps == done
    resumed = Trainer(options | {"--episodes": "5"}, device="cpu")
    assert resumed.eps == done
    resumed.training()
    for name, value in everything(straight).items():
        assert torch.equal(everything(resumed)[name], value), name


def test_a_run_outlives_its_events(caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(episodes="3", validation_every="2")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    trainer.writer = SimpleNamespace(add_scalar=fail, add_image=fail, flush=fail)
    trainer.training()
    assert torch.load(trainer._folder / "checkpoint")["episode"] == 2
    assert [record.message for record in caplog.records] == [
        "cannot write events for TensorBoard (OSError: [Errno 28] No space left on device); training goes on without"
    ]


def test_a_run_under_way_is_locked() -> None:
    trainer = make_trainer(episodes="1")
    trainer._folder.mkdir(parents=True)
    with locked(trainer._folder), pytest.raises(BlockingIOError, match="is in use"):
        trainer.training()
    assert trainer.eps == 0


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


def test_a_state_of_another_program_is_not_replaced() -> None:
    folder = make_trainer()._folder
    folder.mkdir(parents=True)
    (folder / "state.safetensors").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"state\.safetensors is truncated or not a metagan_fast checkpoint"):
        make_trainer()
    assert (folder / "state.safetensors").read_bytes() == b"mine"


# The command line


def test_options_have_figrs_defaults() -> None:
    """Options keep the spelling of FIGR's help text."""
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
        ({"dataset": "Mnits"}, "--dataset: expected one of Mnist, Omniglot, FIGR8, got 'Mnits'"),
        ({"neural_network": "MLP"}, "--neural_network: expected one of ResNet, DCGAN, got 'MLP'"),
        ({"batch_sise": "4"}, "got '--batch_sise'"),
        ({"validation_every": "0"}, "--validation_every: expected a whole number of at least 1, got '0'"),
        ({"inner_learning_rate": "nan"}, "--inner_learning_rate: expected a finite number of at least 0, got 'nan'"),
        ({"outer_learning_rate": "x"}, "--outer_learning_rate: expected a number, got 'x'"),
        ({"blocks": "4"}, r"--length: expected a multiple of 2 \*\* blocks = 16, got 8"),
        ({"seed": "-1"}, r"--seed: expected a whole number from 0 to 2\*\*64 - 1, got '-1'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)


@pytest.mark.parametrize("name", figr.OPTIONS)
@pytest.mark.parametrize("value", ["x", "-1", ""])
def test_the_command_line_names_the_option(name: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([f"{name}={value}"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"python -m metagan_fast.dropin.figr: {name}: expected ") and error.count("\n") == 1


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
