"""Labelled images with their origins, as an `.npz` file that `tasks.load` reads."""

from __future__ import annotations

import hashlib
import io
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import checkpoint
from ..images import Pixels
from ..split import PARTS, SHARES
from .archives import Archive
from .licences import LICENCES

SHOWN = 60  # characters of an author in a table; a font's is its copyright notice


@dataclass(frozen=True)
class Drawing:
    """One image's place and origin.

    Attributes:
        label, group: its class, and the class's group.
        archive: the package that it is from.
        item: its name there.
        licence, author, family: where they are not the package's.
    """

    label: str
    group: str
    archive: Archive
    item: str
    licence: str = ""
    author: str = ""
    family: str = ""

    @property
    def source(self) -> str:
        """Package, version and name in one line."""
        return f"{self.archive.name} {self.archive.version}: {self.item}"

    def origin(self, field: str) -> str:
        """Return licence, author or family."""
        return str(getattr(self, field) or getattr(self.archive, field))


def parts_of(name: str, drawings: Sequence[Drawing]) -> dict[str, str]:
    """Return label -> part of a split for data without parts of their own: whole groups, by a hash of their names."""
    parts = {}
    for drawing in drawings:
        digest = hashlib.sha256(f"{name}/{drawing.group}".encode()).digest()
        share = int.from_bytes(digest[:4], "big") / 2**32
        train, validation, _ = SHARES
        parts[drawing.label] = PARTS[(share >= train) + (share >= train + validation)]
    return parts


@dataclass(frozen=True, eq=False)
class Collection:
    """A data set: images with their origins, and the part of a split of each class where the data assign one.

    Attributes:
        name: of the set.
        images: `[n, height, width]` or `[n, height, width, 3]` uint8.
        drawings: n origins, class after class.
        parts: label -> train, validation or test.
        changes: how the images differ from their sources.
    """

    name: str
    images: Pixels
    drawings: Sequence[Drawing]
    changes: str
    parts: dict[str, str]

    @property
    def counts(self) -> Counter[str]:
        """Number of images of each class."""
        return Counter(drawing.label for drawing in self.drawings)

    def to_bytes(self) -> bytes:
        """Return the `.npz`: images, labels, groups, parts, and each image's origin."""
        arrays: dict[str, Any] = {
            "images": self.images,
            "labels": np.array([drawing.label for drawing in self.drawings]),
            "groups": np.array([drawing.group for drawing in self.drawings]),
            "parts": np.array([self.parts[drawing.label] for drawing in self.drawings]),
            "sources": np.array([drawing.source for drawing in self.drawings]),
            "licences": np.array([drawing.origin("licence") for drawing in self.drawings]),
            "authors": np.array([drawing.origin("author") for drawing in self.drawings]),
            "families": np.array([drawing.origin("family") for drawing in self.drawings]),
            "notice": np.array(self.notice()),
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    def notice(self) -> str:
        """Return the text on licences and changes that goes with the images."""
        used = sorted({drawing.origin("licence") for drawing in self.drawings})
        lines = [f"{name}: {LICENCES[name]}" for name in used]
        return "\n".join([f"{self.changes} The arrays sources, authors and licences name each one's origin.", *lines])

    def save(self, path: Path) -> int:
        """Write the `.npz` atomically and return its size in bytes.

        Raises:
            CheckpointError: it cannot be written; a file that was there is untouched.
        """
        data = self.to_bytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_bytes(path, data)
        return len(data)

    def summary(self) -> str:
        """Return one line on classes and images."""
        counts = sorted(self.counts.values())
        shape = "x".join(map(str, self.images.shape[1:3]))
        kind = "colour" if self.images.ndim == 4 else "grey"
        return (
            f"{len(counts):,} classes, {len(self.images):,} images of {shape} in {kind}, "
            f"{counts[0]} to {counts[-1]} a class (median {int(np.median(counts))})"
        )

    def table(self) -> str:
        """Return a Markdown table of licences and one of packages, with classes and images."""
        by_licence: dict[str, list[Drawing]] = defaultdict(list)
        by_package: dict[tuple[str, str], list[Drawing]] = defaultdict(list)
        for drawing in self.drawings:
            by_licence[drawing.origin("licence")].append(drawing)
            by_package[drawing.archive.name, drawing.archive.version].append(drawing)
        licences = [[name, *_tally(drawings), LICENCES[name]] for name, drawings in sorted(by_licence.items())]
        packages = []
        for place, drawings in sorted(by_package.items()):
            licence, authors = ({d.origin(field) for d in drawings} for field in ("licence", "author"))
            author = next(iter(authors)) if len(authors) == 1 else f"{len(authors)} authors"
            author = textwrap.shorten(author, SHOWN, placeholder=" ...")
            packages.append([*place, ", ".join(sorted(licence)), author, *_tally(drawings)])
        return "\n\n".join(
            [
                markdown(["licence", "classes", "images", "text"], licences),
                markdown(["package", "version", "licence", "author", "classes", "images"], packages),
            ]
        )


def _tally(drawings: Sequence[Drawing]) -> list[str]:
    return [f"{len({drawing.label for drawing in drawings}):,}", f"{len(drawings):,}"]


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    cells = [heads, *[[cell.replace("|", "/") for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
