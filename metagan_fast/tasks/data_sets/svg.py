"""Drawings from the bodies of SVG files, by resvg, which reads neither files nor fonts here."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..images import Pixels
from . import archives

OVERSAMPLING = {"grey": 3, "colour": 2}  # rendered pixels to a pixel of the image, a side; resvg smooths edges itself
FILLED = 28 / 32  # share of the image's side that the longer side of a drawing fills
LEAST_ALPHA = 16  # opacity below which a pixel is no ink
# Elements that take pixels from elsewhere, move, or need fonts; resvg would open files that `href` names.
_REFUSED = re.compile(
    r"<(?:[^\s<>/]*:)?(?:image|feImage|text|style|script|animate\w*|set|foreignObject)\b|href\s*=\s*(?![\"']#)|<!|<\?",
    re.IGNORECASE,
)
_SIZES = 0.1, 1e5  # of an icon that is drawn
_NUMBER = (int, float)


@dataclass(frozen=True)
class IconSet:
    """The parts of an Iconify package that are used.

    Attributes:
        icons, aliases: by name.
        width, height: of icons that do not say theirs.
        licence, author: as the package names them.
        suffixes, prefixes: names of the set's styles, at an icon's name's ends.
        characters: code points of characters, in hexadecimal and joined by "-", and the icons that show them.
    """

    icons: Mapping[str, Any]
    aliases: Mapping[str, Any]
    width: float
    height: float
    licence: str
    author: str
    suffixes: tuple[str, ...]
    prefixes: tuple[str, ...]
    characters: Mapping[str, str]


def read_icon_set(archive: archives.Archive, path: Path) -> IconSet:
    """Read an Iconify package.

    Raises:
        ValueError: not such a package, or its licence is not the pinned one.
    """
    names = {f"package/{name}.json": name for name in ("icons", "info", "metadata", "chars")}
    try:
        found = {names[name]: json.loads(text) for name, text in archives.read_files(path, names.__contains__)}
        icons, info, metadata = found["icons"], found["info"], found.get("metadata", {})
        licence, author = info["license"]["spdx"], info["author"]["name"]
        read = IconSet(
            icons=icons["icons"],
            aliases=icons.get("aliases", {}),
            width=icons.get("width", 16),
            height=icons.get("height", 16),
            licence=licence,
            author=author,
            suffixes=tuple(metadata.get("suffixes") or ()),
            prefixes=tuple(metadata.get("prefixes") or ()),
            characters=dict(found.get("chars", {})),
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no Iconify package: {type(error).__name__} {error}") from None
    if (licence, author) != (archive.licence, archive.author):
        raise ValueError(
            f"{path}: expected the licence {archive.licence} of {archive.author}, got {licence} of {author}"
        )
    return read


def as_svg(icons: IconSet, name: str, colour: str = "white") -> str | None:
    """Return an icon as an SVG document, its `currentColor` the given one; None if it may not be rendered alone."""
    icon = icons.icons[name]
    body = icon["body"]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon.get("width", icons.width), icon.get("height", icons.height)
    if not all(isinstance(number, _NUMBER) for number in (left, top, width, height)) or _REFUSED.search(body):
        return None
    if not all(_SIZES[0] <= number <= _SIZES[1] for number in (width, height)):
        return None
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="{colour}" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{body}</svg>'
    )


def check_installed() -> None:
    """Raise ValueError without resvg; the message says what to install."""
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        raise ValueError("icons and emoji are drawn by resvg-py: pip install 'metagan_fast[data]'") from None


def render(svg: str, side: int) -> Image.Image | None:
    """Render with transparency, the longer side of `side` pixels, cropped to its ink; None without ink or if damaged.

    Args:
        svg: a document whose width and height say its aspect ratio.
        side: pixels.
    """
    import resvg_py

    width, height = (float(value) for value in re.findall(r' (?:width|height)="([\d.]+)"', svg)[:2])
    wide = width >= height
    try:
        data = resvg_py.svg_to_bytes(
            svg_string=svg, skip_system_fonts=True, width=side if wide else None, height=None if wide else side
        )
    except ValueError:
        return None
    image = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha >= LEAST_ALPHA)).getbbox()
    return None if box is None else image.crop(box)


def centred(ink: Image.Image, size: int, background: str | tuple[int, int, int, int] = (0, 0, 0, 0)) -> Image.Image:
    """Return a square image of `size` with the ink centred, its longer side filling `FILLED` of it."""
    width, height = ink.size
    side = max(width, height) / FILLED
    margin = max(ink.size)
    canvas = Image.new("RGBA", (width + 2 * margin, height + 2 * margin), background)
    canvas.alpha_composite(ink, (margin, margin))
    x, y = canvas.width / 2, canvas.height / 2
    box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    return canvas.resize((size, size), Image.Resampling.BOX, box=box)


def grey(svg: str, size: int) -> Pixels | None:
    """Return an icon's opacity, `[size, size]`: white on black; None without ink."""
    ink = render(svg, OVERSAMPLING["grey"] * size)
    return None if ink is None else np.asarray(centred(ink, size).getchannel("A"))


def colour(svg: str, size: int, background: str) -> Pixels | None:
    """Return an icon on a plain background, `[size, size, 3]`; None without ink."""
    ink = render(svg, OVERSAMPLING["colour"] * size)
    return None if ink is None else np.asarray(centred(ink, size, background).convert("RGB"))
