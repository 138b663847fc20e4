"""Data sets in memory: images with labels, and PyTorch's map-style data sets."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .arrays import PixelValues, read_images, reason
from .images import ImageSet
from .labels import Label, arranged, as_label, check_one_type, one_an_image
from .load import Size, Tasks, prepare
from .split import Split

_logger = logging.getLogger(__name__)


def from_arrays(
    images: NDArray[Any] | Tensor | Sequence[Any],
    labels: NDArray[Any] | Tensor | Sequence[Any],
    groups: NDArray[Any] | Tensor | Sequence[Any] | Mapping[Any, Any] | None = None,
    *,
    value_range: tuple[float, float] | None = None,
    name: str = "arrays",
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    invert: bool = False,
    seed: int = 0,
    split: Split | None = None,
    split_by: str | None = None,
    rotations: bool = False,
    min_images: int = 1,
) -> Tasks:
    """Make distributions of tasks from images and labels in memory; each label is a class.

    Args:
        images: an array or tensor `[n, H, W]`, `[n, H, W, C]` or `[n, C, H, W]` with C 1 or 3; or a list of arrays
            or tensors `[H, W]`, `[H, W, C]` or `[C, H, W]` and PIL images, of several sizes if `image_size` is
            given. Values: uint8 in 0..255, bool, or floats, which are in [-1, 1] where any is negative and else in
            [0, 1]; a list's first float image decides. They are kept as uint8.
        labels: `[n]` integers or strings.
        groups: of the classes: a mapping of label to group, or `[n]` integers or strings, one for each image, equal
            within a class.
        value_range: (black, white) of arrays and tensors with other values, or of another dtype: (0, 1) for masks,
            (0, 65535) for uint16, (-1, 1) where the floats seen first are not negative.
        name: of the data, for log lines, errors and records.
        image_size, channels, invert, seed, split, split_by, rotations, min_images: as for `load`. A `split_record()` of
            data in memory holds their `sha256`, and fits only the same images, labels and options.

    Returns:
        Tasks as those of `load`, with a hash of the data as `.sha256`. Integer labels are sorted as numbers.

    Raises:
        ValueError: images, labels or groups that do not fit; the message names the image. Else as `load`.

    Example:
        >>> import numpy as np
        >>> from metagan_fast import tasks
        >>> images = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
        >>> labels = np.arange(60) % 10
        >>> own = tasks.from_arrays(images, labels, image_size=16)
        >>> own.image_shape, len(own.train.classes), own.train.sample(tasks=2, shots=4).support.shape
        ((1, 16, 16), 7, torch.Size([2, 4, 1, 16, 16]))
        >>> vowels = tasks.from_arrays([image / 255 for image in images], ["a", "b", "c", "d", "e"] * 12,
        ...                            groups={"a": "vowel", "e": "vowel", "b": "other", "c": "other", "d": "other"},
        ...                            split={"test": ["e"]})
        >>> vowels.train.classes, vowels.train.groups
        (('a', 'b', 'c', 'd'), ('vowel', 'other', 'other', 'other'))
    """

    def read(size: Size, channels: int | None) -> ImageSet:
        if not isinstance(images, Sized) or isinstance(images, (str, bytes, Mapping)):
            raise ValueError(
                f"{name}: expected images as an array, a tensor or a list, got a value of type {type(images).__name__}"
            )
        values = PixelValues(value_range)
        if isinstance(images, Tensor) or (isinstance(images, np.ndarray) and images.dtype != object):
            if images.ndim not in (3, 4):
                raise ValueError(
                    f"{name}: images must be [n, H, W], or [n, H, W, C] or [n, C, H, W] with C 1 or 3, "
                    f"got {list(images.shape)}"
                )
            values.see(images)
        names = one_an_image("labels", labels, len(images), name)
        pixels = read_images(images, values, size, channels, name, "image")
        return arranged(pixels, names, groups, name)

    return prepare(
        name,
        read,
        image_size=image_size,
        channels=channels,
        invert=invert,
        seed=seed,
        split=split,
        split_by=split_by,
        rotations=rotations,
        min_images=min_images,
        in_memory=True,
    )


def from_dataset(
    dataset: Any,
    groups: Mapping[Any, Any] | Sequence[Any] | NDArray[Any] | Tensor | None = None,
    *,
    image_column: str = "image",
    label_column: str = "label",
    group_column: str | None = None,
    value_range: tuple[float, float] | None = None,
    name: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    invert: bool = False,
    seed: int = 0,
    split: Split | None = None,
    split_by: str | None = None,
    rotations: bool = False,
    min_images: int = 1,
) -> Tasks:
    """Make distributions of tasks from a map-style data set: torchvision's, Hugging Face's, a list of pairs.

    Items are (image, label, ...), or mappings with a column of each. They are read once, in order, in this process,
    transforms included, and kept as uint8; a log line (INFO) appears every ten seconds.

    Args:
        dataset: has `len(dataset)` and `dataset[index]`. Images are those of a list for `from_arrays`; labels are
            integers or strings. Classes are named by `.classes` (torchvision, without a target_transform) or
            `.features[label_column].names` (Hugging Face), which a `Subset` takes from its data set; without
            distinct names, by their labels.
        groups: as for `from_arrays`, with the classes' names as keys of a mapping.
        image_column, label_column: names of the columns in items that are mappings.
        group_column: column with the group of each item, in place of `groups`.
        value_range: as for `from_arrays`: (-1, 1) for images normalized with mean and deviation 0.5, if the first has
            nothing darker than mid-grey.
        name: of the data, for log lines, errors and records; None for the type's name.
        image_size, channels, invert, seed, split, split_by, rotations, min_images: as for `load`.

    Returns:
        Tasks as those of `from_arrays`.

    Raises:
        ValueError: an item that cannot be read or used; the message has its index. Else as `from_arrays`.

    Example:
        >>> import torch
        >>> from metagan_fast import tasks
        >>> pixels, labels = torch.rand(40, 3, 16, 16), torch.arange(40) % 8
        >>> own = tasks.from_dataset(torch.utils.data.TensorDataset(pixels, labels), min_images=5)
        >>> own.name, own.image_shape, len(own.train.classes)
        ('TensorDataset', (3, 16, 16), 5)
    """
    name = type(dataset).__name__ if name is None else name

    def read(size: Size, channels: int | None) -> ImageSet:
        items = _Items(dataset, name, (image_column, label_column, group_column))
        if group_column is not None and groups is not None:
            raise ValueError(f"{name}: expected groups or group_column, got both")
        pixels = read_images(items, PixelValues(value_range), size, channels, name, "item")
        labels = _named(items.labels, _class_names(dataset, label_column, name), name)
        return arranged(pixels, labels, groups if group_column is None else items.groups, name)

    return prepare(
        name,
        read,
        image_size=image_size,
        channels=channels,
        invert=invert,
        seed=seed,
        split=split,
        split_by=split_by,
        rotations=rotations,
        min_images=min_images,
        in_memory=True,
    )


class _Items:
    """Images of a map-style data set, one pass; it leaves labels and groups in lists."""

    def __init__(self, dataset: Any, name: str, columns: tuple[str, str, str | None]) -> None:
        if isinstance(dataset, Mapping):
            keys = ", ".join(map(str, dataset))
            raise ValueError(f"{name}: expected one data set, got a mapping of {keys}: pass one of them")
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            loaded = hasattr(dataset, "dataset") and hasattr(dataset, "__len__")
            hint = "pass its .dataset" if loaded else "pass list(dataset) if it is finite"
            raise ValueError(f"{name}: expected a map-style data set, with len(dataset) and dataset[index]; {hint}")
        self._dataset = dataset
        self._name = name
        self._columns = columns
        self.labels: list[Label] = []
        self.groups: list[Any] = []

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self)):
            try:
                image, label, group = self._parts(self._dataset[index])
                self.labels.append(as_label(label))
            except Exception as error:  # a data set may raise any kind
                raise ValueError(f"{self._name}: cannot read item {index}: {reason(error)}") from error
            self.groups.append(group)
            yield image

    def _parts(self, item: Any) -> tuple[Any, Any, Any]:
        image, label, group = self._columns
        if isinstance(item, Mapping):
            options = {"image_column": image, "label_column": label, "group_column": group}
            for option, column in options.items():
                if column is not None and column not in item:
                    columns = ", ".join(map(str, item))
                    raise ValueError(f"expected a column {column!r}, found {columns}: pass {option}")
            return item[image], item[label], item[group] if group is not None else None
        if group is not None:
            raise ValueError(f"expected a mapping with the column {group!r}, got a value of type {type(item).__name__}")
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise ValueError(
                f"expected (image, label) or a mapping of columns, got a value of type {type(item).__name__}"
            )
        return item[0], item[1], None


def _class_names(dataset: Any, label_column: str, name: str) -> list[str] | None:
    """Return the names of a data set's integer labels, or None."""
    while not hasattr(dataset, "classes") and not hasattr(dataset, "features") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset  # of a Subset
    if isinstance(features := getattr(dataset, "features", None), Mapping):
        names = getattr(features.get(label_column), "names", None)
    else:
        names = None if getattr(dataset, "target_transform", None) else getattr(dataset, "classes", None)
    if not isinstance(names, (list, tuple)):
        return None
    if not all(isinstance(each, str) for each in names) or len(set(names)) < len(names):
        _logger.warning("%s: the names of its classes are no distinct strings; labels name the classes", name)
        return None
    return [str(each) for each in names]


def _named(labels: list[Label], names: list[str] | None, name: str) -> list[Label]:
    """Return the names of labels, which are integers or strings."""
    check_one_type("labels", labels, name)
    if names is None or not labels or isinstance(labels[0], str):
        return labels
    named: list[Label] = []
    for index, label in enumerate(labels):
        if not 0 <= int(label) < len(names):
            raise ValueError(f"{name}: item {index} has the label {label}, but there are {len(names)} names of classes")
        named.append(names[int(label)])
    return named
