"""Trees of image folders: a leaf folder is a class, its parent a group."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from . import image_cache, listing
from .decoding import Decoded, Decoder, Progress
from .image_cache import Contents, ImageCache, Shape
from .images import ImageSet, Pixels, fit, several_sizes, stack
from .left_out import LeftOut, Reason
from .pillow import Resize

_logger = logging.getLogger(__name__)

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm"
)  # fmt: skip


def recognises(path: Path) -> bool:
    """Return whether the path is a folder."""
    return path.is_dir()


def read(
    path: Path,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    resize: Resize = fit,
    *,
    cache: str | os.PathLike[str] | bool | None = None,
    skip_broken: bool = False,
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
        cache: place of decoded images, as for `image_cache.place`; None is for large trees alone. Not with a `resize`
            of one's own.
        skip_broken: skip images that cannot be read, and count them in `left_out`.

    Raises:
        ValueError: no class folder, a folder without images, images beside folders, an image that cannot be
            read, images of several sizes; the message names the file or folder.
    """
    place = image_cache.place(cache) if resize is fit else None
    decoder = Decoder(image_size, resize, skip_broken)
    if place is None:
        return _decoded(_Tree(path), decoder, channels)
    key = image_cache.key(path, image_size, channels, skip_broken)
    cached = image_cache.read(place, key)
    if cached is None or not cached.is_current(path):
        tree = _Tree(path, with_digests=True)
        if cache in (None, True) and tree.count < image_cache.LEAST:
            return _decoded(tree, decoder, channels)
        contents = Contents(key, digests=tree.digests, classes=tree.classes)
        try:
            cached = image_cache.write(place, contents, _blocks(tree, decoder, channels, contents, cached))
        except OSError as error:
            _logger.warning(
                "cannot cache the images of %s in %s (%s); they stay in memory", path, place, error.strerror
            )
            return _decoded(_Tree(path), decoder, channels)
    left_out = LeftOut.from_record(cached.contents.left_out)
    return _image_set(cached.pixels, cached.contents.classes, cached.contents.counts, left_out)


def _decoded(tree: _Tree, decoder: Decoder, channels: int | None) -> ImageSet:
    """Return the images of a tree in memory."""
    contents = Contents("", classes=tree.classes)
    if channels is None:
        channels = 1 if decoder.all_grey(tree.files) else 3
    blocks = list(_blocks(tree, decoder, channels, contents, None))
    return _image_set(np.concatenate(blocks), contents.classes, contents.counts, tree.left_out)


def _blocks(
    tree: _Tree, decoder: Decoder, channels: int | None, contents: Contents, cached: ImageCache | None
) -> Iterator[Pixels]:
    """Yield the pixels of a tree, class after class, and complete `contents`; `cached` has unchanged classes."""
    digests = [tree.digests.get(name, "") for name in tree.classes]
    if channels is None:
        for name, digest, files in zip(tree.classes, digests, tree.leaves.values(), strict=True):
            grey = None if cached is None else cached.grey(name, digest)
            contents.greys.append(decoder.all_grey(files) if grey is None else grey)
        channels = 1 if all(contents.greys) else 3
    else:
        contents.greys = [None] * len(tree.classes)
    if cached is not None and cached.contents.shape[0] != channels:
        cached = None
    progress = Progress(tree.count)
    first: tuple[Path, Shape] | None = None
    for name, digest, files in zip(tree.classes, digests, tree.leaves.values(), strict=True):
        contents.counts.append(0)
        rows = None if cached is None else cached.rows(name, digest)
        if cached is not None and rows is not None:
            tree.left_out.add_broken(cached.contents.left_out, name)
            blocks: Iterable[tuple[list[Path], Pixels | list[Pixels]]] = [(files, rows)]
            progress.advance(len(files))
        else:
            blocks = _readable(decoder.chunks(files, channels, progress), tree)
        for named, pixels in blocks:
            if not len(pixels):
                continue
            first = first or (named[0], pixels[0].shape)
            for file, each in zip(named, pixels, strict=False):
                if each.shape != first[1]:
                    raise several_sizes((str(first[0]), first[1][1:]), (str(file), each.shape[1:]))
            contents.counts[-1] += len(pixels)
            contents.shape = first[1]
            yield np.asarray(pixels)
    if first is None:
        raise ValueError(f"no image of {tree.root} can be read")
    contents.left_out = tree.left_out.to_record()


def _readable(chunks: Iterable[list[Decoded]], tree: _Tree) -> Iterator[tuple[list[Path], list[Pixels]]]:
    """Yield the files and pixels of chunks; broken images go to `left_out`."""
    for chunk in chunks:
        for file, pixels in chunk:
            if pixels is None:
                tree.left_out.add(Reason.BROKEN, file.relative_to(tree.root).as_posix())
        whole = [(file, pixels) for file, pixels in chunk if pixels is not None]
        yield [file for file, _ in whole], [pixels for _, pixels in whole]


def _image_set(images: Pixels, classes: Sequence[str], counts: Sequence[int], left_out: LeftOut) -> ImageSet:
    """Return a set whose groups are the parents of the classes, if any has one."""
    grouped = any("/" in name for name in classes)
    return ImageSet(
        images=images,
        counts=tuple(counts),
        classes=tuple(classes),
        groups=tuple(PurePosixPath(name).parent.as_posix() for name in classes) if grouped else None,
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
    decoder = Decoder(image_size, resize)
    if channels is None:
        channels = 1 if decoder.all_grey(files) else 3
    arrays = [pixels for chunk in decoder.chunks(files, channels) for _, pixels in chunk if pixels is not None]
    return stack(arrays, lambda index: str(files[index]))


class _Tree:
    """Class folders below a root and their images, sorted by path.

    A folder is read once: under its real path if that lies in the tree, else under the first link.

    Args:
        root: the tree.
        with_digests: take the digests of all folders, each before its entries are read, so that later changes show.

    Attributes:
        leaves: class folder -> images.
        digests: folder, relative to the root -> digest.
        left_out: other entries.
    """

    def __init__(self, root: Path, *, with_digests: bool = False) -> None:
        self.root = root
        self.left_out = LeftOut()
        self.digests: dict[str, str] = {}
        self.leaves = dict(self._find_leaves(with_digests))

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return [folder.relative_to(self.root).as_posix() for folder in self.leaves]

    @property
    def count(self) -> int:
        """Number of images."""
        return sum(map(len, self.leaves.values()))

    @property
    def files(self) -> list[Path]:
        """All images."""
        return [file for files in self.leaves.values() for file in files]

    def _find_leaves(self, with_digests: bool) -> list[tuple[Path, list[Path]]]:
        root = self.root
        leaves: list[tuple[Path, list[Path]]] = []
        seen: set[Path] = set()
        own, linked = [root], deque[Path]()
        while own or linked:
            folder = own.pop() if own else linked.popleft()
            target = folder.resolve()
            if target in seen:
                self.left_out.add(Reason.REPEATED, f"{folder.relative_to(root)} -> {target}")
                continue
            seen.add(target)
            if with_digests:
                self.digests[folder.relative_to(root).as_posix()] = _digest(folder)
            below, files = _scan(folder, root, self.left_out)
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


def _digest(folder: Path) -> str:
    try:
        return listing.digest(folder)
    except OSError as error:
        raise ValueError(f"cannot read the folder {folder}: {error.strerror}") from None


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
