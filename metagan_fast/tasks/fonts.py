"""Characters as classes: every typeface draws one image of each."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .images import ImageSet, Pixels

if TYPE_CHECKING:
    from PIL import Image

_logger = logging.getLogger(__name__)

_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc", ".pfb")
_OVERSAMPLING = 6  # rendered pixels to a pixel of the image, a side
_TYPICAL = 28 / 32  # share of the image's side that a typical character fills
_LARGEST = 30 / 32  # share that the largest character fills
_MISSING = "\U0010fffe"  # a noncharacter, which every typeface draws as .notdef
_SCALE_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def font_folders() -> list[Path]:
    """Return the folders in which this machine keeps its fonts."""
    home = Path(os.path.expanduser("~"))  # Path.home raises for an unknown user
    if sys.platform == "darwin":
        folders = [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    elif sys.platform == "win32":
        folders = [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"]
    else:
        folders = [Path("/usr/share/fonts"), Path("/usr/local/share/fonts")]
        folders += [home / ".local/share/fonts", home / ".fonts"]
    return [folder for folder in folders if folder.is_dir()]


def find_typefaces(places: Iterable[str | Path]) -> list[Path]:
    """Return the font files given by name or found in folders, recursively, sorted."""
    found: set[Path] = set()
    for place in map(Path, places):
        if place.is_dir():
            found.update(path for path in place.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
        elif place.is_file():
            found.add(place)
        else:
            raise ValueError(f"no font file or folder at {place}")
    return sorted(found)


def characters_of(path: Path) -> frozenset[str]:
    """Return the visible characters that a typeface maps to a glyph other than .notdef.

    Raises:
        ValueError: the file is not a font that can be read, or has no Unicode table.
    """
    from fontTools.ttLib import TTFont

    try:
        with TTFont(path, lazy=True, fontNumber=0) as font:
            table = font.getBestCmap()
    except Exception as error:  # fontTools raises many kinds for broken tables
        raise ValueError(f"cannot read the font {path}: {error}") from None
    if not table:
        raise ValueError(f"the font {path} has no Unicode table")
    return frozenset(chr(code) for code, glyph in table.items() if glyph != ".notdef" and _is_visible(chr(code)))


def _is_visible(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNPS"


class Typeface:
    """Renderer of one font file: characters in white on black, at one scale, centred.

    The scale belongs to the typeface: its `scale_characters` (capitals and digits) fill 28/32 of the image in the
    median, and only a character that would not fit is made smaller.
    """

    def __init__(self, path: Path, image_size: int, scale_characters: Iterable[str] = _SCALE_CHARACTERS) -> None:
        from PIL import ImageFont

        self._image_size = image_size
        self.characters = characters_of(path)
        try:
            self._font = ImageFont.truetype(str(path), _OVERSAMPLING * image_size, layout_engine=ImageFont.Layout.BASIC)
            self._missing = self._outline(_MISSING)
            known = [c for c in scale_characters if c in self.characters] or sorted(self.characters)[:256]
            extents = [max(outline.size) for outline in map(self._outline, known) if outline is not None]
        except OSError as error:
            raise ValueError(f"cannot draw with the font {path}: {error}") from None
        if not extents:
            raise ValueError(f"the font {path} draws nothing")
        self._side = float(np.median(extents)) / _TYPICAL

    def draw(self, character: str) -> Pixels | None:
        """Return `[image_size, image_size]`, or None where the typeface draws nothing or its .notdef."""
        if character not in self.characters:
            return None
        try:
            outline = self._outline(character)
        except OSError:  # FreeType rejects a broken glyph
            return None
        if outline is None or (self._missing is not None and _same(outline, self._missing)):
            return None
        return self._centred(outline)

    def _outline(self, character: str) -> Image.Image | None:
        """Render large, cropped to the ink; None without ink."""
        from PIL import Image, ImageDraw

        left, top, right, bottom = self._font.getbbox(character)
        if right <= left or bottom <= top:
            return None
        image = Image.new("L", (int(right - left), int(bottom - top)))
        ImageDraw.Draw(image).text((-left, -top), character, fill=255, font=self._font)
        box = image.getbbox()
        return None if box is None else image.crop(box)

    def _centred(self, outline: Image.Image) -> Pixels:
        from PIL import Image

        width, height = outline.size
        side = max(self._side, max(width, height) / _LARGEST)
        margin = int(side)  # room for any character's box
        canvas = Image.new("L", (width + 2 * margin, height + 2 * margin))
        canvas.paste(outline, (margin, margin))
        x, y = canvas.width / 2, canvas.height / 2
        box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
        size = (self._image_size, self._image_size)
        return np.asarray(canvas.resize(size, Image.Resampling.BOX, box=box))


def _same(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and first.tobytes() == second.tobytes()


def draw_all(path: Path, image_size: int, characters: Iterable[str]) -> dict[str, Pixels]:
    """Return a typeface's drawings in code point order; a repeated drawing counts for its first character only."""
    typeface = Typeface(path, image_size)
    drawings: dict[str, Pixels] = {}
    seen: set[bytes] = set()
    for character in sorted(typeface.characters.intersection(characters)):
        drawing = typeface.draw(character)
        if drawing is not None and drawing.any() and drawing.tobytes() not in seen:
            seen.add(drawing.tobytes())
            drawings[character] = drawing
    return drawings


