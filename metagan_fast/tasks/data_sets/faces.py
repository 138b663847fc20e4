"""Faces of font files, their names, and their drawings of a script's characters."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont

from ..build_glyphs_latin import correlation, features
from ..fonts import Typeface
from ..images import Pixels
from .scripts import Script

IMAGE_SIZE = 32
BRIGHTEST = 32  # pixels
FAINT = 100  # mean of a drawing's brightest pixels below which its strokes are too thin for the image
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
