"""Moving average and best checkpoint of a run: files, exact resume, the checkpoint that is read."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

import metagan_fast as mgf
from metagan_fast import checkpoint
from metagan_fast.display import image_grids
from metagan_fast.metrics import FeatureExtractor, adaptation, validation
from metagan_fast.metrics.validation import ValidationKID
from metagan_fast.training.outer_loop import Training
from metagan_fast.training.run_folder import KID, RunFolder
from metagan_fast.training.trainer import NullProgress, Outcome, Trainer

OPTIONS: dict[str, Any] = {"tasks": 2, "shots": 2, "validate_every": 1, "checkpoint_every": 2, "keep": 2}


@pytest.fixture(autouse=True)
def few_feature_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    train = FeatureExtractor.train
    monkeypatch.setattr(FeatureExtractor, "train", lambda *given, **rest: train(*given, **rest, steps=3, batch_size=8))


def make_tasks(**options: Any) -> mgf.tasks.Tasks:
    """Return stripes of one direction and phase a class."""
    rng = np.random.default_rng(0)
    phases = np.arange(12)[:, None, None, None] + np.arange(4)[:, None] * (np.arange(12) % 2)[:, None, None, None]
    waves = np.sin(phases + 2.0 * np.arange(4)) * 90 + 128 + rng.integers(-20, 21, (12, 6, 4, 4))
    labels = np.repeat(np.arange(12), 6)
    return mgf.tasks.from_arrays(waves.astype(np.uint8).reshape(72, 4, 4), labels, **options)


def make_trainer(path: Path, meta_steps: int, *, new: bool = True, tasks: Any = None, **options: Any) -> Trainer:
    torch.manual_seed(1)
    learner = mgf.MetaGAN(
        *mgf.models.mlp((1, 4, 4), latent_dim=3, hidden=(5,)),
        latent_dim=3,
        inner=mgf.InnerLoop(steps=2, lr=0.05),
        meta=mgf.Reptile(optimizer="adam", lr=0.05),
    )
    tasks = tasks or make_tasks(split=(0.5, 0.25, 0.25))
    folder = RunFolder.create(path) if new else RunFolder(path)
    return Trainer(learner, tasks, folder, Training(meta_steps, **(OPTIONS | options)))


def kids(folder: RunFolder) -> dict[int, float]:
    return {line["step"]: line[KID] for line in folder.read_metrics() if KID in line}


@pytest.mark.parametrize("options", [{"ema": 0.8}, {"keep_best": True}, {"ema": 0.8, "keep_best": True}], ids=str)
def test_resuming_ends_with_the_same_bytes(tmp_path: Path, options: dict[str, Any]) -> None:
    make_trainer(tmp_path / "straight", 8, **options).run()
    make_trainer(tmp_path / "halves", 4, **options).run()
    second = make_trainer(tmp_path / "halves", 8, new=False, **options)
    second.resume()
    second.run()
    files = ["checkpoints/step-00000008.safetensors", "metrics.jsonl", "samples/step-00000008.png"]
    for file in files + ["checkpoints/best.safetensors"] * ("keep_best" in options):
        assert (tmp_path / "halves" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes(), file


def test_a_resume_before_the_best_keeps_it(tmp_path: Path) -> None:
    """As after a crash: the validations since the checkpoint are repeated."""
    trainer = make_trainer(tmp_path / "run", 6, keep_best=True, checkpoint_every=1, keep=9)
    trainer.run()
    best = trainer.folder.best.read_bytes()
    step = min(kids(trainer.folder), key=lambda step: kids(trainer.folder)[step])
    for later in range(max(step, 2), 7):
        (trainer.folder.checkpoints / f"step-{later:08d}.safetensors").unlink()
    again = make_trainer(tmp_path / "run", 6, new=False, keep_best=True, checkpoint_every=1, keep=9)
    again.resume()
    again.run()
    assert again.folder.best.read_bytes() == best


def test_the_average_is_saved_and_used(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", 4, ema=0.8)
    trainer.run()
    plain = make_trainer(tmp_path / "plain", 4)
    plain.run()
    tensors, metadata = trainer.folder.latest()
    own, same = plain.folder.latest()
    assert metadata == same
    assert all(torch.equal(tensors[name], own[name]) for name in own)
    names = {name for name in own if name.startswith(("generator.", "discriminator."))}
    assert tensors.keys() - own.keys() == {f"average.{name}" for name in names}
    weight = trainer.averaged.generator.state_dict()
    assert all(torch.equal(tensors[f"average.generator.{name}"], value) for name, value in weight.items())
    assert trainer.averaged.step == 4 and plain.averaged is plain.learner
    picture = "samples/step-00000004.png"
    assert (tmp_path / "run" / picture).read_bytes() != (tmp_path / "plain" / picture).read_bytes()


def test_the_checkpoint_with_the_lowest_kid_is_kept(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", 8, ema=0.5, keep_best=True)
    trainer.run()
    folder, found = trainer.folder, kids(trainer.folder)
    assert list(found) == list(range(1, 9))
    tensors, metadata = folder.read_checkpoint("best")
    assert (metadata["step"], metadata[KID]) == min(((s, k) for s, k in found.items()), key=lambda each: each[1])
    features = FeatureExtractor.load(folder.features)
    kid = ValidationKID(trainer.tasks.validation, features, shots=2)
    networks = mgf.models.mlp((1, 4, 4), latent_dim=3, hidden=(5,))
    assert kid(mgf.MetaGAN.load(folder.best, *networks)) == metadata[KID]
    assert folder.read_checkpoint()[1] == metadata
    assert all(torch.equal(tensors[name], value) for name, value in folder.read_checkpoint()[0].items())


def test_a_checkpoint_is_chosen(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", 6, keep_best=True)
    trainer.run()
    folder = trainer.folder
    assert [folder.read_checkpoint(which)[1]["step"] for which in (4, 6, "last")] == [4, 6, 6]
    assert folder.latest()[1]["step"] == 6
    for which in (5, 2):  # never written; pruned
        with pytest.raises(checkpoint.CheckpointError, match=rf"keeps no checkpoint {which}; it has best, 4, 6$"):
            folder.read_checkpoint(which)
    plain = make_trainer(tmp_path / "plain", 2)
    plain.run()
    with pytest.raises(checkpoint.CheckpointError, match=r"keeps no checkpoint best; it has 2$"):
        plain.folder.read_checkpoint("best")
    assert plain.folder.read_checkpoint()[1]["step"] == 2 and not plain.folder.has_best()


def test_overwriting_removes_the_best(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", 2, keep_best=True)
    trainer.folder.write_config({"versions": {"metagan_fast": "1"}})
    trainer.run()
    assert trainer.folder.best.exists()
    RunFolder.create(tmp_path / "run", overwrite=True)
    assert not trainer.folder.best.exists()


def test_a_users_own_file_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", 2)
    trainer.run()
    trainer.learner.save(trainer.folder.best)  # a checkpoint, but without a KID
    before = trainer.folder.best.read_bytes()
    assert "run" in trainer.folder.read_checkpoint()[1]  # which only the trainer's own has
    with pytest.raises(FileExistsError, match=r"best\.safetensors exists and is no best checkpoint"):
        make_trainer(tmp_path / "run", 3, new=False, keep_best=True)
    assert trainer.folder.best.read_bytes() == before


def test_the_best_needs_validation_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="validation classes of at least 4 images"):
        make_trainer(tmp_path / "run", 2, tasks=make_tasks(split=(0.75, 0.0, 0.25)), keep_best=True)


def test_training_settings_that_are_off_are_absent() -> None:
    assert not {"ema", "keep_best", "warm_up"} & Training(3, ema=0).to_config().keys()
    settings = Training(3, ema=0.9, keep_best=True).to_config()
    assert (settings["ema"], settings["keep_best"]) == (0.9, True) and Training(**settings).to_config() == settings
    for value in (1.0, -0.1, 2, float("nan")):
        with pytest.raises(ValueError, match=re.escape("expected ema to be a decay between 0 and 1")):
            Training(3, ema=value)


def test_held_out_classes_have_their_own_shots(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", 1, keep_best=True, shots=4, validation_shots=2)
    assert trainer.training.batch(trainer.learner, trainer.tasks.train, 0).shots == 4
    batch = trainer._validation_batch
    assert batch is not None and batch.shots == 2
    trainer.run()
    assert trainer._kid is not None and trainer._kid._batch.shots == 2
    assert Training(1, shots=3).held_out_shots == 3
    with pytest.raises(ValueError, match="validation_shots"):
        Training(1, validation_shots=0)


# A stop within a validation

STOPPED: dict[str, Any] = {"ema": 0.8, "keep_best": True, "validate_every": 2, "checkpoint_every": 1, "keep": 9}


@contextlib.contextmanager
def interrupted(owner: Any, name: str, call: int) -> Iterator[list[int]]:
    """Press Ctrl-C within a call of a function, counted from 1; yield a list of all calls."""
    function, calls = getattr(owner, name), list[int]()

    def press(*arguments: Any, **options: Any) -> Any:
        calls.append(len(calls) + 1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return function(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, press)
        yield calls


def contents(path: Path) -> dict[str, bytes]:
    """Return a run's files that are the same in every run."""
    files = [*path.glob("checkpoints/*.safetensors"), *path.glob("samples/*"), path / "metrics.jsonl"]
    return {file.name: file.read_bytes() for file in [*files, path / "features.safetensors"]}


