"""Data sets made of packages that are downloaded when asked for: icons, emoji and characters of fonts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..._utils.user_cache import VARIABLE as CACHE_VARIABLE
from ...distributed import job
from . import emoji, glyphs_large, icons, svg
from .archives import Archive, Progress, fetch, read_pins
from .collection import Collection, markdown
from .licences import BY_FILE, FONT_TEXTS

__all__ = ["CACHE_VARIABLE", "SETS", "DataSet", "listing", "make"]

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class DataSet:
    """A data set that can be made.

    Attributes:
        name: of the set, and of the table of its pinned packages.
        summary: its classes and images in a few words.
        size: pixels a side by default.
        classes, images: how many it has at that size; None where nobody has counted.
        build: draws it from pinned packages and their paths, at a size.
        check: raises ValueError without the library that draws it.
    """

    name: str
    summary: str
    size: int
    classes: int | None
    images: int | None
    build: Callable[[Sequence[Archive], Sequence[Path], int, Progress], Collection]
    check: Callable[[], None] = svg.check_installed

    def pins(self) -> list[Archive]:
        """Return the pinned packages."""
        return read_pins(_FOLDER / f"{self.name}.tsv")


SETS: Mapping[str, DataSet] = {
    one.name: one
    for one in (
        DataSet("icons", "things as many icon sets draw them, grey", 32, 413, 16853, icons.build),
        DataSet("emoji", "emoji of several vendors and skin tones, colour", 64, 540, 9573, emoji.build),
        DataSet("glyphs-large", "characters in many fonts, grey", 32, 3239, 66024, glyphs_large.build, lambda: None),
    )
}
"""Data sets by name."""


def make(name: str, size: int | None, given: Path | None, progress: Progress) -> Collection:
    """Make a data set.

    Args:
        name: a key of `SETS`.
        size: pixels a side; None for the set's own.
        given: a folder with the packages' archives; None to download what the cache lacks.
        progress: receives each stage and its steps.

    Raises:
        ValueError: a missing library, or a package that cannot be had or read; the message says what to do.
    """
    data = SETS[name]
    data.check()
    pinned = data.pins()
    packages = job.after_first(lambda: fetch(pinned, given, progress))  # which fills the cache
    return data.build(pinned, packages, size or data.size, progress)


def listing() -> str:
    """Return a Markdown table of the data sets."""
    rows = []
    for data in SETS.values():
        pinned = data.pins()
        licences = {archive.licence for archive in pinned}
        if BY_FILE in licences:
            licences = licences - {BY_FILE} | FONT_TEXTS.keys()
        megabytes = sum(archive.size for archive in pinned) / 1e6
        client = " and ".join(
            sorted({"apt-get" if archive.source == "debian" else archive.source for archive in pinned})
        )
        rows.append(
            [
                data.name,
                data.summary,
                *("not counted" if count is None else f"{count:,}" for count in (data.classes, data.images)),
                f"{data.size}x{data.size}",
                f"{len(pinned)} by {client}",
                f"{megabytes:.0f} MB",
                ", ".join(sorted(licences)),
            ]
        )
    return markdown(["set", "images of", "classes", "images", "size", "packages", "download", "licences"], rows)
