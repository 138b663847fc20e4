"""Loggers receive a run's metrics and pictures, and cannot end it."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import metagan_fast as mgf
from metagan_fast.cli import main
from metagan_fast.training import Logger, MLflow, TensorBoard, WandB, loggers
from metagan_fast.training.outer_loop import Training
from metagan_fast.training.run_folder import RunFolder
from metagan_fast.training.trainer import Trainer
from support import ROOT


class Recorder:
    """Logger that keeps what it is told."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.images: list[tuple[int, str, Any]] = []
        self.closed = 0

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.metrics.append({"step": step, **metrics})

    def log_images(self, step: int, name: str, image: Any) -> None:
        self.images.append((step, name, image))

    def close(self) -> None:
        self.closed += 1


class Broken(Recorder):
    """Logger whose every call fails."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log_metrics(step, metrics)
        raise ConnectionError("the server is down")

    def log_images(self, step: int, name: str, image: Any) -> None:
        super().log_images(step, name, image)
        raise RuntimeError("no space")

    def close(self) -> None:
        super().close()
        raise OSError("gone")


def train(path: Path, receivers: list[Logger] | None, meta_steps: int = 4) -> Trainer:
    torch.manual_seed(1)
    tasks = mgf.tasks.load("digits", split=(0.5, 0.2, 0.3))
    networks = mgf.models.mlp(tasks.image_shape, latent_dim=4, hidden=(8,))
    learner = mgf.MetaGAN(*networks, latent_dim=4, inner=mgf.InnerLoop(steps=1))
    training = Training(meta_steps=meta_steps, tasks=2, shots=2, validate_every=2)
    trainer = Trainer(learner, tasks, RunFolder.create(path), training, loggers=receivers)
    trainer.run()
    return trainer


def test_loggers_get_what_the_folder_gets(tmp_path: Path) -> None:
    first, second = Recorder(), Recorder()
    trainer = train(tmp_path / "run", [first, second])
    assert first.metrics == second.metrics == trainer.folder.read_metrics()
    assert len(first.metrics) == 6 and first.closed == 1
    assert [(step, name) for step, name, _ in first.images] == [
        (step, "validation_support_above_generated") for step in (2, 4)
    ]
    picture = first.images[0][2]
    assert picture.dtype == np.uint8 and picture.shape[-1] == 1
    saved = np.asarray(Image.open(trainer.folder.pictures()[0]))
    factor = saved.shape[0] // picture.shape[0]
    assert np.array_equal(saved[::factor, ::factor], picture[..., 0])
    assert not list(trainer.folder.events.iterdir())  # these loggers replace TensorBoard's


def test_a_logger_that_fails_is_reported_once_and_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken, whole = Broken(), Recorder()
    hindered = train(tmp_path / "hindered", [broken, whole])
    assert [record.getMessage() for record in caplog.records] == [
        "cannot write to the logger Broken (ConnectionError: the server is down); training goes on without"
    ]
    free = train(tmp_path / "free", [])
    assert broken.metrics == whole.metrics == hindered.folder.read_metrics() == free.folder.read_metrics()
    assert len(broken.images) == 2 and broken.closed == whole.closed == 1
    (name,) = {path.name for path in (free.folder.checkpoints / "latest.safetensors",)}
    assert (hindered.folder.checkpoints / name).read_bytes() == (free.folder.checkpoints / name).read_bytes()


def test_ctrl_c_in_a_logger_is_no_failure_of_it(tmp_path: Path) -> None:
    class Interrupted(Recorder):
        def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    receiver = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", [receiver])
    assert receiver.closed == 1 and RunFolder(tmp_path / "run").latest()[1]["step"] == 1


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> ModuleType:
    """Put a module in the place of a library."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_wandb_gets_all_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, Any]]] = []
    finished = 0

    class Run:
        id = "abc"

        def log(self, values: dict[str, Any], *, step: int) -> None:
            logged.append((step, values))

        def finish(self) -> None:
            nonlocal finished
            finished += 1

    def init(**settings: Any) -> Run:
        begun.append(settings)
        return Run()

    stand_in(monkeypatch, "wandb", init=init, Image=lambda image: ("picture", image.shape[-1]))
    receiver = WandB("mine", mode="offline", config={"lr": 0.1})
    assert begun == []
    trainer = train(tmp_path / "run", [receiver])
    assert begun == [{"project": "mine", "mode": "offline", "config": {"lr": 0.1}}] and finished == 1
    lines = trainer.folder.read_metrics()
    numbers = [(step, values) for step, values in logged if "validation/support_above_generated" not in values]
    assert [step for step, _ in numbers] == [line["step"] for line in lines]
    assert numbers[0][1]["train/loss_generator"] == lines[0]["loss_generator"]
    assert numbers[2][1]["validation/loss_generator"] == lines[2]["validation_loss_generator"]
    assert ("picture", 1) in [values.get("validation/support_above_generated") for _, values in logged]
    receiver.log_metrics(5, {"penalty": 1.0})  # a further run goes on with the same one
    assert begun[1]["id"] == "abc" and begun[1]["resume"] == "allow"


