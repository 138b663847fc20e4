"""Ctrl-C at any line of a call leaves a learner as it was before or after, and usable."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from test_interruptions import equal, state

import metagan_fast as mgf
from metagan_fast.metrics import evaluate
from metagan_fast.training.outer_loop import Training
from metagan_fast.training.run_folder import RunFolder
from metagan_fast.training.trainer import Trainer
from networks import tiny_batch, tiny_gan

PACKAGE = str(Path(mgf.__file__).parent)
FEW, MANY = 8, 100  # lines at which a call is interrupted, evenly spaced


def lines_until(call: Callable[[], object], last: int | None = None) -> int:
    """Call, and return how many lines of the package ran; raise KeyboardInterrupt at the `last`, once."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            count += 1
            if count == last:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def interruptions(call: Callable[[], object], points: int, restore: Callable[[], object]) -> int:
    """Interrupt the call at evenly spaced lines, after `restore` each; `restore` checks what the one before left."""
    restore()
    call()
    restore()
    lines, done = lines_until(call), 0
    for last in range(1, lines + 1, max(1, lines // points)):
        restore()
        with pytest.raises(KeyboardInterrupt):
            lines_until(call, last)
        done += 1
    restore()
    return done


def make_learner(executor: str, meta: mgf.learner.algorithms.MetaAlgorithm | None = None) -> mgf.MetaGAN:
    torch.manual_seed(1)
    inner, meta = mgf.InnerLoop(lr=0.05, steps=1), meta or mgf.Reptile(lr=0.01)
    loss = "non-saturating" if meta.second_order else "wgan-gp"  # the engine has no second order of penalties
    return mgf.MetaGAN(*tiny_gan(), latent_dim=6, loss=loss, inner=inner, meta=meta, executor=executor)


points = pytest.mark.parametrize("points", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
executors = pytest.mark.parametrize("executor", ["native", "torch"])


@points
@executors
@pytest.mark.parametrize("meta", [mgf.Reptile(lr=0.01), mgf.MAML(lr=0.01)], ids=["reptile", "maml"])
def test_a_meta_step(executor: str, meta: Any, points: int) -> None:
    learner, batch = make_learner(executor, meta), tiny_batch(tasks=2)
    states = [state(learner)]
    for _ in range(3):
        learner.meta_step(batch)
        states.append(state(learner))
    ends = set()

    def restore() -> None:
        assert equal(state(learner), states[learner.step])
        ends.add(learner.step)
        if learner.step < 3:
            learner.meta_step(batch)  # the learner is usable
            assert equal(state(learner), states[learner.step])
        learner.load_state(*states[1])

    assert interruptions(lambda: learner.meta_step(batch), points, restore) >= points
    assert {1, 2} <= ends


@points
@executors
@pytest.mark.parametrize("kind", ["adapt", "step by step"])
def test_adaptation(executor: str, kind: str, points: int) -> None:
    learner = make_learner(executor)
    images = tiny_batch(tasks=1, query=0).support[0]
    before, expected = state(learner), learner.adapt(images, steps=2).sample(2)

    def call() -> None:
        if kind == "adapt":
            learner.adapt(images, steps=2).sample(2)
        else:
            for adapted in learner.adaptation(images, steps=2):
                learner.sample_tasks(adapted, 2)

    def restore() -> None:
        assert equal(state(learner), before)
        assert torch.equal(learner.adapt(images, steps=2).sample(2), expected)

    assert interruptions(call, points, restore) >= points


@points
@executors
def test_an_evaluation(executor: str, points: int) -> None:
    digits = mgf.tasks.load("digits", split=(0.8, 0.1, 0.1))
    learner = make_learner(executor)
    before = state(learner)

    def call() -> object:
        return evaluate(learner, digits.test, lambda images: images.flatten(1)[:, ::8], shots=2, samples=2)

    expected = call()

    def restore() -> None:
        assert equal(state(learner), before)

    assert interruptions(call, points, restore) >= points
    assert call() == expected


@points
def test_training(points: int, tmp_path: Path) -> None:
    """The trainer itself goes on from where it was interrupted, and the file has the last complete meta-step."""
    digits = mgf.tasks.load("digits", split=(0.6, 0.2, 0.2))
    training = Training(meta_steps=2, tasks=1, shots=2, ema=0.5)
    runs = 0

    def trainer() -> Trainer:
        nonlocal runs
        runs += 1
        return Trainer(make_learner("native"), digits, RunFolder.create(tmp_path / str(runs)), training)

    whole = trainer()
    whole.run()
    expected, averaged = state(whole.learner), state(whole.averaged)
    current = whole

    def restore() -> None:
        nonlocal current
        if current.learner.step:  # interrupted late enough to save
            saved = current.folder.latest()[1]["step"]
            assert saved == current.learner.step
        current.run()
        assert equal(state(current.learner), expected) and equal(state(current.averaged), averaged)
        assert current.folder.latest()[1]["step"] == 2
        current = trainer()

    assert interruptions(lambda: current.run(), points, restore) >= points
