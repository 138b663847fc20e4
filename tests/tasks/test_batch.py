"""TaskBatch: accepted input, refused input and its errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from metagan_fast._utils import log
from metagan_fast.tasks import TaskBatch


def images(tasks: int = 2, shots: int = 3, size: int = 4) -> torch.Tensor:
    return torch.linspace(-1, 1, tasks * shots * size * size).reshape(tasks, shots, 1, size, size)


def test_properties() -> None:
    batch = TaskBatch(images(), query=images(shots=5), classes=("a", "b"), first_task=4)
    assert (batch.tasks, batch.shots, batch.query_shots, batch.image_shape) == (2, 3, 5, (1, 4, 4))
    assert TaskBatch(images()).query_shots == 0


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TaskBatch(images()).first_task = 3  # type: ignore[misc]


def test_to_changes_both_tensors_and_keeps_the_rest() -> None:
    batch = TaskBatch(images(), query=images(), classes=("a", "b"), first_task=7).to(dtype=torch.float64)
    assert batch.support.dtype == torch.float64
    assert batch.query is not None and batch.query.dtype == torch.float64
    assert (batch.classes, batch.first_task) == (("a", "b"), 7)
    with pytest.raises(TypeError, match="floating"):
        batch.to(dtype=torch.uint8)


def test_slice_shares_memory_and_keeps_its_place() -> None:
    batch = TaskBatch(images(5), query=images(5), classes=tuple("abcde"), first_task=10)
    part = batch.slice(2, 4)
    assert part.first_task == 12
    assert part.classes == ("c", "d")
    assert part.support.data_ptr() == batch.support[2].data_ptr()
    assert part.query is not None and torch.equal(part.query, images(5)[2:4])
    with pytest.raises(ValueError, match="of 5"):
        batch.slice(3, 6)


@pytest.mark.parametrize(
    ("support", "query", "message"),
    [
        (torch.zeros(3, 1, 4, 4), None, r"unsqueeze\(0\)"),
        (torch.zeros(2, 0, 1, 4, 4), None, "no images"),
        (images(), torch.zeros(2, 0, 1, 4, 4), "query=None"),
        (images(), images(3), "same tasks"),
        (images(), images(size=5), "same tasks and image shape"),
        (images(), images().double(), "share dtype"),
        (images() * 2, None, "clamp"),
        ((images() + 1) * 127.5, None, r"127\.5"),
        ((images() + 1) / 2, None, None),
    ],
)
def test_bad_images_are_refused(support: torch.Tensor, query: torch.Tensor | None, message: str | None) -> None:
    if message is None:
        TaskBatch(support, query)
    else:
        with pytest.raises(ValueError, match=message) as caught:
            TaskBatch(support, query)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", ["support", "query"])
def test_a_value_that_is_not_finite_is_located(bad: float, which: str) -> None:
    tensors = {"support": images(), "query": images()}
    tensors[which][1, 2, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=f"{which} image 2 of task 1 .*NaN or infinite"):
        TaskBatch(**tensors)


def test_a_value_out_of_range_is_located() -> None:
    support = images()
    support[1, 0, 0, 3, 3] = 1.5
    with pytest.raises(ValueError, match="image 0 of task 1"):
        TaskBatch(support)


def test_types() -> None:
    with pytest.raises(TypeError, match=r"127\.5"):
        TaskBatch(torch.zeros(1, 1, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(TypeError, match="tensor"):
        TaskBatch([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one class name"):
        TaskBatch(images(), classes=("a",))
    with pytest.raises(ValueError, match="first_task"):
        TaskBatch(images(), first_task=-1)


def test_arrays_become_tensors_of_their_own() -> None:
    support, query = images().numpy(), images(shots=1).numpy()
    batch = TaskBatch(support, query)  # type: ignore[arg-type]
    assert torch.equal(batch.support, images()) and batch.query is not None
    assert batch.query.dtype == torch.float32
    support[:] = 0
    assert torch.equal(batch.support, images())
    assert TaskBatch(support.astype(np.float64)).support.dtype == torch.float64  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"query must be floating, got uint8; bytes: images / 127\.5 - 1"):
        TaskBatch(images(), query.astype(np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="share dtype"):
        TaskBatch(images(), query.astype(np.float64))  # type: ignore[arg-type]


def test_images_from_0_to_1_are_warned_of_once(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr(log, "_said", set())
    TaskBatch(images())
    TaskBatch(torch.zeros(1, 2, 1, 4, 4))  # an empty image
    assert not caplog.records
    for _ in range(2):
        TaskBatch((images() + 1) / 2)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "lie in [0, 1], expected [-1, 1]" in caplog.text and "images * 2 - 1" in caplog.text
