"""Parallel decoding of image files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from . import pillow
from .images import Pixels, fit
from .listing import WORKERS
from .pillow import Resize

if TYPE_CHECKING:
    from PIL import Image

Decoded: TypeAlias = tuple[Path, "Pixels | None"]
Result = TypeVar("Result")

observer: ContextVar[Callable[[str, int, int], None] | None] = ContextVar("observer", default=None)
"""Function that is shown (stage, done, total) while many files are decoded, if any."""

_CHUNK = 512  # files decoded before the first of them is used
_LARGE = 1_000_000  # pixels from which images are decoded one after another, which bounds memory
_one_at_a_time = Lock()
_MANY = 1000  # files from which progress is shown


class BrokenImage(ValueError):
    """Error of an image file that cannot be read."""


class Decoder:
    """Conversion of image files to pixels.

    Args:
        image_size: (height, width); None keeps each image's own.
        resize: resizes an image to `image_size`.
        skip_broken: give None for an image that cannot be read, in place of an error.
    """

    def __init__(
        self, image_size: tuple[int, int] | None = None, resize: Resize = fit, skip_broken: bool = False
    ) -> None:
        self._image_size, self._resize, self._skip_broken = image_size, resize, skip_broken
        self._pool = ThreadPoolExecutor(WORKERS)  # its threads end with the decoder

    def all_grey(self, files: Sequence[Path]) -> bool:
        """Return whether all images are grey, by their headers; broken ones that are skipped do not count."""
        return all(self._pool.map(lambda file: self._attempt(_is_grey, file) is not False, files))

    def chunks(self, files: Sequence[Path], channels: int, shown: Progress | None = None) -> Iterator[list[Decoded]]:
        """Yield the files with their pixels, `[C, H, W]` or None for a broken one, in chunks and in order.

        Raises:
            BrokenImage: an image cannot be read; the message names it.
        """
        shown = Progress(len(files)) if shown is None else shown
        for start in range(0, len(files), _CHUNK):
            chunk = files[start : start + _CHUNK]
            pixels = self._pool.map(lambda file: self._attempt(self._read, file, channels), chunk)
            yield list(zip(chunk, pixels, strict=True))
            shown.advance(len(chunk))

    def _attempt(self, function: Callable[..., Result], *arguments: Any) -> Result | None:
        try:
            return function(*arguments)
        except BrokenImage:
            if self._skip_broken:
                return None
            raise

    def _read(self, path: Path, channels: int) -> Pixels:
        with _opened(path) as image, _one_at_a_time if image.width * image.height > _LARGE else nullcontext():
            return pillow.to_pixels(image, self._image_size, channels, self._resize)


class Progress:
    """Count of decoded files, shown to the observer.

    Args:
        total: files; few are not shown.
    """

    def __init__(self, total: int) -> None:
        self._done, self._total = 0, total
        self._show = observer.get() if total >= _MANY else None

    def advance(self, files: int) -> None:
        """Count files."""
        self._done += files
        if self._show is not None:
            self._show("decode images", self._done, self._total)


def _is_grey(path: Path) -> bool:
    with _opened(path) as image:
        return pillow.is_grey(image)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; BrokenImage names the file."""
    try:
        with pillow.opened(path) as image:
            yield image
    except ValueError as error:
        raise BrokenImage(str(error)) from error