def test_mlflow_gets_all_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class Client:
        def __init__(self, tracking_uri: str | None) -> None:
            calls.append(("client", tracking_uri))

        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            calls.append(("experiment", name))
            return "7"

        def create_run(self, experiment: str, **settings: Any) -> Any:
            calls.append(("run", experiment, settings))
            return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

        def log_param(self, run: str, name: str, value: Any) -> None:
            calls.append(("param", run, name, value))

        def log_metric(self, run: str, name: str, value: float, *, step: int) -> None:
            calls.append(("metric", run, name, value, step))

        def log_image(self, run: str, image: Any, file: str) -> None:
            calls.append(("image", run, image.shape[-1], file))

        def set_terminated(self, run: str) -> None:
            calls.append(("end", run))

    stand_in(monkeypatch, "mlflow")
    stand_in(monkeypatch, "mlflow.tracking", MlflowClient=Client)
    receiver = MLflow("mine", params={"lr": 0.1}, tracking_uri="here", run_name="first")
    assert calls == []
    lines = train(tmp_path / "run", [receiver]).folder.read_metrics()
    assert calls[:4] == [
        ("client", "here"),
        ("experiment", "mine"),
        ("run", "7", {"run_name": "first"}),
        ("param", "r1", "lr", 0.1),
    ]
    assert ("metric", "r1", "train/loss_generator", lines[0]["loss_generator"], 1) in calls
    assert ("metric", "r1", "validation/loss_generator", lines[2]["validation_loss_generator"], 2) in calls
    assert ("image", "r1", 1, "validation_support_above_generated-00000002.png") in calls
    assert calls[-1] == ("end", "r1") and sum(call[0] == "run" for call in calls) == 1


@pytest.mark.parametrize(("name", "kind"), [("wandb", WandB), ("mlflow", MLflow)])
def test_a_missing_library_is_named(
    name: str, kind: type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"needs {name}, which is not installed: pip install {name}"):
        kind()
    assert main(["train", "--preset", "quick", "--logger", name, "--out", str(tmp_path / "run")]) == 2
    assert f"pip install {name}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


TINY = ["train", "--preset", "quick", "--model", "hidden=[8]", "--inner-steps", "1", "--tasks", "1", "--steps", "2"]


@pytest.mark.usefixtures("own_folder")
def test_the_command_line_takes_loggers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "receivers.py").write_text(
        "import json\n"
        "class Lines:\n"
        "    def __init__(self, folder, record):\n"
        "        self.file = open('lines.jsonl', 'w')\n"
        "        self.seed = record['settings']['seed']\n"
        "    def log_metrics(self, step, metrics):\n"
        "        self.file.write(json.dumps({'seed': self.seed, 'step': step, **metrics}) + '\\n')\n"
        "    def log_images(self, step, name, image):\n"
        "        pass\n"
        "    def close(self):\n"
        "        self.file.close()\n"
        "kept = Lines(None, {'settings': {'seed': 'none'}})\n"
        "number = 3\n"
    )
    try:
        for place, seed in (("receivers:Lines", 5), ("receivers:kept", "none")):
            assert main([*TINY, "--seed", "5", "--out", "run", "--overwrite", "--logger", "tensorboard", place]) == 0
            lines = [json.loads(line) for line in Path("lines.jsonl").read_text().splitlines()]
            assert [{**line, "seed": seed} for line in RunFolder("run").read_metrics()] == lines
            assert len(list(Path("run/events").iterdir())) == 1
        assert main([*TINY, "--out", "quiet", "--logger", "none"]) == 0
        assert not list(Path("quiet/events").iterdir())
        for place, problem in (
            ("receivers:number", "expected receivers:number to be a logger or to make one, but it lacks log_metrics"),
            ("receivers:absent", "cannot import receivers:absent"),
            ("tensorbored", "expected tensorboard, wandb, mlflow, none or MODULE:OBJECT"),
        ):
            with pytest.raises(SystemExit):
                main([*TINY, "--out", "other", "--logger", place])
            assert problem in capsys.readouterr().err
    finally:
        sys.modules.pop("receivers", None)


def test_tensorboard_leaves_the_handler_of_threads_as_it_was(tmp_path: Path) -> None:
    before = threading.excepthook
    (tmp_path / "file").write_text("no folder")
    blocked = TensorBoard(tmp_path / "file")
    for _ in range(2):
        with pytest.raises(OSError):
            blocked.log_metrics(1, {"penalty": 1.0})
    blocked.close()
    assert threading.excepthook is before
    receiver = TensorBoard(tmp_path)
    receiver.close()  # nothing was logged
    receiver.log_metrics(1, {"penalty": 1.0})
    assert threading.excepthook is not before
    receiver.close()
    assert threading.excepthook is before


def test_the_page_s_own_logger_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/logging.md").read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    for block in blocks:
        if "WandB" not in block and "MLflow" not in block:  # need their libraries
            exec(block, names)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["1", "2", "3", "3", "3"]
    assert "validation_support_above_generated" in printed[3] and "'validation_loss_generator'" in printed[4]
