"""Batches of tasks, the input of a meta-step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._utils.coerce import convert, count
from .._utils.log import log_once
from .._utils.tensors import ordinary

logger = logging.getLogger(__name__)

_RANGE_TOLERANCE = 1e-3  # interpolated or bf16 images may overshoot [-1, 1] by a rounding


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """Images of several tasks.

    Attributes:
        support: `[tasks, shots, channels, height, width]`, floating, in [-1, 1]; the images that adapt the GAN.
            NumPy arrays become tensors.
        query: the same layout, dtype and device, any number of shots, or None; the images that judge the adapted GAN.
        classes: one name a task, or None.
        first_task: index of the first task in its meta-batch. Slices keep the index, so the noise of a task does not
            depend on how the meta-batch is split.

    Raises:
        TypeError: the images are not floating tensors or arrays.
        ValueError: wrong rank, empty, disagreeing shapes, a value that is not finite or lies outside [-1, 1];
            the message names the task and the image.

    Example:
        >>> import torch
        >>> from metagan_fast import TaskBatch
        >>> images = torch.rand(3, 6, 1, 8, 8) * 2 - 1  # three tasks of six images
        >>> batch = TaskBatch(support=images[:, :4], query=images[:, 4:])
        >>> batch.tasks, batch.shots, batch.query_shots, batch.image_shape
        (3, 4, 2, (1, 8, 8))
        >>> batch.slice(1, 3).first_task
        1
    """

    support: Tensor
    query: Tensor | None = None
    classes: tuple[str, ...] | None = None
    first_task: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "support", as_tensor("support", self.support))
        _check_images("support", self.support)
        if self.query is not None:
            object.__setattr__(self, "query", as_tensor("query", self.query))
            _check_images("query", self.query)
            _check_agreement(self.support, self.query)
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
            if len(self.classes) != self.tasks:
                raise ValueError(f"expected one class name for each of {self.tasks} tasks, got {self.classes}")
        convert(self, count, "first_task")

    def _repr_html_(self) -> str:
        """Show the first images of the first tasks in a notebook."""
        from .showing import batch_html  # slow to import

        return batch_html(self)

    def _repr_png_(self) -> bytes | None:
        from .showing import batch_png

        return batch_png(self)

    @classmethod
    def trusted(cls, support: Tensor, query: Tensor | None) -> TaskBatch:
        """Build a batch of checked images without checking again: on a GPU each check waits for the device."""
        batch = object.__new__(cls)
        for field, value in zip(fields(cls), (support, query, None, 0), strict=True):
            object.__setattr__(batch, field.name, value)
        return batch

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return self.support.shape[0]

    @property
    def shots(self) -> int:
        """Number of support images of a task."""
        return self.support.shape[1]

    @property
    def query_shots(self) -> int:
        """Number of query images of a task, 0 without query."""
        return 0 if self.query is None else self.query.shape[1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of an image, (channels, height, width)."""
        channels, height, width = self.support.shape[2:]
        return channels, height, width

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TaskBatch:
        """Return the batch on another device, in another floating dtype, or both, usable by autograd."""
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"images are floating tensors, got dtype {dtype}")
        overlaps = device is not None and torch.device(device).type == "cuda"  # where the images are in pinned memory

        def moved(images: Tensor) -> Tensor:
            return ordinary(images.to(device=device, dtype=dtype, non_blocking=overlaps))

        return self._with(support=moved(self.support), query=None if self.query is None else moved(self.query))

    def slice(self, start: int, stop: int) -> TaskBatch:
        """Return tasks `start` up to `stop` (views of the images) with their place in the meta-batch."""
        start, stop = count("start", start), count("stop", stop)
        if not 0 <= start < stop <= self.tasks:
            raise ValueError(f"cannot take tasks {start} to {stop} of {self.tasks}")
        return self._with(
            support=self.support[start:stop],
            query=None if self.query is None else self.query[start:stop],
            classes=None if self.classes is None else self.classes[start:stop],
            first_task=self.first_task + start,
        )

    def take(self, tasks: Sequence[int]) -> TaskBatch:
        """Return a copy of some tasks, whose noise is to be given: their indices are no longer a range."""
        chosen = torch.tensor(tasks, device=self.support.device)
        return self._with(
            support=self.support[chosen],
            query=None if self.query is None else self.query[chosen],
            classes=None if self.classes is None else tuple(self.classes[task] for task in tasks),
        )

    def _with(self, **changes: object) -> TaskBatch:
        """Copy with changes, without checking values again: on a GPU each check waits for the device."""
        copy = object.__new__(TaskBatch)
        for field in fields(self):
            object.__setattr__(copy, field.name, changes.get(field.name, getattr(self, field.name)))
        return copy


