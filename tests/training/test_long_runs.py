"""Files and resources of long runs: metrics and events begin new files, memory and descriptors stay."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metagan_fast.training import TensorBoard, loggers, metrics_files
from metagan_fast.training.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path / "run")
    made.write_config({"settings": {}, "image_shape": [1, 8, 8], "split": {}})
    return made


def test_metrics_are_strict_json(folder: RunFolder) -> None:
    folder.append_metrics(1, {"loss": math.nan, "other": -math.inf, "third": 0.5})

    def refuse(word: str) -> float:
        raise AssertionError(word)

    assert json.loads(folder.metrics.read_text(), parse_constant=refuse) == {
        "step": 1, "loss": None, "other": None, "third": 0.5
    }  # fmt: skip


def test_full_metrics_files_are_kept_read_and_forgotten(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_files, "_FULL", 100)
    for step in range(1, 41):
        folder.append_metrics(step, {"loss": step / 8})
    files = sorted(folder.path.glob("metrics*.jsonl"))
    assert len(files) > 4 and all(file.stat().st_size < 150 for file in files)
    assert [line["step"] for line in folder.read_metrics()] == list(range(1, 41))
    folder.forget_metrics_after(17)
    assert [line["step"] for line in folder.read_metrics()] == list(range(1, 18))
    folder.append_metrics(18, {"loss": 0.0})
    assert [line["step"] for line in RunFolder.open(folder.path).read_metrics()] == list(range(1, 19))


def test_event_files_begin_anew_and_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "_FULL", 5)
    logger = TensorBoard(tmp_path)
    for step in range(8):
        logger.log_metrics(step, {"loss": float(step), "penalty": 1.0})
    logger.close()
    assert len(list(tmp_path.iterdir())) == 4
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(8))
    assert [event.step for event in events.Scalars("train/penalty")] == list(range(8))


_RUN = """
import os, sys
from metagan_fast.training import config
from metagan_fast.training.run_folder import RunFolder
from metagan_fast.training.trainer import Trainer

def status():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))

settings = config.resolve(config.merge(config.from_preset("quick"), {
    "training": {"meta_steps": 4000, "checkpoint_every": 500, "validate_every": 500, "tasks": 1, "shots": 1},
    "inner": {"steps": 1}, "model": {"hidden": [4]}, "latent_dim": 2}))
tasks = config.build_tasks(settings)
learner = config.build_learner(settings, tasks.image_shape)
seen = []

class Watch:
    def log_metrics(self, step, metrics):
        if step in (1100, 3900): seen.append(status())
    def log_images(self, *given): pass
    def close(self): pass

folder = RunFolder.create(sys.argv[1])
Trainer(learner, tasks, folder, config.build_training(settings), loggers=[Watch()]).run()
(first, opened), (last, later) = seen[0], seen[-1]
print((last - first) / 2800, later - opened)
"""


@pytest.mark.scale
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_memory_and_descriptors_of_a_long_run_stay(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(tmp_path / "run")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    bytes_a_step, descriptors = map(float, done.stdout.split())
    assert bytes_a_step < 1000
    assert descriptors <= 0
