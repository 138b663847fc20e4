"""Whole runs of several processes, started as users do: their bytes, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from metagan_fast.cli import main
from metagan_fast.training.run_folder import RunFolder

pytestmark = [pytest.mark.scale, pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")]

NETWORKS = ["--preset", "quick", "--model", "hidden=[8]", "--inner-steps", "2", "--tasks", "3"]
TINY = [*NETWORKS, "--split", "0.5", "0.3", "0.2", "--threads", "1", "--deterministic-reduce"]
STEPS = 400
LONG = [*TINY, "--steps", str(STEPS), "--checkpoint-every", "20"]
MINUTE = 60.0

TRAIN = ("-m", "metagan_fast", "train")


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start Python in the folder of the tests' outputs, where it imports the installed package."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # feature networks are trained by PyTorch, whose sums depend on it
    )
    try:
        yield process
    finally:
        for number in (*ranks_of(process), process.pid):
            with_signal(number, signal.SIGKILL)
        process.communicate()


def run(*arguments: str) -> tuple[int, str]:
    """Return the exit code and standard error of Python with these arguments."""
    with started(*arguments) as process:
        _, errors = process.communicate(timeout=5 * MINUTE)
        return process.returncode, errors


def with_signal(number: int, name: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(number, name)


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """Return the numbers of a launcher's processes, in the order of their ranks."""
    found: dict[int, int] = {}
    for children in Path(f"/proc/{launcher.pid}/task").glob("*/children"):
        for number in map(int, children.read_text().split()):
            variables = Path(f"/proc/{number}/environ").read_text().split("\0")
            found |= {int(one.partition("=")[2]): number for one in variables if one.startswith("RANK=")}
    return [found[rank] for rank in sorted(found)]


def wait_for_checkpoint(folder: Path, step: int = 20) -> None:
    deadline = time.monotonic() + 2 * MINUTE
    while not any(folder.glob(f"checkpoints/step-*{step}.safetensors")):
        assert time.monotonic() < deadline, f"no checkpoint in {folder}"
        time.sleep(0.02)


def last(path: Path) -> tuple[bytes, bytes]:
    """Return the bytes of a run's last checkpoint and of its metrics."""
    return (path / "checkpoints" / "latest.safetensors").read_bytes(), (path / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Return what one process writes."""
    path = tmp_path_factory.mktemp("alone") / "run"
    assert main(["train", *LONG, "--out", str(path)]) == 0
    return last(path)


def test_ranks_write_the_bytes_of_one_process(tmp_path: Path) -> None:
    """With a warm-up, an average, validation by KID and pictures; evaluated by ranks too."""
    run_length = ["--steps", "4", "--warm-up", "1", "--validate-every", "2", "--ema", "0.5", "--keep-best"]
    paths = [tmp_path / name for name in ("one", "three")]
    for path, ranks in zip(paths, ([], ["--nproc", "3"]), strict=True):
        code, errors = run(*TRAIN, *TINY, *run_length, "--out", str(path), *ranks)
        assert code == 0, errors
    assert last(paths[0]) == last(paths[1])
    for written in ("checkpoints/best.safetensors", "features.safetensors", "samples/step-00000002.png"):
        one, three = ((path / written).read_bytes() for path in paths)
        assert one == three, written
    one, three = (
        {str(file.relative_to(path)) for file in path.rglob("*") if "events" not in str(file)} for path in paths
    )
    assert one == three  # and no rank but the first leaves a file
    results = []
    for path, ranks in zip(paths, ([], ["--nproc", "2"]), strict=True):
        code, errors = run("-m", "metagan_fast", "evaluate", str(path), "--samples", "8", *ranks)
        assert code == 0, errors
        results.append(json.loads((path / "evaluation.json").read_text()))
    assert results[0] == results[1]


def test_an_error_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no run")
    code, errors = run(*TRAIN, *LONG, "--out", str(tmp_path), "--nproc", "2")
    assert code == 2
    assert errors.count("\n") == 1 and "is not a run" in errors, errors


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_ends_the_job_and_is_named(tmp_path: Path, alone: tuple[bytes, bytes], victim: int) -> None:
    path = tmp_path / "run"
    with started(*TRAIN, *LONG, "--out", str(path), "--nproc", "3") as launcher:
        wait_for_checkpoint(path)
        number = ranks_of(launcher)[victim]
        os.kill(number, signal.SIGKILL)
        _, errors = launcher.communicate(timeout=MINUTE)
    assert launcher.returncode == 2
    told = [line for line in errors.splitlines() if f"rank {victim} (process {number})" in line]
    assert len(told) == 1 and "--resume" in told[0], errors
    assert main(["train", "--resume", "--out", str(path), "--deterministic-reduce"]) == 0
    assert last(path) == alone


def test_ctrl_c_ends_all_ranks_with_a_checkpoint(tmp_path: Path, alone: tuple[bytes, bytes]) -> None:
    """The run goes on with another number of ranks."""
    path = tmp_path / "run"
    with started(*TRAIN, *LONG, "--out", str(path), "--nproc", "2") as launcher:
        wait_for_checkpoint(path)
        ranks = ranks_of(launcher)
        launcher.send_signal(signal.SIGINT)
        launcher.communicate(timeout=MINUTE)
        assert launcher.returncode == 130
        assert not any(Path(f"/proc/{number}").exists() for number in ranks)
    step = RunFolder(path).latest()[1]["step"]
    assert 20 <= step < STEPS
    code, errors = run(*TRAIN, "--resume", "--out", str(path), "--nproc", "3", "--deterministic-reduce")
    assert code == 0, errors
    assert last(path) == alone


def restartable(*options: str, path: Path) -> Sequence[str]:
    return ("-m", "torch.distributed.run", *options, *TRAIN, *LONG, "--out", str(path))


def test_torchrun_restarts_a_job_from_its_last_checkpoint(tmp_path: Path, alone: tuple[bytes, bytes]) -> None:
    path = tmp_path / "run"
    options = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    with started(*restartable(*options, path=path)) as launcher:
        wait_for_checkpoint(path)
        os.kill(ranks_of(launcher)[1], signal.SIGKILL)
        _, errors = launcher.communicate(timeout=3 * MINUTE)
    assert launcher.returncode == 0, errors
    assert "rank 1 (process" in errors
    assert last(path) == alone
