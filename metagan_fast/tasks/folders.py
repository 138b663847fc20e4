"""Trees of image folders: a leaf folder is a class, its parent a group."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import pillow
from .images import ImageSet, Pixels, fit, stack
from .left_out import LeftOut, Reason
from .pillow import Resize

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm"
)  # fmt: skip


def recognises(path: Path) -> bool:
    """Return whether the path is a folder."""
    return path.is_dir()


def read(
    path: Path, image_size: tuple[int, int] | None = None, channels: int | None = None, resize: Resize = fit
) -> ImageSet:
    """Read a tree of class folders; torchvision's ImageFolder, FIGR-8 and Omniglot are such trees.

    A class is named by its path below `path`. Where all classes lie directly in `path` there are no groups.
    A folder behind several links is one class. Names that begin with "." or "__", links to a folder that is read
    already or to nothing, and files of other kinds are skipped and counted in `left_out`.

    Args:
        path: the tree.
        image_size: (height, width); None if all images have one size already.
        channels: 1 or 3; None for 1 if all images are grey, else 3.
        resize: resizes an image to `image_size`.

    Raises:
        ValueError: no class folder, a folder without images, images beside folders, an image that cannot be
            read, images of several sizes; the message names the file or folder.
    """
    left_out = LeftOut()
    leaves = _leaves(path, left_out)
    files = [file for _, files in leaves for file in files]
    images = read_files(files, image_size, channels, resize)
    grouped = any(folder.parent != path for folder, _ in leaves)
    return ImageSet(
        images=images,
        counts=tuple(len(files) for _, files in leaves),
        classes=tuple(folder.relative_to(path).as_posix() for folder, _ in leaves),
        groups=tuple(folder.parent.relative_to(path).as_posix() for folder, _ in leaves) if grouped else None,
        left_out=left_out,
    )


def image_files(folder: Path, left_out: LeftOut) -> list[Path]:
    """Return the images directly in a folder, sorted by name; other entries go to `left_out`."""
    below, files = _scan(folder, folder, left_out)
    for path in below:
        left_out.add(Reason.FOLDER, path.name)
    return files


def read_files(
    files: Sequence[Path], image_size: tuple[int, int] | None, channels: int | None, resize: Resize = fit
) -> Pixels:
    """Return `[n, C, H, W]`, all in one size and number of channels; see `read`."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        if channels is None:
            channels = 1 if all(pool.map(_is_grey, files)) else 3
        arrays = list(pool.map(lambda file: _read_file(file, image_size, channels, resize), files))
    return stack(arrays, lambda index: str(files[index]))


def _scan(folder: Path, root: Path, left_out: LeftOut) -> tuple[list[Path], list[Path]]:
    """Return the folders and the images directly in a folder, each sorted; other entries go to `left_out`."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"cannot read the folder {folder}: {error.strerror}") from None
    folders, images = [], []
    for entry in entries:
        path = folder / entry.name
        is_folder = path.is_dir() if entry.is_symlink() else entry.is_dir()  # following a link may fail
        is_image = path.suffix.lower() in SUFFIXES
        name = str(path.relative_to(root))
        if entry.name.startswith((".", "__")):
            if is_folder or is_image:
                left_out.add(Reason.HIDDEN, name)
        elif is_folder:
            folders.append(path)
        elif entry.is_symlink() and not path.exists():
            left_out.add(Reason.DANGLING, name)
        elif is_image and path.is_file():
            images.append(path)
        else:
            left_out.add(Reason.OTHER, name)
    return folders, images


def _leaves(root: Path, left_out: LeftOut) -> list[tuple[Path, list[Path]]]:
    """Return the class folders below `root` with their images, sorted by path.

    A folder is read once: under its real path if that lies in the tree, else under the first link.
    """
    leaves: list[tuple[Path, list[Path]]] = []
    seen: set[Path] = set()
    own, linked = [root], deque[Path]()
    while own or linked:
        folder = own.pop() if own else linked.popleft()
        target = folder.resolve()
        if target in seen:
            left_out.add(Reason.REPEATED, f"{folder.relative_to(root)} -> {target}")
            continue
        seen.add(target)
        below, files = _scan(folder, root, left_out)
        if folder == root and not below:
            found = "images" if files else "nothing to read"
            raise ValueError(f"expected a folder for each class in {root}, found {found}")
        if below and files:
            raise ValueError(
                f"{folder} holds images ({files[0].name}) and folders ({below[0].name}): keep only one kind"
            )
        if not below and not files:
            raise ValueError(f"the class folder {folder} holds no images ({', '.join(SUFFIXES)})")
        if files:
            leaves.append((folder, files))
        own += [path for path in reversed(below) if not path.is_symlink()]
        linked += [path for path in below if path.is_symlink()]
    if not leaves:
        raise ValueError(f"expected a folder for each class in {root}, found nothing to read but links in a circle")
    return sorted(leaves)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; errors name the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ValueError(f"cannot read the image {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "it is not an image, or is damaged"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _is_grey(path: Path) -> bool:
    with _opened(path) as image:
        return pillow.is_grey(image)


def _read_file(path: Path, image_size: tuple[int, int] | None, channels: int, resize: Resize) -> Pixels:
    with _opened(path) as image:
        return pillow.to_pixels(image, image_size, channels, resize)
