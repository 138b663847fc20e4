"""`glyphs-large`: characters of many scripts, drawn by fonts of Debian's packages and of npm's `@fontsource`."""

from __future__ import annotations

import functools
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..fonts import Typeface, characters_of
from ..images import Pixels
from . import choose
from .archives import Archive, Progress, unpack
from .collection import Collection, Drawing
from .faces import FONTSOURCE, IMAGE_SIZE, Face, draw, fontsource_faces, names_of, own_licence
from .parallel import each
from .scripts import LARGE_SCRIPTS, is_reserved

FEWEST = {"train": 12, "validation": 12, "test": 12}  # distinct drawings of a class
LEAST_SHARE = 0.15  # of a script's characters, from which on a font is drawn
LONGEST_AUTHOR = 200  # characters of a font's copyright notice that are kept

CHANGES = "Characters of the fonts of the packages named, drawn in grey, white on black, centred and scaled."

_FONT = re.compile(r".*/([^/]+)\.(?:ttf|otf|ttc)")
_SLANTED = re.compile(r"italic|oblique|slanted|inclined", re.IGNORECASE)
_WEIGHT = re.compile(r"(?:Extra|Ultra|Semi)?(?:Bold|Light|Regular|Black|Thin|Medium|E?B|R|L)$")
_FEW = {"Regular", "Bold", ""}
_MANY = {
    *("Light", "Regular", "Bold", "Black", "CondensedLight", "CondensedBlack", ""),
    *("ExtraCondensed", "ExtraCondensedThin", "ExtraCondensedBold", "Thin"),
}
"""Styles that are drawn of a Noto family, which has each weight in each width, of common and of other scripts."""
_COMMON = {"Latin", "Greek", "Cyrillic"}
"""Scripts that are drawn of Debian's fonts alone, of which enough have them."""
_OTHERS = {name: script for name, script in LARGE_SCRIPTS.items() if name not in _COMMON}

logging.getLogger("fontTools").setLevel(logging.ERROR)  # its warnings are of harmless oddities in old fonts


@dataclass(frozen=True)
class _Font:
    """A font of a package: one file with all its scripts, or the faces whose files have a subset each."""

    archive: Archive
    faces: tuple[Face, ...]

    @property
    def path(self) -> Path:
        """The font's first file."""
        return self.faces[0].files[0]

    @property
    def family(self) -> str:
        """Family of all weights and widths: npm's packages have one each."""
        if self.archive.source == "npm":
            return self.archive.family
        stem = self.path.stem.partition("-")[0]
        return _WEIGHT.sub("", stem).lower() or stem


@dataclass(frozen=True)
class _Drawn:
    """A face's drawings of its script's characters, and whose they are."""

    font: _Font
    face: Face
    licence: str
    author: str
    drawings: dict[str, Pixels]


def is_wanted(name: str) -> bool:
    """Return whether a file of a package is an upright font that is drawn, or a licence, by its name."""
    if FONTSOURCE.fullmatch(name):
        return True
    found = _FONT.fullmatch(name)
    if found is None or _SLANTED.search(found[1]):
        return False
    family, _, style = found[1].partition("-")
    return not family.startswith("Noto") or style in _MANY


def build(pinned: Sequence[Archive], paths: Sequence[Path], size: int, progress: Progress) -> Collection:
    """Draw the fonts, and choose classes and drawings; the same packages, Pillow and FreeType give the same images."""
    fonts: list[_Font] = []
    for done, (archive, path) in enumerate(zip(pinned, paths, strict=True), 1):
        fonts += _fonts(archive, unpack(archive, path, is_wanted))
        progress("packages unpacked", done, len(pinned))
    drawn = [one for found in each(_draw_font, fonts, "fonts drawn", progress) for one in found]
    rows = [(index, c, pixels) for index, one in enumerate(drawn) for c, pixels in one.drawings.items()]
    if not rows:
        raise ValueError(f"no font of the {len(paths)} packages draws any of the scripts")
    kept = _choose(drawn, rows, progress)
    if any(is_reserved(c) for _, c in kept):
        raise ValueError("a character of a reserved script: remove it from LARGE_SCRIPTS")
    order = [(name, row) for name in sorted(kept) for row in kept[name]]
    images = [rows[row][2] for _, row in order]
    if size != IMAGE_SIZE:
        images = _draw_again(drawn, [(rows[row][0], rows[row][1]) for _, row in order], size, progress)
    drawings = []
    for (script, c), row in order:
        one = drawn[rows[row][0]]
        item = f"{one.font.path.stem} U+{ord(c):04X}"
        drawings.append(Drawing(c, script, one.font.archive, item, one.licence, one.author, one.font.family))
    parts = {drawing.label: LARGE_SCRIPTS[drawing.group].part for drawing in drawings}
    return Collection("glyphs-large", np.stack(images), drawings, CHANGES, parts)