@dataclass(frozen=True)
class BatchSizes:
    """Sizes of a batch of tasks, without images."""

    tasks: int
    shots: int
    query_shots: int = 0


def as_tensor(name: str, images: Tensor | NDArray[Any]) -> Tensor:
    """Return images as a tensor; copy a NumPy array in float64 or float32, raise TypeError for other types."""
    if isinstance(images, Tensor):
        return images
    if not isinstance(images, np.ndarray):
        raise TypeError(f"{name} must be a tensor or a NumPy array, got {type(images).__name__}")
    if images.dtype.kind != "f":
        raise TypeError(f"{name} must be floating, got {images.dtype}; bytes: images / 127.5 - 1")
    return torch.from_numpy(np.array(images, np.float64 if images.dtype.itemsize >= 8 else np.float32, order="C"))


def one_task(images: Tensor | NDArray[Any]) -> Tensor:
    """Return one task's images `[shots, channels, height, width]` as `[1, shots, channels, height, width]`."""
    images = as_tensor("images", images)
    if images.ndim != 4:
        raise ValueError(
            f"expected images [shots, channels, height, width], got {list(images.shape)}; add a dimension: "
            "images.unsqueeze(0) for one image, images.unsqueeze(1) for grey ones without channels"
        )
    return images.unsqueeze(0)


def _check_images(name: str, images: Tensor) -> None:
    if images.ndim != 5:
        raise ValueError(
            f"{name} must be [tasks, shots, channels, height, width], got {list(images.shape)}; "
            "add a dimension with unsqueeze(0) if it holds one task"
        )
    if 0 in images.shape:
        hint = "; pass query=None for no query images" if name == "query" else ""
        raise ValueError(f"{name} has no images: {list(images.shape)}{hint}")
    if not images.is_floating_point():
        raise TypeError(f"{name} must be floating, got {images.dtype}; bytes: images / 127.5 - 1")
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()  # NaN if any value is NaN
    if not (low >= -1 - _RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):
        raise ValueError(_describe_bad_value(name, images.detach(), low, high))
    if 0 <= low < high:
        message = "all images of a batch lie in [0, 1], expected [-1, 1]; unless they are that bright: images * 2 - 1"
        log_once(logger, logging.WARNING, message)


def _describe_bad_value(name: str, images: Tensor, low: float, high: float) -> str:
    per_image = images.flatten(2)
    finite = per_image.isfinite().all(-1)
    if not finite.all():
        task, image = (~finite).nonzero()[0].tolist()
        return f"{name} image {image} of task {task} has a value that is NaN or infinite"
    task, image = (per_image.abs().amax(-1) > 1 + _RANGE_TOLERANCE).nonzero()[0].tolist()
    rescale = "images / 127.5 - 1" if low >= 0 else "images.clamp(-1, 1) or rescale them"
    return (
        f"{name} must lie in [-1, 1], but image {image} of task {task} is outside "
        f"(all values lie in [{low:g}, {high:g}]); use {rescale}"
    )


def _check_agreement(support: Tensor, query: Tensor) -> None:
    if support.shape[0] != query.shape[0] or support.shape[2:] != query.shape[2:]:
        raise ValueError(
            "support and query must have the same tasks and image shape, "
            f"got {list(support.shape)} and {list(query.shape)}"
        )
    if support.dtype != query.dtype or support.device != query.device:
        raise ValueError(
            f"support and query must share dtype and device, got {support.dtype} on {support.device} "
            f"and {query.dtype} on {query.device}"
        )
