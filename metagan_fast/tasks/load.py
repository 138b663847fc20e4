"""Loader of data sets by name or path, with their classes split."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from .._utils import coerce
from . import embedded, folders, fonts, idx, npz
from .distribution import TaskDistribution
from .images import ImageSet, convert, to_float
from .left_out import LeftOut, Reason
from .split import PARTS, Split, check_identity, record, split_set

Size = tuple[int, int] | None


@dataclass(frozen=True)
class Source:
    """Reader of one kind of data: `read(path, image_size, channels, options)`, the options it knows, its version."""

    read: Callable[[Path, Size, int | None, Mapping[str, Any]], ImageSet]
    options: tuple[str, ...] = ()
    recognises: Callable[[Path], bool] = Path.exists
    version: int | None = None


NAMED: Mapping[str, Source] = {
    "glyphs": Source(lambda path, size, channels, options: embedded.read_glyphs(), version=2),
    "glyphs-latin": Source(lambda path, size, channels, options: embedded.read_glyphs_latin(), version=1),
    "digits": Source(lambda path, size, channels, options: embedded.read_digits(), version=1),
    "system-fonts": Source(
        lambda path, size, channels, options: fonts.read(size, **options),
        ("fonts", "characters", "min_drawings"),
    ),
}
"""Readers of data sets by name."""

NAMES = tuple(NAMED)

_EARLIER: Mapping[tuple[str, int], str] = {("glyphs", 1): "glyphs-latin"}
"""(name, version) -> the name now of data that gave up its name."""

FORMATS: tuple[Source, ...] = (  # the first that recognises a path reads it
    Source(lambda path, size, channels, options: npz.read(path), recognises=npz.recognises),
    Source(lambda path, size, channels, options: idx.read(path, **options), ("labels", "subset"), idx.recognises),
    Source(
        lambda path, size, channels, options: folders.read(path, size, channels, **options),
        ("cache", "skip_broken"),
        folders.recognises,
    ),
)


@dataclass(frozen=True, eq=False)
class Tasks:
    """Training, validation and test tasks of a data set; the three have disjoint classes.

    Attributes:
        name: the data's name or path.
        train, validation, test: the parts.
        image_shape: (channels, height, width).
        sha256: hash of data in memory, converted, with classes, groups and `rotations`; None for data by name or path.
    """

    name: str
    train: TaskDistribution
    validation: TaskDistribution
    test: TaskDistribution
    image_shape: tuple[int, int, int]
    _record: Mapping[str, Any] = field(repr=False)
    sha256: str | None = None

    def _repr_html_(self) -> str:
        """Show the parts and some of their images in a notebook."""
        from .showing import tasks_html  # slow to import

        return tasks_html(self.name, self.image_shape, {part: getattr(self, part) for part in PARTS})

    def split_record(self) -> dict[str, Any]:
        """Return the classes of each part, JSON-able; `load(..., split=record)` repeats the split."""
        return {key: list(value) if key in PARTS else value for key, value in self._record.items()}


def load(
    name_or_path: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    invert: bool = False,
    seed: int = 0,
    split: Split | None = None,
    split_by: str | None = None,
    rotations: bool = False,
    min_images: int = 1,
    **options: Any,
) -> Tasks:
    """Load a data set as distributions of tasks.

    Args:
        name_or_path: "glyphs", "glyphs-latin" or "digits" (in the package), "system-fonts" (drawn with installed
            fonts), or a path: a tree of class folders (a leaf folder is a class, its parent a group), a folder or
            file of MNIST's IDX format, or an `.npz` of images, labels and optional groups.
        image_size: pixels, a side or (height, width); None keeps the data's own. Resizing is antialiased;
            another aspect ratio is cropped centrally.
        channels: 1 (grey) or 3 (colour); None keeps the data's own.
        invert: exchange black and white.
        seed: of the split and of the tasks drawn.
        split: shares for train, validation and test; or a mapping of those to class names, such as an earlier
            `split_record()`, for which the seed has no effect; without "train" the rest trains. None: the data's
            own parts ("glyphs" has some), else (0.7, 0.1, 0.2). A record of another version of the data loads that
            version; a record of "glyphs" without a version means what is now "glyphs-latin".
        split_by: "class", or "group" to keep whole groups in one part; None: "group" for data with own parts, else
            "class". No effect on a mapping.
        rotations: turn each class by 90, 180 and 270 degrees into three further classes ("A@90", ...), in the
            same part of the split.
        min_images: leave out classes with fewer images. One log line counts these and what else the loader skips.
        **options: for "system-fonts" `fonts`, `characters`, `min_drawings`; for IDX `labels`, a file, and `subset`,
            one of several sets in a folder, such as "letters" of EMNIST; for a tree `skip_broken`, True to leave out
            images that cannot be read, and `cache`, a folder for the decoded images, which stay on disk, or False for
            none (default: METAGAN_FAST_CACHE, else the user's cache folder, for trees of 1,000 images and more).

    Returns:
        Tasks with `.train`, `.validation`, `.test`, `.image_shape`, `.name`, `.split_record()`.

    Raises:
        ValueError: an unknown name, data that cannot be read, a split that does not fit; the message names
            the file or class.
        TypeError: an option that this data set does not have.

    Example:
        >>> from metagan_fast import tasks
        >>> digits = tasks.load("digits", split=(0.6, 0.2, 0.2))
        >>> digits.image_shape, len(digits.train.classes), len(digits.test.classes)
        ((1, 8, 8), 6, 2)
        >>> batch = digits.train.sample(tasks=3, shots=4, query=2, step=0)
        >>> batch.support.shape, batch.query.shape
        (torch.Size([3, 4, 1, 8, 8]), torch.Size([3, 2, 1, 8, 8]))
        >>> again = tasks.load("digits", split=digits.split_record())
        >>> again.train.classes == digits.train.classes
        True
    """
    name_or_path = _as_recorded(name_or_path, split)
    source = _find(name_or_path)
    unknown = sorted(set(options) - set(source.options))
    if unknown:
        known = f"it takes {', '.join(source.options)}" if source.options else "it takes no options"
        raise TypeError(f"load({str(name_or_path)!r}) got an unknown option {unknown[0]!r}; {known}")
    return prepare(
        str(name_or_path),
        lambda size, channels: source.read(Path(name_or_path), size, channels, options),
        version=source.version,
        image_size=image_size,
        channels=channels,
        invert=invert,
        seed=seed,
        split=split,
        split_by=split_by,
        rotations=rotations,
        min_images=min_images,
    )


def prepare(
    name: str,
    read: Callable[[Size, int | None], ImageSet],
    *,
    image_size: int | tuple[int, int] | None,
    channels: int | None,
    invert: bool,
    seed: int,
    split: Split | None,
    split_by: str | None,
    rotations: bool,
    min_images: int,
    version: int | None = None,
    in_memory: bool = False,
) -> Tasks:
    """Check the options that all sources share, read the images, convert and split them.

    Args:
        name: of the data, for errors and the record.
        read: returns the images, given (height, width) or None, and channels or None; may leave both conversions.
        image_size, channels, invert, seed, split, split_by, rotations, min_images: as for `load`.
        version: of the data, recorded; None: they have none.
        in_memory: record a hash of the data, and refuse a split that is the record of data with another.
    """
    size = _checked_size(image_size)
    _check_channels(channels)
    seed, min_images = coerce.seed(seed), coerce.count("min_images", min_images)
    if split is not None and not isinstance(split, Mapping):
        split = coerce.reals("split", split)
    found = read(size, channels)
    found = _with_enough(found, min_images, name)
    found.left_out.log(name, least=min_images)
    found = replace(found, images=convert(found.images, size, channels))
    if invert:
        found = found.inverted()
    if rotations and found.images.shape[2] != found.images.shape[3]:
        raise ValueError("rotations need square images: give one number as image_size")
    sha256 = found.sha256(bool(rotations)) if in_memory else None
    if sha256 is not None:
        check_identity(split, sha256, name)
    parts, account = split_set(found, split, split_by, seed, name)
    identity = {"version": version, "sha256": sha256}
    origin = {"data": name, **{key: value for key, value in identity.items() if value is not None}, **account}
    distributions = {}
    for part, classes in parts.items():
        images = found.select(classes)
        images = images.rotated() if rotations else images
        distributions[part] = TaskDistribution(images, seed=seed, name=f"{name} ({part})")
    return Tasks(
        name=name,
        **distributions,
        image_shape=distributions["train"].image_shape,
        _record=record(parts, split, origin),
        sha256=sha256,
    )


def read_images(
    place: str | Path | Iterable[str | Path],
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    invert: bool = False,
) -> Tensor:
    """Read the images in a folder, or the files named, as the support set of one task.

    Args:
        place: a folder, one file, or several.
        image_size, channels, invert: as for `load`.

    Returns:
        `[n, channels, height, width]` float32 in [-1, 1], in the order of the names.

    Raises:
        ValueError: no image, or one that cannot be read; the message names it. Another number of channels.
    """
    _check_channels(channels)
    files = [Path(place)] if isinstance(place, (str, Path)) else [Path(file) for file in place]
    if len(files) == 1 and files[0].is_dir():
        left_out = LeftOut()
        files = folders.image_files(files[0], left_out)
        left_out.log(str(place))
    if not files:
        raise ValueError(f"found no images in {place} ({', '.join(folders.SUFFIXES)})")
    pixels = folders.read_files(files, _checked_size(image_size), channels)
    return to_float(from_numpy(255 - pixels if invert else pixels))


def _check_channels(channels: int | None) -> None:
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")


def _checked_size(image_size: int | tuple[int, int] | None) -> Size:
    if image_size is None:
        return None
    return coerce.sides("image_size", image_size)


def _as_recorded(name_or_path: str | Path, split: Split | None) -> str | Path:
    """Return the name now of the data that a split's record means; records without a version are of the first."""
    if not isinstance(split, Mapping) or split.get("data") != name_or_path or name_or_path not in NAMED:
        return name_or_path
    name, version = str(name_or_path), split.get("version", 1)
    now = NAMED[name].version
    if now is None or version == now:
        return name
    if (name, version) not in _EARLIER:
        raise ValueError(f"the split is of version {version} of {name}, but this package has version {now}: update it")
    return _EARLIER[name, version]


def _find(name_or_path: str | Path) -> Source:
    if isinstance(name_or_path, str) and name_or_path in NAMED:
        return NAMED[name_or_path]
    path = Path(name_or_path)
    try:
        exists = path.exists()
        source = next((source for source in FORMATS if source.recognises(path)), None)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if source is not None:
        return source
    if exists:
        raise ValueError(f"cannot tell what {path} is: expected a folder, an .npz file or an IDX file of images")
    near = difflib.get_close_matches(str(name_or_path), NAMED, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the names are {', '.join(NAMED)}"
    raise ValueError(f"no data set or path {str(name_or_path)!r}; {hint}")


def _with_enough(found: ImageSet, min_images: int, name: str) -> ImageSet:
    if not found.counts:
        raise ValueError(f"{name} holds no images")
    if min(found.counts) >= min_images:
        return found
    enough = []
    for name_of_class, count in zip(found.classes, found.counts, strict=True):
        if count >= min_images:
            enough.append(name_of_class)
        else:
            found.left_out.add(Reason.SMALL, name_of_class)
    if not enough:
        raise ValueError(f"{name}: no class has min_images={min_images} images; the largest has {max(found.counts)}")
    chosen = found.select(enough)
    return chosen if isinstance(found.images, np.memmap) else chosen.packed()  # the others need no memory