def _fonts(archive: Archive, folder: Path) -> Iterator[_Font]:
    """Yield the fonts of an unpacked package; of one in two formats, not the `.otf`."""
    if archive.source == "npm":
        for face in fontsource_faces(folder, archive.name, _OTHERS):
            yield _Font(archive, (face,))
        return
    files = sorted(folder.iterdir())
    others = {path.stem for path in files if path.suffix != ".otf"}
    for path in files:
        if path.suffix != ".otf" or path.stem not in others:
            style = path.stem.partition("-")[2]
            yield _Font(archive, tuple(Face(archive.name, script, style, (path,)) for script in LARGE_SCRIPTS))


def _draw_font(font: _Font) -> list[_Drawn]:
    """Return a font's drawings of each script that it has; none of a font without a licence or that cannot be read."""
    try:
        names = names_of(font.path)
        characters = frozenset[str]().union(*(characters_of(path) for path in font.faces[0].files))
    except Exception:  # fontTools raises many kinds for broken tables
        return []
    licence = own_licence(font.path, names)
    if licence is None:
        return []
    author = " ".join(names[0].split())[:LONGEST_AUTHOR] or font.archive.name
    found = []
    for face in font.faces:
        script = LARGE_SCRIPTS[face.script]
        if _is_drawn(face) and len(characters.intersection(script.characters)) >= LEAST_SHARE * len(script.characters):
            drawings = draw(face, script)
            if drawings:
                found.append(_Drawn(font, face, licence, author, drawings))
    return found


def _is_drawn(face: Face) -> bool:
    """Return whether a face's style is drawn: few of Latin, which every font has, and of Noto's families."""
    if face.script == "Latin":
        return face.style in _FEW
    if not face.files[0].name.startswith("Noto"):
        return True
    return face.style in (_FEW if face.script in _COMMON else _MANY)


def _choose(drawn: Sequence[_Drawn], rows: Sequence[tuple[int, str, Pixels]], progress: Progress) -> choose.Classes:
    """Return the rows of each class that is kept."""
    progress("drawings chosen", 0, 3)
    face, character, drawings = (list(column) for column in zip(*rows, strict=True))
    script = [drawn[index].face.script for index in face]
    families = np.unique([one.font.family for one in drawn], return_inverse=True)[1]
    designs = np.unique([one.font.path.stem for one in drawn], return_inverse=True)[1]
    family, design = (of_face[face].tolist() for of_face in (families, designs))
    classes, legibilities = choose.legible(script, character, face, family, drawings, LARGE_SCRIPTS)
    progress("drawings chosen", 1, 3)
    candidates = choose.distinct(classes, legibilities, drawings, LARGE_SCRIPTS, FEWEST)
    progress("drawings chosen", 2, 3)
    leaving = choose.alike(candidates, classes, design, drawings, LARGE_SCRIPTS)
    progress("drawings chosen", 3, 3)
    return {name: mine for name, mine in candidates.items() if name not in leaving}


def _draw_again(
    drawn: Sequence[_Drawn], wanted: Sequence[tuple[int, str]], size: int, progress: Progress
) -> list[Pixels]:
    """Return the chosen drawings at another size."""
    by_face: dict[int, list[str]] = defaultdict(list)
    for index, c in wanted:
        by_face[index].append(c)
    items = [(drawn[index].face, tuple(characters)) for index, characters in by_face.items()]
    again = each(functools.partial(_draw_characters, size), items, "images drawn", progress)
    of_face = dict(zip(by_face, again, strict=True))
    blank = np.zeros((size, size), np.uint8)
    return [of_face[index].get(c, blank) for index, c in wanted]


def _draw_characters(size: int, item: tuple[Face, tuple[str, ...]]) -> dict[str, Pixels]:
    face, characters = item
    found: dict[str, Pixels] = {}
    for path in face.files:
        typeface = Typeface(path, size, LARGE_SCRIPTS[face.script].scale_characters)
        found |= {c: drawing for c in characters if c not in found and (drawing := typeface.draw(c)) is not None}
    return found
