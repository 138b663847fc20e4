"""Failures of the outer loop: any exception saves, outputs may fail, a second process is locked out."""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_trainer import Distribution, make_learner
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

import metagan_fast as mgf
from metagan_fast.display.progress import NullProgress
from metagan_fast.tasks import TaskBatch
from metagan_fast.training import folder_lock
from metagan_fast.training.outer_loop import Training
from metagan_fast.training.run_folder import RunFolder
from metagan_fast.training.stop_request import stop_request
from metagan_fast.training.trainer import Trainer


def make_trainer(path: Path, data: Any = None, *, new: bool = True, checkpoint_every: int = 0) -> Trainer:
    folder = RunFolder.create(path) if new else RunFolder(path)
    training = Training(
        6, tasks=2, shots=2, query=2, validation_tasks=2, validate_every=2, checkpoint_every=checkpoint_every, keep=9
    )
    tasks: Any = SimpleNamespace(train=data or Distribution(), validation=Distribution())
    return Trainer(make_learner(), tasks, folder, training)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return an undisturbed run, with the state after every meta-step."""
    trainer = make_trainer(tmp_path_factory.mktemp("straight") / "run", checkpoint_every=1)
    trainer.run()
    return trainer.folder


def saved(folder: RunFolder, step: int) -> bytes:
    return (folder.checkpoints / f"step-{step:08d}.safetensors").read_bytes()


class Failing(Distribution):
    """Data whose batch of meta-step 4 cannot be read."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def sample(self, tasks: int, shots: int, query: int, step: int) -> TaskBatch:
        if step == 4:
            raise self.error
        return super().sample(tasks, shots, query, step)


