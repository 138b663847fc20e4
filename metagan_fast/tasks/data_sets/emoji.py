"""`emoji`: each emoji a class, in colour; its images are its drawings by several vendors, in all skin tones."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..images import Pixels
from . import svg
from .archives import Archive, Progress
from .collection import Collection, Drawing, parts_of
from .parallel import each
from .scripts import is_reserved

FEWEST = 8  # images of a class that is kept: 4 shots, and as many to judge by
SAME = 4.0  # mean difference of two drawings, of 255, up to which they count as one
BACKGROUND = "#ffffff"

CHANGES = "Emoji of the packages named, drawn on a white background, cropped to their ink, centred and scaled."

_TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
_SELECTOR = "fe0f"
_PEOPLE = ("1f468", "1f469", "1f9d1")  # man, woman, person, which others follow after a joiner
_JOINER = "200d"
_PICTURED = frozenset(
    ("1f004", "1f3ee", "1f376", "1f3e3", "1f4ae", "1f4b4", "1f4b9", "1f4db", "1f9e7", "1f96e", "1f38f", "1f3b4")
)
"""Emoji that some vendors draw with a Han or Kana character, such as a red envelope."""


def is_left_out(code: str) -> bool:
    """Return whether an emoji is, means or shows characters of a reserved script, or is a flag."""
    points = code.split("-")
    characters = [chr(int(point, 16)) for point in points]
    flag = any("\U0001f1e6" <= c <= "\U0001f1ff" or "\U000e0000" <= c <= "\U000e007f" for c in characters)
    return flag or not _PICTURED.isdisjoint(points) or any(map(is_reserved, characters))


def plain(code: str) -> str:
    """Return an emoji's code points without skin tones and variation selectors."""
    return "-".join(point for point in code.lower().split("-") if point not in (*_TONES, _SELECTOR))


def base(code: str) -> str:
    """Return the code point that an emoji and its variants by person or gender share."""
    points = [point for point in plain(code).split("-") if point not in (_JOINER, "2640", "2642")]
    others = [point for point in points if point not in _PEOPLE]
    return (others or points)[0]


def build(pinned: Sequence[Archive], paths: Sequence[Path], size: int, progress: Progress) -> Collection:
    """Draw the emoji that enough vendors have; the same packages give the same images."""
    vendors = [(archive, svg.read_icon_set(archive, path)) for archive, path in zip(pinned, paths, strict=True)]
    codes: dict[str, str] = {}
    for _, icons in vendors:
        codes |= {_letters(name): code for code, name in icons.characters.items() if _letters(name) not in codes}
    for _, icons in vendors:
        for alias, entry in icons.aliases.items():
            code = codes.get(_letters(entry["parent"]))
            if code is not None:
                codes.setdefault(_letters(alias), code)
    places: dict[str, list[tuple[Archive, svg.IconSet, str]]] = defaultdict(list)
    names: dict[str, str] = {}
    for archive, icons in vendors:
        own = {name: code for code, name in icons.characters.items()}
        for name in sorted(icons.icons):
            code = own.get(name) or codes.get(_letters(name))
            if code is None or is_left_out(code):
                continue
            places[plain(code)].append((archive, icons, name))
            if not any(tone in code for tone in _TONES):
                names.setdefault(plain(code), name)
    enough = {code: found for code, found in places.items() if len(found) >= FEWEST and code in names}
    wanted = sorted(enough)
    documents = [[svg.as_svg(icons, name, "black") for _, icons, name in enough[code]] for code in wanted]
    images: list[Pixels] = []
    drawings: list[Drawing] = []
    for code, drawn in zip(
        wanted, each(functools.partial(_draw, size), documents, "emoji drawn", progress), strict=True
    ):
        if len(drawn) >= FEWEST:
            group = names.get(base(code), base(code))
            images += drawn.values()
            drawings += [
                Drawing(names[code], group, archive, name)
                for archive, _, name in (enough[code][index] for index in drawn)
            ]
    if not images:
        raise ValueError(f"the {len(paths)} packages draw no emoji with {FEWEST} images")
    return Collection("emoji", np.stack(images), drawings, CHANGES, parts_of("emoji", drawings))


def _draw(size: int, documents: Sequence[str | None]) -> dict[int, Pixels]:
    """Return the different drawings of an emoji, by their index."""
    kept: dict[int, Pixels] = {}
    for index, document in enumerate(documents):
        drawing = None if document is None else svg.colour(document, size, BACKGROUND)
        if drawing is not None and not any(_is_same(drawing, other) for other in kept.values()):
            kept[index] = drawing
    return kept


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _is_same(drawing: Pixels, other: Pixels) -> bool:
    return float(np.abs(drawing.astype(np.int16) - other).mean()) <= SAME
