"""A tree of folders of images: a leaf folder is a class, its parent a group."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metagan_fast.tasks.images import ImageSet, Pixels, fit

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")


def recognises(path: Path) -> bool:
    """Tell whether this is a folder."""
    return path.is_dir()


Resize = Callable[["Image.Image", tuple[int, int]], "Image.Image"]
"""How an image is brought to (height, width)."""


def read(
    path: Path, image_size: tuple[int, int] | None = None, channels: int | None = None, resize: Resize = fit
) -> ImageSet:
    """Read a tree of class folders; torchvision's ImageFolder, FIGR-8 and Omniglot are such trees.

    A class is called by its path below `path`. Where all classes lie directly in `path` there are no groups.
    Names that begin with "." or "__" and files that are no images are passed over.

    Args:
        path: the tree.
        image_size: (height, width); None if all images have one size already.
        channels: 1 or 3; None for 1 if all images are grey, else 3.
        resize: how an image is brought to that size.

    Raises:
        ValueError: no class folder, a folder without images, images beside folders, an image that cannot be
            read, images of several sizes; the message names the file or folder.
    """
    leaves = _leaves(path)
    files = [file for _, files in leaves for file in files]
    images = read_files(files, image_size, channels, resize)
    grouped = any(folder.parent != path for folder, _ in leaves)
    return ImageSet(
        images=images,
        counts=tuple(len(files) for _, files in leaves),
        classes=tuple(folder.relative_to(path).as_posix() for folder, _ in leaves),
        groups=tuple(folder.parent.relative_to(path).as_posix() for folder, _ in leaves) if grouped else None,
    )


def image_files(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted by name."""
    return sorted(path for path in _visible(folder) if path.suffix.lower() in SUFFIXES and path.is_file())


def read_files(
    files: Sequence[Path], image_size: tuple[int, int] | None, channels: int | None, resize: Resize = fit
) -> Pixels:
    """Return `[n, C, H, W]`, all in one size and number of channels; see `read`."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        if channels is None:
            channels = 1 if all(pool.map(_is_grey, files)) else 3
        arrays = list(pool.map(lambda file: _read_file(file, image_size, channels, resize), files))
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        other = next(i for i, array in enumerate(arrays) if array.shape != arrays[0].shape)
        sizes = " but ".join(f"{files[i]} is {arrays[i].shape[1]} x {arrays[i].shape[2]}" for i in (0, other))
        raise ValueError(f"{sizes} (height x width): give an image_size")
    return np.stack(arrays)


def _visible(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith((".", "__"))]
    except OSError as error:
        raise ValueError(f"cannot read the folder {folder}: {error.strerror}") from None


def _leaves(root: Path) -> list[tuple[Path, list[Path]]]:
    """Return the class folders below `root` with their images, sorted by path."""
    if not any(path.is_dir() for path in _visible(root)):
        found = "images" if image_files(root) else "nothing to read"
        raise ValueError(f"expected a folder for each class in {root}, found {found}")
    leaves: list[tuple[Path, list[Path]]] = []
    pending = [root]
    while pending:
        folder = pending.pop()
        below = sorted((path for path in _visible(folder) if path.is_dir()), reverse=True)
        files = image_files(folder)
        if below and files:
            raise ValueError(
                f"{folder} holds images ({files[0].name}) and folders ({below[-1].name}): keep only one kind"
            )
        if not below and not files:
            raise ValueError(f"the class folder {folder} holds no images ({', '.join(SUFFIXES)})")
        if files:
            leaves.append((folder, files))
        pending += below
    return leaves


def _open(path: Path) -> Image.Image:
    from PIL import Image

    try:
        return Image.open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {path}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    return "it is not an image, or is damaged" if isinstance(error, UnidentifiedImageError) else str(error)


def _is_grey(path: Path) -> bool:
    with _open(path) as image:
        return image.mode in ("1", "L", "LA", "I;16", "I;16B", "I;16L")


def _read_file(path: Path, image_size: tuple[int, int] | None, channels: int, resize: Resize) -> Pixels:
    """Return `[C, H, W]`; transparent pixels become white, 16-bit grey 8-bit."""
    from PIL import Image, ImageOps

    with _open(path) as image:
        try:
            image.load()
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"cannot read the image {path}: {_reason(error)}") from None
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        elif upright.mode in ("I", "F"):
            raise ValueError(f"cannot read the image {path}: its pixels have 32 bits; store it with 8 or 16")
        if upright.has_transparency_data:
            coloured = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
        plain = upright.convert("L" if channels == 1 else "RGB")
        if image_size is not None:
            plain = resize(plain, image_size)
        array = np.asarray(plain)
        return array[None] if channels == 1 else array.transpose(2, 0, 1)
