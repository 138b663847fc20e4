"""Drawings of every script's characters by every typeface of the pinned packages."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont

from metagan_fast.tasks.build_glyphs_latin import correlation, features
from metagan_fast.tasks.fonts import Typeface
from metagan_fast.tasks.images import Pixels

from .scripts import SCRIPTS, Script

IMAGE_SIZE = 32
BRIGHTEST = 32  # pixels
FAINT = 100  # mean of a drawing's brightest pixels below which its strokes are too thin for the image
SAME_DIGITS = 0.8  # median correlation with the European digits, stretched to fill the image: own ones reach 0.65
_FONTSOURCE = re.compile(r"package/(files/.+-\d00-normal\.woff|LICENSE)")
_NOTO = re.compile(r".*/Noto(?:Sans|Serif)(\w+)-((?:Extra)?Condensed(?:Thin|Light|Bold|Black)?)\.ttf")
"""Narrow styles, which npm's packages lack, of the scripts that few families have."""
_TEXTS = {  # words of a licence text -> its SPDX name; any other text refuses the font
    "OFL-1.1": ("sil open font license", "scripts.sil.org/ofl", "openfontlicense.org"),
    "Apache-2.0": ("apache license, version 2.0", "apache.org/licenses/license-2.0"),
}


_RARE = {name for name, script in SCRIPTS.items() if script.weights > 4}


@dataclass(frozen=True)
class Face:
    """One style of a family, a weight or a width, for one script, and its font files."""

    package: str
    script: str
    style: str
    files: tuple[Path, ...]


def licence_of(texts: list[str]) -> str | None:
    """Return the SPDX name that all the texts agree on; None if one says otherwise or none says anything."""
    found = set()
    for text in filter(None, (" ".join(text.lower().split()) for text in texts)):
        names = {name for name, words in _TEXTS.items() if any(word in text for word in words)}
        found.add(names.pop() if len(names) == 1 else None)
    return found.pop() if len(found) == 1 else None


def unpack(archive: Path, folder: Path) -> None:
    """Extract a package's fonts and the licence beside them: upright `.woff` of npm's, narrow `.ttf` of Debian's."""
    folder.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".deb":
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE) as files,
            tarfile.open(fileobj=files.stdout, mode="r|") as tar,
        ):
            _extract(tar, folder, lambda name: (found := _NOTO.fullmatch(name)) is not None and found[1] in _RARE)
    else:
        with tarfile.open(archive) as tar:
            _extract(tar, folder, lambda name: _FONTSOURCE.fullmatch(name) is not None)


def _extract(tar: tarfile.TarFile, folder: Path, wanted: Callable[[str], bool]) -> None:
    for member in tar:
        if member.isfile() and wanted(member.name):
            data = tar.extractfile(member)
            assert data is not None
            (folder / Path(member.name).name).write_bytes(data.read())


def faces(folder: Path, package: str) -> Iterator[Face]:
    """Yield the faces of an unpacked package."""
    for path in sorted(folder.glob("*.ttf")):
        found = _NOTO.fullmatch(str(path))
        assert found is not None
        yield Face(package, found[1], path.stem.partition("-")[2], (path,))
    stem = package.rpartition("/")[2]
    by_subset: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in sorted(folder.glob("*.woff")):
        subset, _, weight = path.name.removesuffix("-normal.woff").rpartition("-")
        by_subset[subset.removeprefix(f"{stem}-")][int(weight)] = path
    for name, script in SCRIPTS.items():
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
    pairs = [(drawing, european.get(str(int(c)))) for c, drawing in drawings.items() if c.isdecimal()]
    known = [features(pair, stretch=True) for pair in pairs if pair[1] is not None]
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
    with TTFont(io.BytesIO(path.read_bytes()), lazy=True) as font:
        return {key: str(font["name"].getDebugName(key) or "") for key in (0, 4, 5, 13, 14)}
