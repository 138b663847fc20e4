"""The outer loop: exact resume, contents of a run folder, stopping, and failing disks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import metagan_fast as mgf
from metagan_fast import checkpoint
from metagan_fast.display import image_grids
from metagan_fast.tasks import TaskBatch
from metagan_fast.training.outer_loop import Training
from metagan_fast.training.run_folder import RunFolder
from metagan_fast.training.stop_request import stop_request
from metagan_fast.training.trainer import Trainer


class Distribution:
    """Stripes drawn from the step alone."""

    classes = ("rising", "falling")

    def sample(self, tasks: int, shots: int, query: int = 0, step: int = 0, *, mixed: bool = False) -> TaskBatch:
        generator = torch.Generator().manual_seed(step)
        drawn = torch.rand(tasks, shots + query, 1, 4, 4, generator=generator) * 2 - 1
        return TaskBatch(drawn[:, :shots], drawn[:, shots:] if query else None)


TASKS: Any = SimpleNamespace(train=Distribution(), validation=Distribution())

SETTINGS: dict[str, dict[str, Any]] = {
    "reptile": {"meta": mgf.Reptile(lr=mgf.schedules.Linear(0.1, 0.0, 20))},
    "serial, persistent inner Adam": {
        "inner": mgf.InnerLoop(optimizer="adam", steps=2, inner_state="persist"),
        "meta": mgf.Reptile(optimizer="sgd", lr=0.5, momentum=0.9, serial=True),
    },
    "maml": {"loss": "non-saturating", "meta": mgf.MAML(lr=1e-2, first_order_steps=3)},
}


def make_learner(**settings: Any) -> mgf.MetaGAN:
    torch.manual_seed(1)
    generator, discriminator = mgf.models.mlp((1, 4, 4), latent_dim=3, hidden=(5,))
    return mgf.MetaGAN(
        generator, discriminator, **({"latent_dim": 3, "inner": mgf.InnerLoop(steps=2, lr=0.05)} | settings)
    )


def make_trainer(path: Path, meta_steps: int = 4, *, learner: Any = None, new: bool = True, **options: Any) -> Trainer:
    folder = RunFolder.create(path) if new else RunFolder(path)
    training = Training(meta_steps, **({"tasks": 2, "shots": 2, "query": 2, "validation_tasks": 2} | options))
    return Trainer(learner or make_learner(), TASKS, folder, training, record={"split": ["rising", "falling"]})


@pytest.mark.parametrize(("name", "warm_up"), [*((name, 0) for name in SETTINGS), ("maml", 2), ("maml", 6)])
def test_resuming_ends_with_the_same_bytes(tmp_path: Path, name: str, warm_up: int) -> None:
    settings = SETTINGS[name]
    half = 10 if name == "reptile" else 4
    tasks = 1 if "persistent" in name else 2
    options = {"tasks": tasks, "validation_tasks": tasks, "validate_every": 2, "warm_up": warm_up}
    make_trainer(tmp_path / "straight", 2 * half, learner=make_learner(**settings), **options).run()
    make_trainer(tmp_path / "halves", half, learner=make_learner(**settings), **options).run()
    second = make_trainer(tmp_path / "halves", 2 * half, learner=make_learner(**settings), new=False, **options)
    second.resume()
    assert second.learner.step == half
    assert second.run().step == 2 * half
    end = f"step-{2 * half:08d}"
    for file in (f"checkpoints/{end}.safetensors", "metrics.jsonl", f"samples/{end}.png"):
        assert (tmp_path / "halves" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes(), file


def test_a_warm_up_trains_jointly_with_its_own_inner_loop(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", 2, warm_up=2, warm_up_batch_size=3, warm_up_lr=0.02)
    trainer.run()
    by_hand, inner = make_learner(), mgf.InnerLoop(steps=2, lr=0.02, batch_size=3)
    for step in range(2):
        by_hand.joint_step(TASKS.train.sample(2, 2 * 3, 0, step), inner=inner)
    assert torch.equal(trainer.learner.generator_parameters, by_hand.generator_parameters)
    assert torch.equal(trainer.learner.discriminator_parameters, by_hand.discriminator_parameters)
    with pytest.raises(ValueError, match="warm_up_lr"):
        Training(2, warm_up=1, warm_up_lr=0)


def test_resuming_on_other_data_in_memory_is_refused(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (24, 4, 4), dtype=np.uint8)
    labels = np.arange(24) % 6
    training = Training(2, tasks=2, shots=2)

    def make(folder: RunFolder, images: Any, **options: Any) -> Trainer:
        tasks = mgf.tasks.from_arrays(images, labels, **options)
        return Trainer(make_learner(meta=mgf.Reptile()), tasks, folder, training)

    folder = RunFolder.create(tmp_path / "run")
    first = make(folder, images)
    first.run()
    again = make(folder, images, split=first.tasks.split_record())
    again.resume()
    assert again.learner.step == 2
    for other in (make(folder, images[::-1]), make(folder, images, seed=1)):
        with pytest.raises(ValueError, match=r"run was trained on other data in memory, or on another split"):
            other.resume()
        assert other.learner.step == 0


def test_resuming_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    """A run that died between checkpoints continues from the last one."""
    first = make_trainer(tmp_path / "run", 6)
    first.run()
    with open(first.folder.metrics, "a") as file:
        file.write('{"step": 7, "loss_generator": 1.0}\n{"step": 8, "loss_gene')
    second = make_trainer(tmp_path / "run", 8, new=False)
    second.resume()
    second.run()
    steps = [line["step"] for line in second.folder.read_metrics() if "gradient_norm" in line]
    assert steps == list(range(1, 9))


def test_a_run_writes_its_folder(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", 8, validate_every=3, checkpoint_every=2, keep=2, log_every=4)
    outcome = trainer.run()
    folder = trainer.folder
    assert (outcome.step, outcome.interrupted) == (8, False)
    assert sorted(p.name for p in folder.samples.iterdir()) == [f"step-0000000{n}.png" for n in (3, 6, 8)]
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == [
        "latest.safetensors", "step-00000006.safetensors", "step-00000008.safetensors"
    ]  # fmt: skip
    assert (folder.checkpoints / "latest.safetensors").resolve().name == "step-00000008.safetensors"
    assert [line["step"] for line in folder.read_metrics() if "gradient_norm" in line] == [4, 8]
    assert [line["step"] for line in folder.read_metrics() if "validation_loss_generator" in line] == [
        3,
        6,
        8,
    ]
    assert list(folder.events.glob("events.out.tfevents*"))
    metadata = checkpoint.read(folder.checkpoints / "latest.safetensors")[1]
    assert metadata["run"] == {"split": ["rising", "falling"]} and metadata["step"] == 8


def test_a_checkpoint_is_a_saved_learner(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", 2)
    trainer.run()
    other = make_learner()
    loaded = mgf.MetaGAN.load(trainer.folder.checkpoints / "latest.safetensors", other.generator, other.discriminator)
    assert loaded.step == 2
    assert torch.equal(loaded.generator_parameters, trainer.learner.generator_parameters)


def test_validation_changes_nothing(tmp_path: Path) -> None:
    ends = []
    for name, every in (("often", 1), ("never", 0)):
        trainer = make_trainer(tmp_path / name, 3, validate_every=every)
        trainer.run()
        ends.append(trainer.learner.generator_parameters)
    assert torch.equal(*ends)


def test_sample_grids_show_support_above_generated(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", 1)
    trainer.run()
    picture = Image.open(trainer.folder.samples / "step-00000001.png")
    batch = TASKS.validation.sample(tasks=2, shots=2, query=0, step=0)
    factor = 16  # 4 pixels enlarged to 64
    corner = np.asarray(picture.crop((0, 0, 4 * factor, 4 * factor)).resize((4, 4), Image.Resampling.NEAREST))
    assert torch.equal(torch.from_numpy(corner.copy()), image_grids.to_bytes(batch.support[0, 0, 0]))


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(tmp_path / "run", 4, checkpoint_every=1)
    trainer.run()
    newest = trainer.folder.checkpoints / "step-00000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    again = make_trainer(tmp_path / "run", 4, new=False)
    again.resume()
    assert again.learner.step == 3
    assert "step-00000004.safetensors is truncated" in caplog.text
    for path in trainer.folder.checkpoints.glob("step-*"):
        path.write_bytes(b"")
    with pytest.raises(mgf.CheckpointError, match="no checkpoint that can be read"):
        again.resume()


def test_full_disk_while_saving_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path / "run", 4, checkpoint_every=2)
    whole = checkpoint.write

    def fail_at_the_end(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        if metadata["step"] == 4:
            monkeypatch.setattr(os, "fsync", no_space)
        whole(path, tensors, metadata)

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write", fail_at_the_end)
    with pytest.raises(mgf.CheckpointError, match="No space left on device"):
        trainer.run()
    monkeypatch.undo()
    again = make_trainer(tmp_path / "run", 4, new=False)
    again.resume()
    assert again.learner.step == 2


def test_a_meta_gradient_that_is_not_finite_leaves_the_state_before_it(tmp_path: Path) -> None:
    learner = make_learner()
    trainer = make_trainer(tmp_path / "run", 4, learner=learner)
    finite = learner.meta_step

    def explode(batch: TaskBatch) -> dict[str, float]:
        if learner.step == 2:
            raise FloatingPointError("the meta-gradient is not finite")
        return finite(batch)

    learner.meta_step = explode  # type: ignore[method-assign, assignment]
    with pytest.raises(FloatingPointError):
        trainer.run()
    assert trainer.folder.latest()[1]["step"] == 2


def test_ctrl_c_saves_and_the_second_ends_at_once(tmp_path: Path) -> None:
    learner = make_learner()
    trainer = make_trainer(tmp_path / "run", 100, learner=learner)
    messages: list[str] = []
    trainer.progress.message = messages.append  # type: ignore[method-assign]
    whole = learner.meta_step

    def interrupted(batch: TaskBatch) -> dict[str, float]:
        if learner.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(batch)

    learner.meta_step = interrupted  # type: ignore[method-assign, assignment]
    before = signal.getsignal(signal.SIGINT)
    outcome = trainer.run()
    assert (outcome.step, outcome.interrupted) == (3, True)
    assert messages == ["stopping after this meta-step; Ctrl-C again to exit at once"]
    assert trainer.folder.latest()[1]["step"] == 3
    assert signal.getsignal(signal.SIGINT) is before
    with stop_request(lambda: None) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_the_second_ctrl_c_of_a_notebook_leaves_a_usable_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    learner = make_learner()
    trainer = make_trainer(tmp_path / "run", 5, learner=learner)
    step, interrupts = type(learner.meta).step, 2

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal interrupts
        for _ in range(interrupts if learner.step == 2 else 0):
            interrupts -= 1
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments, **options)

    monkeypatch.setattr(type(learner.meta), "step", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert learner.step == 2 == trainer.folder.latest()[1]["step"]
    assert trainer.run().step == 5


def test_a_stop_that_interrupts_a_print_is_announced_later(tmp_path: Path) -> None:
    """Streams raise RuntimeError when a signal handler writes to one in the middle of a write."""
    learner = make_learner()
    trainer = make_trainer(tmp_path / "run", 100, learner=learner)
    messages: list[str] = []
    printing = False

    def message(text: str) -> None:
        if printing:
            raise RuntimeError("reentrant call")
        messages.append(text)

    def step(done: int, metrics: object) -> None:
        nonlocal printing
        printing = True
        os.kill(os.getpid(), signal.SIGINT)
        printing = False

    trainer.progress.message = message  # type: ignore[method-assign]
    trainer.progress.step = step  # type: ignore[method-assign]
    assert trainer.run().step == 1
    assert messages == ["stopping after this meta-step; Ctrl-C again to exit at once"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_stop_from_outside(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """A real signal to the command line gives a message, its own exit code and a run that can be resumed."""
    command = [
        sys.executable,
        "-m",
        "metagan_fast",
        "train",
        "--preset",
        "quick",
        "--steps",
        "1000000",
        "--threads",
        "1",
    ]
    process = subprocess.Popen(
        [*command, "--model", "hidden=[4]", "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "meta-step 1/" not in (line := process.stderr.readline()):
        assert line, "training ended early"
    process.send_signal(number)
    out, error = process.communicate(timeout=120)
    assert process.returncode == code
    assert "stopping after this meta-step" in error and "Traceback" not in error
    assert "stopped after meta-step" in out and "--resume" in out
    assert RunFolder.open(tmp_path / "run").latest()[1]["step"] >= 1


CONFIG = {"seed": 1, "versions": {"metagan_fast": mgf.__version__}}


def test_folders_are_not_overwritten_unasked(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", 2)
    trainer.folder.write_config(CONFIG)
    trainer.run()
    (tmp_path / "run" / "checkpoints" / ".step-00000002.safetensors.123.tmp").touch()
    own = {
        path.relative_to(tmp_path / "run")
        for path in (tmp_path / "run").rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    theirs = [
        "notes.txt", "samples/old.png", "samples/step-2.png", "samples/below/step-00000002.png",
        "checkpoints/step-00000002-best.safetensors", "checkpoints/best.safetensors", "events/notes.txt",
        "evaluation.json", "features.safetensors",
    ]  # fmt: skip
    for name in theirs:
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(FileExistsError, match="holds a run; resume it, overwrite it"):
        RunFolder.create(tmp_path / "run")
    folder = RunFolder.create(tmp_path / "run", overwrite=True)
    assert not any((tmp_path / "run" / name).exists() for name in own)
    assert all((tmp_path / "run" / name).read_text() == "mine" for name in theirs)
    assert not folder.pictures()


def test_overwriting_removes_what_evaluate_wrote(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.write_config(CONFIG)
    folder.write_evaluation({"scores": {}, "meta_step": 2})
    folder.write_evaluation({"scores": {}, "meta_step": 3})
    checkpoint.write(folder.features, {"weight": torch.zeros(1)}, {})
    RunFolder.create(tmp_path / "run", overwrite=True)
    assert not folder.evaluation.exists() and not folder.features.exists()
    folder.evaluation.write_text('{"mine": true}')
    with pytest.raises(FileExistsError, match=r"evaluation\.json exists and `evaluate` did not write it"):
        folder.write_evaluation({"scores": {}, "meta_step": 2})


def test_a_checkpoint_that_somebody_put_beside_is_neither_read_nor_removed(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", 3, checkpoint_every=1, keep=1)
    best = trainer.folder.checkpoints / "step-00000001-best.safetensors"
    best.write_bytes(b"mine")
    trainer.run()
    assert best.read_bytes() == b"mine"
    assert trainer.folder.latest()[1]["step"] == 3


@pytest.mark.parametrize("config", [None, '{"seed": 1, "versions": "3.2"}', '{"versions": null}', "[]", "{"])
def test_other_folders_are_never_overwritten(tmp_path: Path, config: str | None) -> None:
    """Other programs have a config.json, too."""
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step-00000002.png").write_text("mine")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(FileExistsError, match="is not a run"):
        RunFolder.create(tmp_path, overwrite=True)
    assert (tmp_path / "samples" / "step-00000002.png").read_text() == "mine"


def test_a_folder_without_a_config_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"it has no config\.json"):
        RunFolder.open(tmp_path)


def test_a_run_that_ended_before_it_had_a_config_can_be_started_again(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run")
    RunFolder.create(tmp_path / "run")
    (tmp_path / "run" / "samples" / "photo.png").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a run"):
        RunFolder.create(tmp_path / "run")


def test_damaged_config(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.write_config({"seed": 1})
    assert folder.read_config() == json.loads(folder.config.read_text()) == {"seed": 1}
    for text in ('{"seed": ', "[]"):
        folder.config.write_text(text)
        with pytest.raises(ValueError, match=r"config\.json is damaged"):
            folder.read_config()


@pytest.mark.parametrize("name", ["meta_steps", "tasks", "shots", "keep", "log_every", "validation_tasks"])
def test_counts_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected {name} to be at least 1, got 0"):
        Training(**({"meta_steps": 1} | {name: 0}))


def test_grid_layout() -> None:
    cells = torch.arange(6.0).reshape(2, 3, 1, 1, 1).expand(2, 3, 1, 2, 2) / 10
    laid_out = image_grids.grid(cells)
    assert laid_out.shape == (1, 2 + 2 + 2, 2 + 2 + 2 + 2 + 2)
    assert laid_out[0, 0, 4] == cells[0, 1, 0, 0, 0] and laid_out[0, 4, 8] == cells[1, 2, 0, 0, 0]
    assert image_grids.sample_grid(torch.zeros(5, 1, 2, 2)).shape == (1, 6, 10)


def test_png_is_exact(tmp_path: Path) -> None:
    pixels = torch.arange(256, dtype=torch.float32).reshape(1, 16, 16)
    (tmp_path / "grey.png").write_bytes(image_grids.png(pixels / 127.5 - 1))
    assert np.asarray(Image.open(tmp_path / "grey.png")).flatten().tolist() == list(range(256))
    (tmp_path / "colour.png").write_bytes(image_grids.png(torch.tensor([-1.0, 0.0, 3.0]).reshape(3, 1, 1)))
    assert Image.open(tmp_path / "colour.png").getpixel((0, 0)) == (0, 128, 255)
