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
    """Labelled images; those of a class lie together.

    Attributes:
        images: `[n, channels, height, width]` uint8; may be a memory map, and hold other images too.
        counts: number of images of each class, in the order of `classes`.
        classes: names, each once.
        groups: the group of each class, or None.
        parts: the part of a split (train, validation, test) to which the data assigns each class, or None.
        left_out: names that the loader skipped.
        starts: position in `images` of the first image of each class; None: class after class, and no others.
    """

    images: Pixels
    counts: tuple[int, ...]
    classes: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    left_out: LeftOut = field(default_factory=LeftOut)
    parts: tuple[str, ...] | None = None
    starts: NDArray[np.int64] | None = None

    @property
    def first_images(self) -> NDArray[np.int64]:
        """Position in `images` of the first image of each class."""
        if self.starts is not None:
            return self.starts
        return np.cumsum((0, *self.counts[:-1]), dtype=np.int64)[: len(self.counts)]

    def of_class(self, index: int) -> Pixels:
        """Return the images of a class, without a copy."""
        start = self.first_images[index]
        return self.images[start : start + self.counts[index]]

    def select(self, names: Iterable[str]) -> ImageSet:
        """Return the classes named, in that order; they share the images."""
        position = {name: index for index, name in enumerate(self.classes)}
        chosen = [position[name] for name in names]
        return ImageSet(
            images=self.images,
            counts=tuple(self.counts[c] for c in chosen),
            classes=tuple(self.classes[c] for c in chosen),
            groups=None if self.groups is None else tuple(self.groups[c] for c in chosen),
            left_out=self.left_out,
            parts=None if self.parts is None else tuple(self.parts[c] for c in chosen),
            starts=self.first_images[chosen],
        )

    def packed(self) -> ImageSet:
        """Return the set with its own images only, class after class; a copy if there are others."""
        if self.starts is None:
            return self
        own = [self.images[start : start + count] for start, count in zip(self.starts, self.counts, strict=True)]
        return replace(self, images=np.concatenate(own) if own else self.images[:0], starts=None)

    def sha256(self, *options: str | bool) -> str:
        """Return a hash of pixels, classes, groups and `options`, in hexadecimal."""
        images = self.packed().images
        described = [images.shape, self.counts, self.classes, self.groups, options]
        digest = hashlib.sha256(json.dumps(described).encode())
        digest.update(np.ascontiguousarray(images).data)
        return digest.hexdigest()

    def inverted(self) -> ImageSet:
        """Return the set with black and white exchanged."""
        return replace(self, images=np.asarray(255 - self.images))

    def rotated(self) -> ImageSet:
        """Return the set with each class turned by 90, 180 and 270 degrees as three further classes."""
        images = self.packed().images
        turns = [np.rot90(images, turn, axes=(2, 3)) for turn in range(4)]
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
        raise several_sizes((name(0), sizes[0]), (name(other), sizes[other]))
    return np.stack(arrays)


def several_sizes(*found: tuple[str, tuple[int, ...]]) -> ValueError:
    """Return the error of images, each with its name and (height, width), of several sizes."""
    described = " but ".join(f"{name} is {height} x {width}" for name, (height, width) in found)
    return ValueError(f"{described} (height x width): give an image_size")


def as_channels_first(array: Pixels, source: str) -> Pixels:
    """Return `[n, C, H, W]` from `[n, H, W]`, `[n, H, W, C]` or `[n, C, H, W]` with C 1 or 3.

    Raises:
        ValueError: another layout or dtype; the message names the source.
    """
    if array.dtype != np.uint8:
        raise ValueError(f"{source}: images must be uint8 in 0..255, got {array.dtype!s:.100}")
    if array.ndim > 2 and 0 in array.shape[1:]:
        raise ValueError(f"{source}: expected images with pixels, got {list(array.shape)}")
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
