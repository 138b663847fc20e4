"""Faults other than those of the disk, each played in an empty folder: number of injections, and outcome."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from metagan_fast.benchmarks.faults import small_run
from metagan_fast.benchmarks.faults.injection import CLOCK, KILLED, NO_LINKS, NO_SHARED_MEMORY, Ending, Fault, attempt
from metagan_fast.benchmarks.faults.saves import ERROR, Lost

import metagan_fast as mgf
from metagan_fast import models
from metagan_fast.noise import Noise
from metagan_fast.tasks import TaskBatch
from metagan_fast.tasks.data_sets import parallel
from metagan_fast.training import replay
from metagan_fast.training.dropped_tasks import DroppedTasks
from metagan_fast.training.outer_loop import Training
from metagan_fast.training.run_folder import RunFolder

_STEPS = 4
_QUICK = ("--no-keep-best",)


class _Runs:
    """Runs in a folder, of the same data and settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data.npz"
        small_run.write_data(self.data)

    def train(self, name: str, *, fault: Fault = KILLED, at: int = 0, resume: bool = False) -> Ending:
        """Train in a child; `resume` goes on."""
        out, options = self.folder / name, () if resume else _QUICK
        return attempt(lambda: small_run.train(self.data, out, _STEPS, options, resume=resume), out, fault, at)

    def require_equal(self, name: str, other: str = "straight") -> None:
        """Raise Lost unless two runs ended with the same bytes."""
        if small_run.state(self.folder / name) != small_run.state(self.folder / other):
            raise Lost("the run ends with other bytes")


def _require(condition: object, message: str) -> None:
    if not condition:
        raise Lost(message)


