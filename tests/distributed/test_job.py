"""The roll call that names lost ranks, and restarts of a job by torch's launcher."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from metagan_fast.cli import main, train
from metagan_fast.distributed import Ranks, job
from metagan_fast.training.run_folder import RunFolder
from metagan_fast.training.unwritten_folder import UnwrittenFolder

HERE = socket.gethostname()


@pytest.fixture
def dead() -> int:
    """Return the number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def unreaped() -> int:
    """Return the number of a process that has ended, but whose parent has not asked for its exit code."""
    read, write = os.pipe()
    number = os.fork()
    if number == 0:
        os._exit(0)
    os.close(write)
    os.read(read, 1)  # returns when the child has closed the pipe
    os.close(read)
    return number


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "ROLL_CALL_SECONDS", 0.2)


def roll(rank: int, processes: list[str], **written: str) -> tuple[dict[int, str], dict[int, str]]:
    store = dist.HashStore()
    for number, process in enumerate(processes):
        store.set(f"process {number}", process)
    for key, value in written.items():
        store.set(key.replace("_", " "), value)
    ranks = Ranks()
    ranks.rank, ranks.size = rank, len(processes)
    return job._call_roll(ranks, store)


def test_a_dead_process_is_lost(dead: int) -> None:
    processes = [f"{HERE}:{os.getpid()}", f"{HERE}:{dead}", f"{HERE}:{os.getppid()}"]
    assert roll(0, processes, noticed_2="") == ({1: f"rank 1 (process {dead})"}, {})


def test_an_unreaped_process_is_lost(unreaped: int) -> None:
    assert roll(0, [f"{HERE}:{os.getpid()}", f"{HERE}:{unreaped}"])[0] == {1: f"rank 1 (process {unreaped})"}
    os.waitpid(unreaped, 0)


def test_a_busy_process_is_not_lost(dead: int) -> None:
    assert set(roll(1, [f"{HERE}:{os.getppid()}", f"{HERE}:{os.getpid()}", f"{HERE}:{dead}"])[0]) == {2}


def test_a_silent_rank_of_another_machine_is_lost(dead: int) -> None:
    assert roll(0, [f"{HERE}:{os.getpid()}", f"elsewhere:{dead}"]) == ({1: f"rank 1 (elsewhere:{dead})"}, {})


def test_a_rank_that_ended_with_an_error_is_not_lost(dead: int) -> None:
    found = roll(0, [f"{HERE}:{os.getpid()}", f"{HERE}:{dead}"], end_1="ValueError: no")
    assert found == ({}, {1: "ValueError: no"})


def test_a_restarted_job_has_the_name_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert job.name() is None and job.restarts() == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun's default
    assert job.name() == f"{HERE}:{os.getppid()}"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert job.name() == "mine" and job.restarts() == 2


def test_only_an_own_run_is_gone_on_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert train._started_before(folder) is None  # it ended before it began the run
    folder.write_config({"job": "another"})
    assert train._started_before(folder) is None
    folder.write_config({"job": "mine"})
    assert train._started_before(folder) == "unsaved"
    folder.checkpoints.mkdir()
    folder.save(3, {}, {}, keep=1)
    assert train._started_before(folder) == "saved"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert train._started_before(folder) is None


def test_nproc_must_fit_the_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert main(["train", "--nproc", "3"]) == 2
    assert "expected --nproc 2, as many as torchrun has started here, got 3" in capsys.readouterr().err


def test_the_folder_of_other_ranks_is_not_written(tmp_path: Path) -> None:
    """Every method that writes or refuses is replaced."""
    replaced = {name for name in vars(UnwrittenFolder) if not name.startswith("__")}
    writing = {
        name
        for name in vars(RunFolder)
        if name.startswith(("create", "open", "check", "lock", "write", "append", "forget", "save"))
    }
    assert writing == replaced
    folder = UnwrittenFolder.create(tmp_path / "run")
    with folder.lock():
        folder.write_config({})
        folder.append_metrics(1, {"loss": 1.0})
        folder.save(1, {}, {}, keep=1)
    assert not folder.path.exists()
