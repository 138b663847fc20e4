"""Build the embedded `glyphs-latin` from the typefaces of Debian's package fonts-aenigma.

    apt-get install fonts-aenigma
    python -m metagan_fast.tasks.build_glyphs_latin [FOLDER OF TYPEFACES] [OUTPUT.npz]

The same typefaces and the same versions of Pillow and FreeType give the same bytes. Likeness is the
correlation of drawings reduced to 4 bits and 16x16: its products are sums of small integers, which float32
holds exactly, so that no BLAS changes a choice.
"""

from __future__ import annotations

import argparse
import itertools
import string
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import embedded
from .fonts import Typeface, find_typefaces
from .images import Pixels

IMAGE_SIZE = 32
DRAWINGS_A_CLASS = 150
FEWEST_DRAWINGS = 60
# In order of preference: the first names the class of characters that are folded together.
CHARACTERS = string.ascii_uppercase + string.digits + string.ascii_lowercase + string.punctuation + "Ææ"

LEAST_INK = 0.065  # of the image, in the median typeface: below it a drawing is specks (".", "-", ":")
ALIKE = 0.8  # correlation of two drawings, each stretched to fill the image
FOLD_CASES = 0.25  # share of typefaces that draw both cases of a letter alike: they become one class
FOLD_OTHERS = 0.65  # the same for any other two characters
REPEATED = 0.95  # correlation above which a typeface repeats itself for a later class
DUPLICATE = 0.97  # correlation above which two drawings of a class are one
NEIGHBOURS = 10
JUDGES = 3  # every third typeface provides neighbours, which are enough at a third of the time
LEGIBLE_TYPEFACE = 0.4  # mean share of a typeface's drawings' neighbours that belong to their class
LEGIBLE_DRAWING = 0.2  # the same share for one drawing

Features = NDArray[np.float32]
Table = dict[str, dict[str, Pixels]]  # typeface -> character -> drawing


def draw(path: Path) -> dict[str, Pixels]:
    """Return one typeface's drawings; none if the file cannot be used."""
    try:
        typeface = Typeface(path, IMAGE_SIZE)
    except ValueError as error:
        print(error)
        return {}
    drawings = {character: typeface.draw(character) for character in CHARACTERS}
    return {character: drawing for character, drawing in drawings.items() if drawing is not None and drawing.any()}


def features(drawings: Iterable[Pixels], stretch: bool = False) -> Features:
    """Return `[n, 256]`: 16x16 sums of 4-bit pixels, at most 60 each."""
    return np.stack([_reduced(_stretched(drawing) if stretch else drawing) for drawing in drawings])


def _reduced(drawing: Pixels) -> Features:
    levels = (drawing.astype(np.uint16) * 15 + 127) // 255
    return levels.reshape(16, 2, 16, 2).sum((1, 3)).astype(np.float32).ravel()


def _stretched(drawing: Pixels) -> Pixels:
    image = Image.fromarray(drawing)
    return np.asarray(image.resize(image.size, Image.Resampling.BILINEAR, box=image.getbbox()))


def correlation(a: Features, b: Features) -> Features:
    """Return the correlation of every row of `a` with every row of `b`."""
    n = np.float32(a.shape[1])
    mean_a, mean_b = a.sum(1) / n, b.sum(1) / n
    spread_a, spread_b = (np.sqrt(np.maximum((x * x).sum(1) - n * m * m, 1)) for x, m in ((a, mean_a), (b, mean_b)))
    result = a @ b.T
    result -= np.outer(n * mean_a, mean_b)
    result /= spread_a[:, None]
    result /= spread_b
    return result


def with_enough_ink(table: Table) -> list[str]:
    """Return the characters that are more than specks in the median typeface."""
    ink = {c: [drawings[c].mean() / 255 for drawings in table.values() if c in drawings] for c in CHARACTERS}
    return [c for c in CHARACTERS if ink[c] and np.median(ink[c]) >= LEAST_INK]


def fold(table: Table, characters: list[str]) -> dict[str, list[str]]:
    """Return class -> characters: those that enough typefaces draw alike share the class of the first."""
    alike = np.zeros((len(characters), len(characters)))
    both = np.zeros_like(alike)
    for drawings in table.values():
        present = [index for index, c in enumerate(characters) if c in drawings]
        if present:
            rows = features((drawings[characters[index]] for index in present), stretch=True)
            alike[np.ix_(present, present)] += correlation(rows, rows) > ALIKE
            both[np.ix_(present, present)] += 1
    share = alike / np.maximum(both, 1)
    classes: dict[str, list[str]] = {}
    for index, character in enumerate(characters):
        for first in classes:
            same_letter = first.lower() == character.lower()
            if share[characters.index(first), index] >= (FOLD_CASES if same_letter else FOLD_OTHERS):
                classes[first].append(character)
                break
        else:
            classes[character] = [character]
    return classes


