"""Choice of the drawings: legible, distinct, and of characters that no other part draws alike.

Likeness is the correlation of two drawings reduced to 16x16 sums of 4-bit pixels; these are small integers, which
float32 products add exactly, so that no BLAS changes a choice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..build_glyphs_latin import correlation, diverse, features
from ..images import Pixels
from .scripts import SCRIPTS, Script

DUPLICATE = 0.95  # correlation above which two drawings of a class count as one
FEWEST = {"train": 12, "validation": 40, "test": 40}  # distinct drawings of a class that is kept
MOST = {"train": 20, "validation": 48, "test": 48}
NEIGHBOURS = 10  # at most; half of the faces of other families, where they are few
MOST_JUDGES = 12_000  # drawings that provide neighbours
BLOCK = 80  # classes among which a drawing's neighbours are sought: more would be hard to tell apart for any drawing
LEGIBLE_FACE = 0.3  # mean share of a face's drawings' nearest neighbours that belong to their class
LEGIBLE_DRAWING = 0.2  # the same share for one drawing
AT_ONCE = 500  # drawings that are compared with all others at once, about
ALIKE = 0.92  # correlation above which two drawings, each stretched to fill the image, look alike
SHARED = 0.3  # share of a class's drawings that look like one of another class, from which on the two are alike
MOSTLY = 0.5  # share of the designs that draw two classes alike, from which on they are alike
FEWEST_DESIGNS = 5  # that have both
ORDER = ("test", "validation", "train")  # of two classes alike, the one in the earlier part stays

Name = tuple[str, str]
"""A class: its script and its character."""

Classes = dict[Name, list[int]]
"""Rows of each class."""


def legible(
    script: Sequence[str],
    character: Sequence[str],
    face: Sequence[int],
    family: Sequence[int],
    drawings: Sequence[Pixels],
    scripts: Mapping[str, Script] = SCRIPTS,
) -> tuple[Classes, NDArray[np.float64]]:
    """Return each class's rows that resemble the same character of other families, and the legibility of all rows.

    Args:
        script, character, face, family, drawings: of each row; faces and families are numbered.
        scripts: by name, with the characters that were drawn.
    """
    by_script: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(script):
        by_script[name].append(row)
    classes: Classes = {}
    legibilities = np.zeros(len(drawings))
    for name, rows in by_script.items():
        vectors = features(drawings[row] for row in rows)
        names = {c: index for index, c in enumerate(scripts[name].characters)}
        labels = np.array([names[character[row]] for row in rows])
        numbers = np.unique([face[row] for row in rows], return_inverse=True)[1]
        families = np.array([family[row] for row in rows])
        shares = np.zeros(len(rows))
        blocks = -(-len(names) // BLOCK)
        for block in range(blocks):
            mine = np.flatnonzero(labels % blocks == block)
            if len(mine):
                shares[mine] = legibility(numbers[mine], families[mine], labels[mine], vectors[mine])
        of_face = np.bincount(numbers, shares) / np.bincount(numbers)
        good = (of_face[numbers] >= LEGIBLE_FACE) & (shares >= LEGIBLE_DRAWING)
        legibilities[rows] = shares
        for c, label in names.items():
            classes[name, c] = [rows[index] for index in np.flatnonzero(good & (labels == label))]
    return classes, legibilities


def distinct(
    classes: Classes,
    legibilities: NDArray[np.float64],
    drawings: Sequence[Pixels],
    scripts: Mapping[str, Script] = SCRIPTS,
    fewest: Mapping[str, int] = FEWEST,
) -> Classes:
    """Return the classes with enough distinct rows, and these."""
    chosen: Classes = {}
    for name, rows in classes.items():
        part = scripts[name[0]].part
        if len(rows) >= fewest[part]:
            vectors = features(drawings[row] for row in rows)
            kept = diverse(vectors, legibilities[rows], MOST[part], DUPLICATE)
            if len(kept) >= fewest[part]:
                chosen[name] = [rows[index] for index in kept]
    return chosen


def legibility(
    faces: NDArray[np.int64], families: NDArray[np.int64], labels: NDArray[np.int64], vectors: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return for each drawing the share of its nearest neighbours, in other families, of the same class."""
    judges = np.flatnonzero(faces % -(-len(vectors) // MOST_JUDGES) == 0)
    of_family = Counter(families[judges[np.unique(faces[judges], return_index=True)[1]]].tolist())
    neighbours = min(NEIGHBOURS, max(1, (sum(of_family.values()) - max(of_family.values())) // 2))
    shares = []
    for chunk in np.array_split(np.arange(len(vectors)), -(-len(vectors) // 1000)):
        likeness = correlation(vectors[chunk], vectors[judges])
        likeness[families[chunk, None] == families[judges]] = -2
        nearest = np.argpartition(likeness, -neighbours, axis=1)[:, -neighbours:]
        shares.append((labels[judges[nearest]] == labels[chunk, None]).mean(1))
    return np.concatenate(shares)


def alike(
    chosen: Classes,
    classes: Classes,
    design: Sequence[int],
    drawings: Sequence[Pixels],
    scripts: Mapping[str, Script] = SCRIPTS,
) -> dict[Name, Name]:
    """Return the chosen classes that leave, each with the class that it looks like and that stays.

    Two classes are alike if many of the chosen drawings of one look like one of the other's, or if most designs that
    have both draw them alike. Of two in one part the first stays; of two in different parts, the one held out.

    Args:
        chosen: rows to keep.
        classes: all legible rows.
        design: number of each row's family and style, across scripts.
        drawings: of each row.
        scripts: by name, with the part of each.
    """
    names = sorted(chosen, key=lambda name: ORDER.index(scripts[name[0]].part))  # stable: scripts in their order
    vectors = features((drawings[row] for name in names for row in chosen[name]), stretch=True)
    shares = shared(vectors, [len(chosen[name]) for name in names])
    are_alike = np.maximum(shares, shares.T) >= SHARED
    are_alike |= _drawn_alike([classes[name] for name in names], design, drawings) >= MOSTLY
    leaving: dict[Name, Name] = {}
    for index, name in enumerate(names):
        for earlier in range(index):
            if names[earlier] not in leaving and are_alike[index, earlier]:
                leaving[name] = names[earlier]
                break
    return leaving


def shared(vectors: NDArray[np.float32], counts: Sequence[int]) -> NDArray[np.float64]:
    """Return for each two classes the share of the first one's drawings that look like one of the second's.

    Args:
        vectors: features of the drawings, class after class.
        counts: drawings of each class.
    """
    starts = np.concatenate([[0], np.cumsum(counts)])
    shares = []
    for block in np.array_split(np.arange(len(counts)), -(-len(vectors) // AT_ONCE)):
        if len(block):
            first, last = starts[block[0]], starts[block[-1] + 1]
            likeness = np.maximum.reduceat(correlation(vectors[first:last], vectors), starts[:-1], axis=1)
            sums = np.add.reduceat(likeness > ALIKE, starts[block] - first, axis=0, dtype=np.int64)
            shares.append(sums / np.asarray(counts)[block, None])
    return np.concatenate(shares)


def _drawn_alike(
    classes: Sequence[Sequence[int]], design: Sequence[int], drawings: Sequence[Pixels]
) -> NDArray[np.float64]:
    """Return for each two classes the share of designs with both that draw them alike."""
    by_design: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for index, rows in enumerate(classes):
        for row in rows:
            by_design[design[row]].append((index, row))
    alike_in, both_in = (np.zeros((len(classes), len(classes))) for _ in range(2))
    for pairs in by_design.values():
        present = [index for index, _ in pairs]
        vectors = features((drawings[row] for _, row in pairs), stretch=True)
        alike_in[np.ix_(present, present)] += correlation(vectors, vectors) > ALIKE
        both_in[np.ix_(present, present)] += 1
    return np.where(both_in >= FEWEST_DESIGNS, alike_in / np.maximum(both_in, 1), 0)