PLACES = {
    "the classifier": (CosineAnnealingLR, "step", 2),
    "the classifier's end": (FeatureExtractor, "save", 1),
    "the first classes": (adaptation, "_noise", 1),
    "the pictures": (image_grids, "save_grid", 1),
    "the meta-step before": (mgf.MetaGAN, "meta_step", 2),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_stop_within_a_validation_resumes_exactly(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_MOST_TASKS", 1)
    make_trainer(tmp_path / "straight", 4, **STOPPED).run()
    with interrupted(*PLACES[place]) as calls:
        trainer = make_trainer(tmp_path / "run", 4, **STOPPED)
        outcome = trainer.run()
    assert (outcome.step, outcome.interrupted, calls[-1]) == (2, True, PLACES[place][2])
    assert trainer.folder.latest()[1]["step"] == 2
    assert not kids(trainer.folder) and not trainer.folder.best.exists()

    def go_on() -> Outcome:
        again = make_trainer(tmp_path / "run", 4, new=False, **STOPPED)
        again.resume()
        return again.run()

    with interrupted(adaptation, "_noise", 2):
        outcome = go_on()
    assert (outcome.step, outcome.interrupted) == (2, True)
    outcome = go_on()
    assert (outcome.step, outcome.interrupted) == (4, False)
    assert contents(tmp_path / "run") == contents(tmp_path / "straight")


def test_a_stop_within_the_last_validation_is_made_up_for(tmp_path: Path) -> None:
    options = STOPPED | {"validate_every": 0, "checkpoint_every": 0}
    make_trainer(tmp_path / "straight", 2, **options).run()
    with interrupted(CosineAnnealingLR, "step", 3):
        outcome = make_trainer(tmp_path / "run", 2, **options).run()
    assert (outcome.step, outcome.interrupted) == (2, True)
    again = make_trainer(tmp_path / "run", 2, new=False, **options)
    again.resume()
    assert not again.run().interrupted
    assert contents(tmp_path / "run") == contents(tmp_path / "straight")


def test_a_failure_within_a_validation_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_trainer(tmp_path / "straight", 4, **STOPPED).run()
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(ValidationKID, "__call__", None)
        make_trainer(tmp_path / "run", 4, **STOPPED).run()
    again = make_trainer(tmp_path / "run", 4, new=False, **STOPPED)
    again.resume()
    again.run()
    assert contents(tmp_path / "run") == contents(tmp_path / "straight")


def test_the_display_moves_while_the_classifier_trains(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    class Display(NullProgress):
        def part(self, name: str, done: int, total: int) -> None:
            seen.append((name, done, total))

    trainer = make_trainer(tmp_path / "run", 2, keep_best=True)
    trainer.progress = Display()
    trainer.run()
    assert seen == [("feature classifier", step, 3) for step in (1, 2, 3)]