def label(table: Table, classes: dict[str, list[str]]) -> list[tuple[str, str, Pixels]]:
    """Return (typeface, class, drawing), one a class and typeface, without repeated drawings of a typeface."""
    rows: list[tuple[str, str, Pixels]] = []
    for typeface, drawings in table.items():
        kept: list[tuple[str, Pixels]] = []
        for name, members in classes.items():
            drawing = next((drawings[c] for c in members if c in drawings), None)
            if drawing is not None:
                kept.append((name, drawing))
        if not kept:
            continue
        earlier = np.tril(correlation(*[features(d for _, d in kept)] * 2) > REPEATED, -1)
        repeats = [bool(row.any()) for row in earlier]
        rows += [(typeface, *row) for row, repeat in zip(kept, repeats, strict=True) if not repeat]
    return rows


def legibility(typefaces: NDArray[np.int64], labels: NDArray[np.int64], rows: Features) -> NDArray[np.float64]:
    """Return for each drawing the share of its nearest neighbours, in other typefaces, of the same class."""
    judges = np.flatnonzero(typefaces % JUDGES == 0)
    shares = []
    for chunk in np.array_split(np.arange(len(rows)), -(-len(rows) // 1000)):
        likeness = correlation(rows[chunk], rows[judges])
        likeness[typefaces[chunk, None] == typefaces[judges]] = -2
        nearest = np.argpartition(likeness, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
        shares.append((labels[judges[nearest]] == labels[chunk, None]).mean(1))
    return np.concatenate(shares)


def diverse(rows: Features, preference: NDArray[np.float64], count: int, duplicate: float = DUPLICATE) -> list[int]:
    """Return at most `count` distinct rows: drop the less legible of the two most alike until they fit."""
    likeness = correlation(rows, rows)
    np.fill_diagonal(likeness, -2)
    kept = set(range(len(rows)))
    while len(kept) > 1:
        pair = np.unravel_index(np.argmax(likeness), likeness.shape)
        if len(kept) <= count and likeness[pair] <= duplicate:
            break
        worse = int(min(pair, key=lambda index: (preference[index], -index)))
        kept.remove(worse)
        likeness[worse] = likeness[:, worse] = -2
    return sorted(kept)


def choose(table: Table, classes: dict[str, list[str]]) -> dict[str, list[Pixels]]:
    """Return class -> legible, distinct drawings."""
    rows = label(table, classes)
    names = list(classes)
    faces = {typeface: index for index, typeface in enumerate(table)}
    typefaces = np.array([faces[typeface] for typeface, _, _ in rows])
    labels = np.array([names.index(name) for _, name, _ in rows])
    vectors = features(drawing for _, _, drawing in rows)
    shares = legibility(typefaces, labels, vectors)
    of_typeface = np.bincount(typefaces, shares) / np.maximum(np.bincount(typefaces), 1)
    good = (of_typeface[typefaces] >= LEGIBLE_TYPEFACE) & (shares >= LEGIBLE_DRAWING)
    chosen: dict[str, list[Pixels]] = {}
    for index, name in enumerate(names):
        mine = np.flatnonzero(good & (labels == index))
        if len(mine):
            kept = diverse(vectors[mine], shares[mine], DRAWINGS_A_CLASS)
            if len(kept) >= FEWEST_DRAWINGS:
                chosen[name] = [rows[mine[row]][2] for row in kept]
    return chosen


def main() -> None:
    """Draw, fold, choose and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("typefaces", nargs="?", type=Path, default=Path("/usr/share/fonts/truetype/aenigma"))
    parser.add_argument("output", nargs="?", type=Path, default=Path(__file__).parent / "data" / "glyphs-latin.npz")
    arguments = parser.parse_args()
    paths = find_typefaces([arguments.typefaces])
    with ProcessPoolExecutor() as pool:
        table = dict(zip((path.name for path in paths), pool.map(draw, paths, chunksize=8), strict=True))
    classes = fold(table, with_enough_ink(table))
    chosen = choose(table, classes)
    images = np.stack(list(itertools.chain.from_iterable(chosen.values())))
    arguments.output.parent.mkdir(exist_ok=True)
    embedded.save_glyphs(arguments.output, images, [len(drawings) for drawings in chosen.values()], list(chosen))
    for name, members in classes.items():
        print(f"{name}: {len(chosen.get(name, []))} drawings of {' '.join(members)}")
    print(f"{len(chosen)} classes, {len(images)} drawings, {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
