"""Batches drawn ahead are those of each meta-step, and errors surface where their batch is asked for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from metagan_fast import TaskBatch
from metagan_fast.cli.train import summary
from metagan_fast.training.prefetch import Prefetcher
from metagan_fast.training.run_folder import RunFolder
from metagan_fast.training.trainer import Outcome

CPU = torch.device("cpu")


def batch_of(step: int) -> TaskBatch:
    return TaskBatch(torch.full((1, 1, 1, 2, 2), step / 100))


def test_batches_are_those_of_the_steps_in_any_order() -> None:
    with Prefetcher(batch_of, 10, CPU) as batches:
        for step in (0, 1, 2, 6, 6, 3, 9):
            assert batches(step).support.equal(batch_of(step).support)
    assert batches.seconds > 0


def test_batches_are_drawn_ahead_once_and_not_beyond_the_end() -> None:
    drawn: list[int] = []
    seen = threading.Event()

    def draw(step: int) -> TaskBatch:
        drawn.append(step)
        if step == 4:
            seen.set()
        return batch_of(step)

    with Prefetcher(draw, 5, CPU) as batches:
        for step in range(3):
            batches(step)
        assert seen.wait(30)  # while meta-step 2 trains
        batches(3), batches(4)
    assert drawn == [0, 1, 2, 3, 4]


def test_an_error_surfaces_with_its_batch() -> None:
    def draw(step: int) -> TaskBatch:
        if step == 2:
            raise ValueError("cannot read the image 2.png")
        return batch_of(step)

    with Prefetcher(draw, 9, CPU) as batches:
        batches(0), batches(1)
        with pytest.raises(ValueError, match=r"2\.png"):
            batches(2)
        assert batches(3).support.equal(batch_of(3).support)


def test_the_thread_ends_with_the_block() -> None:
    def alive() -> bool:
        return any(thread.name.startswith("prefetch") for thread in threading.enumerate())

    with pytest.raises(KeyboardInterrupt), Prefetcher(batch_of, 100, CPU) as batches:
        batches(0)
        assert alive()
        raise KeyboardInterrupt
    assert not alive()


@pytest.mark.parametrize(
    ("interrupted", "head"), [(False, "5 meta-steps done"), (True, "stopped after meta-step 5 of 9")]
)
def test_the_last_line_tells_the_wait_for_images(tmp_path: Path, interrupted: bool, head: str) -> None:
    outcome = Outcome(5, 80.0, interrupted, data_seconds=0.2)
    shown = summary(RunFolder.create(tmp_path / "run"), outcome, 9)
    assert shown.startswith(f"{head}, in 00:01:20, 0.2% of it waiting for images")