ERRORS = [MemoryError(), OSError("gone"), RuntimeError("a bug"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_exception_saves_the_last_meta_step(
    tmp_path: Path, straight: RunFolder, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path / "run", Failing(error))
    with pytest.raises(type(error)):
        trainer.run()
    assert saved(trainer.folder, 4) == saved(straight, 4)
    assert f"{type(error).__name__} ends training; meta-step 4, the last complete one, is saved" in caplog.text
    again = make_trainer(tmp_path / "run", new=False)
    again.resume()
    again.run()
    assert saved(again.folder, 6) == saved(straight, 6)
    assert again.folder.metrics.read_bytes() == straight.metrics.read_bytes()


def test_half_an_update_is_not_saved(tmp_path: Path, straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path / "run")
    step, calls = mgf.Reptile.step, 0

    def fail(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        if calls == 8:  # the fourth meta-step's second network
            raise MemoryError
        return step(*arguments, **options)

    monkeypatch.setattr(mgf.Reptile, "step", fail)
    with pytest.raises(MemoryError):
        trainer.run()
    assert [path.name for path in trainer.folder.checkpoints.glob("step-*")] == ["step-00000003.safetensors"]
    assert saved(trainer.folder, 3) == saved(straight, 3)


def test_a_state_that_cannot_be_saved_does_not_hide_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path / "run", Failing(ZeroDivisionError()))
    monkeypatch.setattr(RunFolder, "save", lambda *_, **__: (_ for _ in ()).throw(mgf.CheckpointError("full")))
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    assert "meta-step 4 cannot be saved: full" in caplog.text


# Outputs that fail


class Unread:
    """Progress reports to a closed pipe."""

    def fail(self, *_: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    start = step = part = message = close = fail


def fail_progress(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.progress = Unread()


def fill_metrics(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.folder.metrics = Path("/dev/full")


def block_pictures(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.folder.samples.rmdir()
    trainer.folder.samples.write_text("")


def block_events(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.folder.events.rmdir()
    trainer.folder.events.write_text("")


def fill_events(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("add_scalar", "add_image", "close"):
        monkeypatch.setattr(SummaryWriter, name, fail)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (fail_progress, "cannot write progress (BrokenPipeError: [Errno 32] Broken pipe)"),
        (fill_metrics, "cannot write metrics to /dev/full (OSError: [Errno 28] No space left"),
        (block_pictures, "samples (CheckpointError: cannot save"),
        (block_events, "cannot write events for TensorBoard (FileExistsError"),
        (fill_events, "cannot write events for TensorBoard (OSError: [Errno 28] No space left"),
    ],
)
def test_training_outlives_its_outputs(
    tmp_path: Path,
    straight: RunFolder,
    damage: Any,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer = make_trainer(tmp_path / "run")
    damage(trainer, monkeypatch)
    assert trainer.run().step == 6
    assert saved(trainer.folder, 6) == saved(straight, 6)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert message in record.message and record.message.endswith("training goes on without")


def test_training_outlives_its_log(tmp_path: Path, straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging reports a closed stream on the same stream, and raises."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    logging.getLogger("metagan_fast").addHandler(handler)
    try:
        trainer = make_trainer(tmp_path / "run")
        fail_progress(trainer, monkeypatch)
        trainer.run()
    finally:
        logging.getLogger("metagan_fast").removeHandler(handler)
    assert saved(trainer.folder, 6) == saved(straight, 6)


def test_a_line_of_metrics_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A full disk leaves a partial line."""
    folder = RunFolder.create(tmp_path / "run")
    folder.append_metrics(1, {"loss": 0.5})
    child = os.fork()
    if not child:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (folder.metrics.stat().st_size + 5, -1))
            folder.append_metrics(2, {"loss": 0.25})
        except OSError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert folder.metrics.read_text() == '{"step": 1, "loss": 0.5}\n'


def test_a_line_of_metrics_that_fails_half_way_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing disk reports an error after it has written a part."""
    folder = RunFolder.create(tmp_path / "run")

    class HalfWritten(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(data[: len(data) // 2])
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda path, mode, buffering: HalfWritten(path, mode))
        with pytest.raises(OSError, match="Input/output"):
            folder.append_metrics(1, {"loss": 0.5})
    folder.append_metrics(2, {"loss": 0.25})
    assert folder.read_metrics() == [{"step": 2, "loss": 0.25}]


# Signals


def test_a_hang_up_is_a_stop(tmp_path: Path, straight: RunFolder) -> None:
    class HangingUp(NullProgress):
        def step(self, done: int, metrics: Mapping[str, float]) -> None:
            if done == 3:
                signal.raise_signal(signal.SIGHUP)
                signal.raise_signal(signal.SIGHUP)  # one from the shell, then one from the terminal

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        trainer = make_trainer(tmp_path / "run")
        trainer.progress = HangingUp()
        outcome = trainer.run()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (outcome.step, outcome.interrupted) == (3, True)
    assert saved(trainer.folder, 3) == saved(straight, 3)


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup
    try:
        with stop_request(lambda: None) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_announcement_that_fails_does_not_disturb_the_stop(number: signal.Signals) -> None:
    with stop_request(Unread().fail) as stop:
        signal.raise_signal(number)
        assert stop.is_set()


# A second process


def test_a_run_under_way_is_locked(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run")
    message = f"is in use: process {os.getpid()} trains there"
    with trainer.folder.lock():
        other = make_trainer(tmp_path / "run", new=False)
        with pytest.raises(BlockingIOError, match=message):
            other.run()
        with pytest.raises(BlockingIOError, match=message):
            other.resume()
        assert not other.folder.metrics.exists()
        trainer.run()  # its own lock
    other.resume()


def test_a_process_that_dies_releases_its_lock(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with folder.lock():
            os.write(writing, b"locked")
            signal.pause()
    assert os.read(reading, 6) == b"locked"
    with pytest.raises(BlockingIOError, match=f"process {child} "), folder.lock():
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with folder.lock():
        assert (folder.path / ".lock").read_text() == f"{os.getpid()} {socket.gethostname()}"


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let locks fail as on some network file systems."""

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)


def test_a_folder_without_locks_is_trained_in(tmp_path: Path, no_locks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path / "run")
    with folder.lock(), RunFolder(folder.path).lock():
        pass
    assert (folder.path / ".lock").read_text() == ""  # free for other machines
    monkeypatch.setattr(folder_lock, "fcntl", None)
    with folder.lock(), RunFolder(folder.path).lock():
        pass


def test_a_dead_process_holds_no_folder_without_locks(tmp_path: Path, no_locks: None) -> None:
    folder = RunFolder.create(tmp_path / "run")
    child = os.fork()
    if not child:
        with folder.lock():
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (folder.path / ".lock").read_text() == f"{child} {socket.gethostname()}"
    with folder.lock():
        pass


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        ("1", "process 1 trains there; wait for it"),
        ("7 elsewhere", "process 7 of elsewhere trains there or died there.*if it has ended, remove .*lock"),
    ],
)
def test_a_folder_without_locks_is_in_use(tmp_path: Path, no_locks: None, owner: str, message: str) -> None:
    folder = RunFolder.create(tmp_path / "run")
    (folder.path / ".lock").write_text(owner)
    with pytest.raises(BlockingIOError, match=message), folder.lock():
        pass
    assert (folder.path / ".lock").read_text() == owner


def test_a_lock_names_the_other_machine(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    with folder.lock():
        (folder.path / ".lock").write_text("7 elsewhere")
        with pytest.raises(BlockingIOError, match="process 7 of elsewhere trains"), RunFolder(folder.path).lock():
            pass


def test_a_lock_that_was_left_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("123")
    RunFolder.create(tmp_path / "run")


# Files that a killed process left

UNFINISHED = (
    ".config.json.12.tmp",
    ".metrics.jsonl.12.tmp",
    "checkpoints/.step-00000004.safetensors.12.tmp",
    "checkpoints/.best.safetensors.12.tmp",
    "checkpoints/.latest.tmp",
    "samples/.step-00000004.png.12.tmp",
    "report/.evaluation.png.12.tmp",
)


def test_a_run_that_ended_before_its_config_is_no_content(tmp_path: Path) -> None:
    run = tmp_path / "run"
    RunFolder.create(run)
    (run / ".config.json.12.tmp").write_text("{")
    RunFolder.create(run)
    assert not (run / ".config.json.12.tmp").exists()


def test_resuming_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run")
    trainer.run()
    folder = trainer.folder
    folder.report_pictures.mkdir()
    others = ("notes.12.tmp", "checkpoints/.mine.safetensors.12.tmp")
    for name in (*UNFINISHED, *others):
        (folder.path / name).write_text("")
    make_trainer(tmp_path / "run", new=False).resume()
    assert not any((folder.path / name).exists() for name in UNFINISHED)
    assert all((folder.path / name).exists() for name in others)


# Damaged checkpoints


def test_a_damaged_checkpoint_is_told_with_the_whole_ones(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", checkpoint_every=2)
    trainer.run()
    path = trainer.folder.checkpoints / "step-00000004.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(mgf.CheckpointError, match=r"step-00000004.*whole ones of this run: 2, 6"):
        trainer.folder.read_checkpoint(4)


def test_a_damaged_best_checkpoint_is_not_passed_over_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path / "run")
    trainer.run()
    trainer.folder.best.write_bytes(b"damaged")
    assert trainer.folder.read_checkpoint()[1]["step"] == 6
    assert "best.safetensors" in caplog.text and "taking the last one in its place" in caplog.text
    with pytest.raises(mgf.CheckpointError, match=r"best\.safetensors"):
        trainer.folder.read_checkpoint("best")
