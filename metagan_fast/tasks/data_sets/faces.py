"""Faces of font files, their names and licences, and their drawings of a script's characters."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont

from ..build_glyphs_latin import correlation, features
from ..fonts import Typeface
from ..images import Pixels
from .licences import licence_of
from .scripts import Script

IMAGE_SIZE = 32
BRIGHTEST = 32  # pixels
FAINT = 100  # mean of a drawing's brightest pixels below which its strokes are too thin for the image
FONTSOURCE = re.compile(r"package/(files/.+-\d00-normal\.woff|LICENSE)")
"""Files of an npm package `@fontsource/...` that are used: upright fonts and the licence."""
SAME_DIGITS = 0.8  # median correlation with the European digits, stretched to fill the image: own ones reach 0.65


@dataclass(frozen=True)
class Face:
    """One style of a family, a weight or a width, for one script, and its font files."""

    package: str
    script: str
    style: str
    files: tuple[Path, ...]


def draw(face: Face, script: Script) -> dict[str, Pixels]:
    """Return the face's drawings; a repeated drawing counts for its first character alone.

    Faint drawings are left out, and the digits of a face that draws European ones in their place.
    """
    drawings: dict[str, Pixels] = {}
    seen: set[bytes] = set()
    scale = script.scale_characters
    for path in face.files:
        try:
            typeface = Typeface(path, IMAGE_SIZE, scale)
        except ValueError:
            continue
        for character in script.characters:
            drawing = typeface.draw(character) if character not in drawings else None
            if drawing is not None and not is_faint(drawing) and drawing.tobytes() not in seen:
                seen.add(drawing.tobytes())
                drawings[character] = drawing
    return drawings if _has_own_digits(face, drawings) else {c: d for c, d in drawings.items() if not c.isdecimal()}


def is_faint(drawing: Pixels) -> bool:
    """Return whether the brightest pixels are dark; a blank drawing's are."""
    return bool(np.partition(drawing.ravel(), -BRIGHTEST)[-BRIGHTEST:].mean() < FAINT)


def _has_own_digits(face: Face, drawings: dict[str, Pixels]) -> bool:
    """Return False if the face draws European digits in place of the script's."""
    european = _european_digits(face)
    digits = {c: str(int(c)) for c in drawings if c.isdecimal()}
    pairs = [(drawings[c], european[digit]) for c, digit in digits.items() if digit in european]
    known = [features(pair, stretch=True) for pair in pairs]
    return not known or bool(np.median([correlation(pair[:1], pair[1:]) for pair in known]) < SAME_DIGITS)


def _european_digits(face: Face) -> dict[str, Pixels]:
    for path in face.files:
        stem, _, rest = path.name.rpartition(f"-{face.style}-")
        latin = path.with_name(f"{stem.rpartition('-')[0]}-latin-{face.style}-{rest}") if stem else path
        if latin.exists():
            typeface = Typeface(latin, IMAGE_SIZE)
            return {digit: drawing for digit in "0123456789" if (drawing := typeface.draw(digit)) is not None}
    return {}


def names_of(path: Path) -> dict[int, str]:
    """Return a font's English names: 0 copyright, 4 full name, 5 version, 13 and 14 licence."""
    with TTFont(io.BytesIO(path.read_bytes()), lazy=True, fontNumber=0) as font:
        return {key: str(font["name"].getDebugName(key) or "") for key in (0, 4, 5, 13, 14)}


def own_licence(path: Path, names: Mapping[int, str]) -> str | None:
    """Return the licence that a font's names and the LICENSE beside its file agree on; None without one."""
    beside = path.with_name("LICENSE")
    text = beside.read_text(encoding="utf-8", errors="replace") if beside.exists() else ""
    return licence_of([text, names[13], names[14]])


def fontsource_faces(folder: Path, package: str, scripts: Mapping[str, Script]) -> Iterator[Face]:
    """Yield the faces of an unpacked npm package `@fontsource/...`, whose files have a subset of characters each."""
    stem = package.rpartition("/")[2]
    by_subset: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in sorted(folder.glob("*.woff")):
        subset, _, number = path.name.removesuffix("-normal.woff").rpartition("-")
        by_subset[subset.removeprefix(f"{stem}-")][int(number)] = path
    for name, script in scripts.items():
        subsets = [s for s in by_subset if s in script.subsets or (script.code == "Hang" and s.isdigit())]
        weights = sorted({weight for subset in subsets for weight in by_subset[subset]})
        for weight in _spread(weights, script.weights):
            files = tuple(by_subset[subset][weight] for subset in subsets if weight in by_subset[subset])
            yield Face(package, name, str(weight), files)


def _spread(weights: list[int], count: int) -> list[int]:
    """Return all weights, or where there are more than `count` the lightest, regular, bold and the heaviest."""
    if len(weights) <= count:
        return weights
    wanted = (weights[0], 400, 700, weights[-1])
    return sorted({min(weights, key=lambda weight: abs(weight - target)) for target in wanted})
