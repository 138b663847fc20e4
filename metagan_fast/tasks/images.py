"""Labelled images in memory, and the conversions of all loaders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .left_out import LeftOut

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images, sorted by class.

    Attributes:
        images: `[n, channels, height, width]` uint8; class after class.
        counts: number of images of each class, in the order of `classes`.
        classes: names, each once.
        groups: the group of each class, or None.
        parts: the part of a split (train, validation, test) to which the data assigns each class, or None.
        left_out: names that the loader skipped.
    """

    images: Pixels
    counts: tuple[int, ...]
    classes: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    left_out: LeftOut = field(default_factory=LeftOut)
    parts: tuple[str, ...] | None = None

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Start of each class in `images`, and the end of the last."""
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)]).astype(np.int64)

    def select(self, names: Iterable[str]) -> ImageSet:
        """Return the classes named, in that order."""
        position = {name: index for index, name in enumerate(self.classes)}
        chosen = [position[name] for name in names]
        offsets = self.offsets
        parts = [self.images[offsets[c] : offsets[c + 1]] for c in chosen]
        return ImageSet(
            images=np.concatenate(parts) if parts else self.images[:0],
            counts=tuple(self.counts[c] for c in chosen),
            classes=tuple(self.classes[c] for c in chosen),
            groups=None if self.groups is None else tuple(self.groups[c] for c in chosen),
            left_out=self.left_out,
            parts=None if self.parts is None else tuple(self.parts[c] for c in chosen),
        )

    def sha256(self, *options: str | bool) -> str:
        """Return a hash of pixels, classes, groups and `options`, in hexadecimal."""
        described = [self.images.shape, self.counts, self.classes, self.groups, options]
        digest = hashlib.sha256(json.dumps(described).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()

    def inverted(self) -> ImageSet:
        """Return the set with black and white exchanged."""
        return replace(self, images=255 - self.images)

    def rotated(self) -> ImageSet:
        """Return the set with each class turned by 90, 180 and 270 degrees as three further classes."""
        turns = [np.rot90(self.images, turn, axes=(2, 3)) for turn in range(4)]
        names = [f"{name}@{90 * turn}" if turn else name for turn in range(4) for name in self.classes]
        return ImageSet(
            images=np.concatenate(turns),
            counts=self.counts * 4,
            classes=tuple(names),
            groups=None if self.groups is None else self.groups * 4,
        )


def gather(
    images: Pixels, labels: NDArray[np.integer], names: Sequence[str], groups: Sequence[str] | None = None
) -> ImageSet:
    """Return `[n, C, H, W]` images as a set sorted by label, with class `names[label]` in group `groups[label]`.

    Labels without images are dropped.
    """
    counts = np.bincount(labels, minlength=len(names))
    kept = np.flatnonzero(counts).tolist()
    return ImageSet(
        images=images[np.argsort(labels, kind="stable")],
        counts=tuple(int(counts[label]) for label in kept),
        classes=tuple(names[label] for label in kept),
        groups=None if groups is None else tuple(groups[label] for label in kept),
    )


def stack(arrays: Sequence[Pixels], name: Callable[[int], str]) -> Pixels:
    """Return `[n, C, H, W]` from images `[C, H, W]`; `name(index)` names one in errors.

    Raises:
        ValueError: images of several sizes.
    """
    sizes = [array.shape[1:] for array in arrays]
    if len(set(sizes)) > 1:
        other = next(index for index, size in enumerate(sizes) if size != sizes[0])
        described = " but ".join(f"{name(i)} is {sizes[i][0]} x {sizes[i][1]}" for i in (0, other))
        raise ValueError(f"{described} (height x width): give an image_size")
    return np.stack(arrays)


def as_channels_first(array: Pixels, source: str) -> Pixels:
    """Return `[n, C, H, W]` from `[n, H, W]`, `[n, H, W, C]` or `[n, C, H, W]` with C 1 or 3.

    Raises:
        ValueError: another layout or dtype; the message names the source.
    """
    if array.dtype != np.uint8:
        raise ValueError(f"{source}: images must be uint8 in 0..255, got {array.dtype}")
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    raise ValueError(
        f"{source}: images must be [n, H, W], or [n, H, W, C] or [n, C, H, W] with C 1 or 3, got {list(array.shape)}"
    )


def to_float(pixels: Tensor) -> Tensor:
    """Return uint8 images, 0 to 255, as float32 in [-1, 1]."""
    return pixels.to(torch.float32).div_(127.5).sub_(1)


def convert(images: Pixels, image_size: tuple[int, int] | None, channels: int | None) -> Pixels:
    """Return `[n, C, H, W]` images in another size or number of channels (None: as they are)."""
    if channels is not None and channels != images.shape[1]:
        images = _with_channels(images, channels)
    if image_size is None or image_size == images.shape[2:]:
        return images
    from PIL import Image

    resized = np.empty((*images.shape[:2], *image_size), np.uint8)
    for source, target in zip(images.reshape(-1, *images.shape[2:]), resized.reshape(-1, *image_size), strict=True):
        target[:] = fit(Image.fromarray(source), image_size)
    return resized


def _with_channels(images: Pixels, channels: int) -> Pixels:
    if channels == 3:
        return np.repeat(images, 3, axis=1)
    weights = np.array([299, 587, 114], np.uint32)  # ITU-R 601 luma, as Pillow's convert("L")
    return ((np.einsum("nchw,c->nhw", images, weights, dtype=np.uint32) + 500) // 1000).astype(np.uint8)[:, None]


def fit(image: Image.Image, image_size: tuple[int, int]) -> Image.Image:
    """Resize to (height, width), antialiased; an image of another aspect ratio is first cropped centrally."""
    from PIL import Image, ImageOps

    height, width = image_size
    return ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)