def read(
    image_size: tuple[int, int] | None = None,
    fonts: str | Path | Sequence[str | Path] | None = None,
    characters: Iterable[str] | None = None,
    min_drawings: int = 20,
) -> ImageSet:
    """Draw characters with typefaces: a class for each character, white on black.

    Args:
        image_size: (height, width), equal; default 32.
        fonts: folders of fonts, or font files; None for the machine's own. A collection gives its first face.
        characters: which ones; None for all that at least `min_drawings` typefaces have.
        min_drawings: fewest different drawings of a class that is kept.

    Raises:
        ValueError: no typeface, or no character with enough drawings. A font that cannot be read is
            skipped, with a log line.
    """
    height, width = image_size or (32, 32)
    if height != width:
        raise ValueError(f"characters are drawn in square images, got an image_size of {height} x {width}")
    places = font_folders() if fonts is None else [fonts] if isinstance(fonts, (str, Path)) else fonts
    paths = find_typefaces(places)
    available = {path: found for path in paths if (found := _characters_or_none(path))}
    if not available:
        raise ValueError(f"found no font in {', '.join(map(str, places)) or 'the font folders'}: pass fonts=FOLDER")
    share = Counter(itertools.chain.from_iterable(available.values()))
    wanted = set(share if characters is None else characters)
    wanted = {character for character in wanted if share[character] >= min_drawings}
    drawings: dict[str, dict[bytes, Pixels]] = defaultdict(dict)  # keyed by content: typefaces repeat each other
    for path, found in available.items():
        if wanted & found:
            for character, drawing in _draw_or_nothing(path, height, wanted).items():
                drawings[character].setdefault(drawing.tobytes(), drawing)
    kept = {name: list(drawings[name].values()) for name in sorted(drawings) if len(drawings[name]) >= min_drawings}
    if not kept:
        raise ValueError(
            f"the {len(available)} fonts found draw no character in {min_drawings} ways: "
            "pass more fonts, or a smaller min_drawings"
        )
    images = np.stack([drawing for drawings_of_one in kept.values() for drawing in drawings_of_one])
    return ImageSet(images[:, None], tuple(map(len, kept.values())), tuple(kept))


def _characters_or_none(path: Path) -> frozenset[str]:
    try:
        return characters_of(path)
    except ValueError as error:
        _logger.warning("%s; skipped", error)
        return frozenset()


def _draw_or_nothing(path: Path, image_size: int, characters: Iterable[str]) -> dict[str, Pixels]:
    try:
        return draw_all(path, image_size, characters)
    except ValueError as error:
        _logger.warning("%s; skipped", error)
        return {}