def damaged_checkpoints(folder: Path) -> tuple[int, str]:
    """Damage the newest checkpoint in several ways: resuming warns, and goes on from the one before."""
    runs = _Runs(folder)
    runs.train("straight")
    newest = folder / "straight" / "checkpoints" / f"step-{_STEPS:08d}.safetensors"
    whole = newest.read_bytes()
    damages = {
        "empty": b"",
        **{f"first {part} bytes": whole[:part] for part in (7, 8, 100, len(whole) // 2, len(whole) - 1)},
        "another program's": b"PK\x03\x04" + bytes(1000),
    }
    for name, data in damages.items():
        shutil.rmtree(folder / "run", ignore_errors=True)
        shutil.copytree(folder / "straight", folder / "run", symlinks=True)
        (folder / "run" / "checkpoints" / newest.name).write_bytes(data)
        ending = runs.train("run", resume=True)
        _require(ending.code == 0 and "going back to the one before" in ending.output, f"{name}: {ending.output}")
        runs.require_equal("run")
    return len(damages), "a warning names it; goes on from the checkpoint before, same bytes"


def no_links_and_locks(folder: Path) -> tuple[int, str]:
    """Train where links and locks fail, as on some network file systems."""
    runs = _Runs(folder)
    runs.train("straight")
    ending = runs.train("run", fault=NO_LINKS, at=1)
    _require(ending.code == 0, ending.output)
    runs.require_equal("run")
    return ending.count, "trains with the same bytes"


def left_lock(folder: Path) -> tuple[int, str]:
    """Resume a run whose lock a dead process left, with and without file locks, and one of another machine."""
    runs = _Runs(folder)
    runs.train("straight")
    child = os.fork()  # whose number is free again
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    for fault, at in ((KILLED, 0), (NO_LINKS, 1)):
        (folder / "straight" / ".lock").write_text(f"{child} {socket.gethostname()}")
        ending = runs.train("straight", fault=fault, at=at, resume=True)
        _require(ending.code == 0, ending.output)
    (folder / "straight" / ".lock").write_text("7 elsewhere")
    ending = runs.train("straight", fault=NO_LINKS, at=1, resume=True)
    _require(ending.code == ERROR and "process 7 of elsewhere" in ending.output, ending.output)
    return 3, "trains; of another machine, without file locks: an error that names it"


def jumping_clock(folder: Path) -> tuple[int, str]:
    """Train while the wall clock jumps by days: no rate or time is negative."""
    runs = _Runs(folder)
    runs.train("straight")
    ending = runs.train("run", fault=CLOCK)
    _require(ending.code == 0, ending.output)
    _require(not re.search(r"-\d+(\.\d+)? a second|-\d+:\d\d|[1-9]\d:\d\d:\d\d", ending.output), ending.output)
    runs.require_equal("run")
    return 1, "trains with the same bytes; times are the monotonic clock's"


def stop_signals(folder: Path) -> tuple[int, str]:
    """Stop by signals in each meta-step: a checkpoint, the signal's exit code, and the same bytes after resuming."""
    runs = _Runs(folder)
    runs.train("straight")
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for number, step in itertools.product(numbers, range(_STEPS)):
        shutil.rmtree(folder / "run", ignore_errors=True)

        def stopped(number: int = number, step: int = step) -> int:
            whole = mgf.MetaGAN.meta_step

            def meta_step(learner: mgf.MetaGAN, batch: TaskBatch) -> dict[str, float]:
                if learner.step == step:
                    signal.raise_signal(number)
                return whole(learner, batch)

            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the command may run under nohup
            mgf.MetaGAN.meta_step = meta_step  # type: ignore[method-assign, assignment]
            return small_run.train(runs.data, folder / "run", _STEPS, _QUICK)

        ending = attempt(stopped, folder / "run")
        # In the last meta-step training is done, but for a validation that is owed.
        _require(ending.code == 128 + number, f"code {ending.code} after signal {number}: {ending.output}")
        _require(RunFolder(folder / "run").newest() == step + 1, "the meta-step is not saved")
        ending = runs.train("run", resume=True)
        _require(ending.code == 0, ending.output)
        runs.require_equal("run")
    return len(numbers) * _STEPS, "saves, exits with 128 + the signal; same bytes after --resume"


_ALGORITHMS: dict[str, dict[str, Any]] = {
    "Reptile": {"meta": mgf.Reptile(lr=0.1)},
    "serial Reptile": {"meta": mgf.Reptile(optimizer="sgd", lr=0.5, serial=True)},
    "FOMAML": {"loss": "non-saturating", "meta": mgf.FOMAML(lr=1e-2)},
    "MAML": {"loss": "non-saturating", "meta": mgf.MAML(lr=1e-2)},
}


class _Poisoned(mgf.MetaGAN):
    """Learner that draws infinite latents for one task."""

    def _noise(self, batch: TaskBatch, noise: Noise | None, *others: Any) -> Noise:
        drawn = super()._noise(batch, noise, *others)
        if noise is None and batch.first_task <= 1 < batch.first_task + batch.tasks:
            drawn.generator_latents[:, 1 - batch.first_task] = float("inf")
        return drawn


def _learner(kind: type[mgf.MetaGAN], **settings: Any) -> mgf.MetaGAN:
    torch.manual_seed(0)
    networks = models.mlp((1, 4, 4), latent_dim=3, hidden=(5,))
    return kind(*networks, latent_dim=3, inner=mgf.InnerLoop(steps=2, lr=0.05), **settings)


def diverging_task(folder: Path) -> tuple[int, str]:
    """Let one task of a meta-step diverge: the result is that of the others; too many end the run, to be replayed."""
    images = torch.rand(4, 4, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch, kept = TaskBatch(images[:, :2], images[:, 2:]), [0, 2, 3]
    cases = list(itertools.product(_ALGORITHMS.items(), ("native", "torch")))
    for (name, settings), executor in cases:
        learner, expected = (_learner(kind, executor=executor, **settings) for kind in (_Poisoned, mgf.MetaGAN))
        noise = expected.draw_noise(batch)
        DroppedTasks(folder / "replay").train_on(Training(1), learner, batch, {})
        expected.meta_step(batch.take(kept), noise.take(kept))
        tensors, wanted = learner.state()[0], expected.state()[0]
        _require(all(torch.equal(tensors[key], wanted[key]) for key in wanted), f"{name}: another result")
        learner = _learner(_Poisoned, executor=executor, **settings)
        try:
            DroppedTasks(folder / "replay").train_on(Training(1, max_dropped=0), learner, batch, {})
        except FloatingPointError:
            again = _learner(mgf.MetaGAN, executor=executor, **settings)
            (found,) = replay.load(folder / "replay", again).divergences(again)
            _require((found.task, found.inner_step) == (1, 1), f"{name}: the replay finds {found}")
        else:
            raise Lost(f"{name}: the run does not end")
    return len(cases), "left out of the mean, same bytes as without it; after max_dropped a replay names the step"


def _square(number: int) -> int:
    return number * number


def full_shared_memory(folder: Path) -> tuple[int, str]:
    """Render in parallel while /dev/shm is full, and train."""
    shown: list[str] = []

    def work() -> int:
        done = list(parallel.each(_square, range(5), "squares", lambda stage, done, total: shown.append(stage)))
        return 0 if done == [0, 1, 4, 9, 16] else 1

    ending = attempt(work, folder, NO_SHARED_MEMORY, 1)
    _require(ending.code == 0, ending.output)
    runs = _Runs(folder)
    runs.train("straight")
    _require(runs.train("run", fault=NO_SHARED_MEMORY, at=1).code == 0, "training fails")
    runs.require_equal("run")
    return 2, "one process renders all; trains with the same bytes"


Scene = Callable[[Path], tuple[int, str]]

SCENES: tuple[tuple[str, str, Scene], ...] = (
    ("damaged checkpoint", "the newest of a run", damaged_checkpoints),
    (NO_LINKS.name, "train", no_links_and_locks),
    ("lock of a dead process", "train --resume", left_lock),
    (CLOCK.name, "train", jumping_clock),
    ("SIGTERM, Ctrl-C, hang-up", "each meta-step", stop_signals),
    ("NaN in one task", "a meta-step, both executors", diverging_task),
    (NO_SHARED_MEMORY.name, "data get, train", full_shared_memory),
)
