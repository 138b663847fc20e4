"""`icons`: concepts as classes, drawn by the icon sets of many makers."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..build_glyphs_latin import correlation, features
from ..images import Pixels
from . import icon_names, svg
from .archives import Archive, Progress
from .choose import shared
from .collection import Collection, Drawing, parts_of
from .faces import is_faint
from .parallel import each

JUDGED_SIZE = 32  # pixels at which drawings are compared, whatever size is asked for
FEWEST = 20  # images of a class that is kept
MOST_A_SET = 2  # images of a class by one set
MOST_A_FAMILY = 6  # and by the sets of one family
CANDIDATES = 4  # icons of a class and set that are tried
SAME_FAMILY = 0.9  # correlation above which two drawings of one family count as one
DUPLICATE = 0.95  # correlation above which drawings of different families count as one
SHARED = 0.4  # share of a class's drawings that look like one of another class, from which on the smaller class leaves
PLACED = 12  # images of a class that resemble the class, at least
NEIGHBOURS = 50
RESERVED = frozenset({"@iconify-json/hugeicons", "@iconify-json/solar"})
"""Packages kept for evaluation from outside; none of them may be pinned."""

CHANGES = (
    "Icons of the packages named, drawn in grey, white on black, without their colours, cropped to their ink, "
    "centred and scaled."
)


@dataclass(frozen=True)
class _Icon:
    """One icon of a set as a candidate for a class."""

    archive: Archive
    name: str
    document: str
    rank: tuple[bool, int, str]


def build(pinned: Sequence[Archive], paths: Sequence[Path], size: int, progress: Progress) -> Collection:
    """Draw the icons and choose classes and drawings; the same packages give the same images."""
    if any(archive.name in RESERVED for archive in pinned):
        raise ValueError(f"{', '.join(sorted(RESERVED))} are reserved for evaluation: remove them from the table")
    candidates = _candidates(pinned, paths, progress)
    drawn = each(_distinct, list(candidates.values()), "classes drawn", progress)
    kept = _apart(_placed({label: one for label, one in zip(candidates, drawn, strict=True) if len(one) >= FEWEST}))
    rows = [(label, icon, drawing) for label, chosen in sorted(kept.items()) for icon, drawing in chosen]
    if not rows:
        raise ValueError(f"the {len(paths)} packages draw no class with {FEWEST} images")
    images = [drawing for _, _, drawing in rows]
    if size != JUDGED_SIZE:
        images = list(each(functools.partial(_draw, size), [icon for _, icon, _ in rows], "images drawn", progress))
    drawings = [Drawing(label, icon_names.group_of(label), icon.archive, icon.name) for label, icon, _ in rows]
    return Collection("icons", np.stack(images), drawings, CHANGES, parts_of("icons", drawings))


def _draw(size: int, icon: _Icon) -> Pixels:
    """Draw an icon that has been drawn at another size."""
    drawing = svg.grey(icon.document, size)
    return np.zeros((size, size), np.uint8) if drawing is None else drawing


def _candidates(pinned: Sequence[Archive], paths: Sequence[Path], progress: Progress) -> dict[str, list[_Icon]]:
    """Return the icons of each concept that enough families may have; aliases name icons that are in no class else."""
    named: dict[str, dict[tuple[str, str], _Icon]] = defaultdict(dict)
    further: dict[str, dict[tuple[str, str], _Icon]] = defaultdict(dict)
    for done, (archive, path) in enumerate(zip(pinned, paths, strict=True)):
        progress("packages read", done, len(pinned))
        icons = svg.read_icon_set(archive, path)
        names = [(name, name, named) for name in icons.icons]
        names += [
            (alias, entry["parent"], further)
            for alias, entry in icons.aliases.items()
            if entry.keys() <= {"parent", "hidden"} and entry["parent"] in icons.icons
        ]
        for name, own, table in names:
            if icons.icons[own].get("hidden"):
                continue
            label = icon_names.concept(name, icons.suffixes, icons.prefixes)
            document = None if label is None else svg.as_svg(icons, own)
            if label is not None and document is not None:
                rank = (not icon_names.is_plain(name, label), len(name), name)
                table[label].setdefault((archive.name, own), _Icon(archive, own, document, rank))
    progress("packages read", len(pinned), len(pinned))
    large = {label for label, found in named.items() if _most(found.values()) >= FEWEST}
    taken = {place for label in large for place in named[label]}
    for label, others in further.items():
        fresh = {place: icon for place, icon in others.items() if place not in taken}
        named[label] = {**fresh, **named.get(label, {})}
    return {
        label: sorted(found.values(), key=lambda icon: (icon.archive.name, icon.rank))
        for label, found in sorted(named.items())
        if _most(found.values()) >= FEWEST
    }


def _most(icons: Iterable[_Icon]) -> int:
    """Return how many images a class may have at most."""
    sets = Counter((icon.archive.family, icon.archive.name) for icon in icons)
    families: Counter[str] = Counter()
    for (family, _), count in sets.items():
        families[family] += min(count, MOST_A_SET)
    return sum(min(count, MOST_A_FAMILY) for count in families.values())


def _distinct(icons: Sequence[_Icon]) -> list[tuple[_Icon, Pixels]]:
    """Return the icons that draw a class differently, the first of each set before any second."""
    by_set: dict[str, list[_Icon]] = defaultdict(list)
    for icon in icons:
        by_set[icon.archive.name].append(icon)
    left = {name: iter(mine[:CANDIDATES]) for name, mine in sorted(by_set.items())}
    kept: list[tuple[_Icon, Pixels]] = []
    vectors = np.zeros((0, 256), np.float32)
    of_family: Counter[str] = Counter()
    for _ in range(MOST_A_SET):
        for name, candidates in left.items():
            family = by_set[name][0].archive.family
            limits = np.array([SAME_FAMILY if one.archive.family == family else DUPLICATE for one, _ in kept])
            for icon in candidates if of_family[family] < MOST_A_FAMILY else ():
                drawing = svg.grey(icon.document, JUDGED_SIZE)
                if drawing is None or is_faint(drawing):
                    continue
                vector = features([drawing])
                if not kept or (correlation(vector, vectors)[0] <= limits).all():
                    kept.append((icon, drawing))
                    vectors = np.concatenate([vectors, vector])
                    of_family[family] += 1
                    break
    return sorted(kept, key=lambda one: (one[0].archive.family, one[0].archive.name, one[0].name))


def _placed(kept: dict[str, list[tuple[_Icon, Pixels]]]) -> dict[str, list[tuple[_Icon, Pixels]]]:
    """Leave out drawings that resemble other classes alone, down to `FEWEST`, and classes of too few others."""
    if not kept:
        return kept
    labels = np.concatenate([np.full(len(chosen), index) for index, chosen in enumerate(kept.values())])
    vectors = features(drawing for chosen in kept.values() for _, drawing in chosen)
    chunks = np.array_split(np.arange(len(labels)), -(-len(labels) // 1000))
    shares = np.concatenate([_own_share(vectors, labels, chunk) for chunk in chunks])
    result = {}
    for index, (label, chosen) in enumerate(kept.items()):
        own = shares[labels == index]
        placed = int((own > 0).sum())
        if placed >= PLACED:
            best = np.sort(np.argsort(-own, kind="stable")[: max(placed, FEWEST)])
            result[label] = [chosen[row] for row in best]
    return result


def _own_share(vectors: NDArray[np.float32], labels: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each row's nearest neighbours that are of its class."""
    likeness = correlation(vectors[rows], vectors)
    likeness[np.arange(len(rows)), rows] = -2
    count = min(NEIGHBOURS, len(labels) - 1)
    nearest = np.argpartition(likeness, -count, axis=1)[:, -count:]
    return np.asarray((labels[nearest] == labels[rows, None]).mean(1))


def _apart(kept: dict[str, list[tuple[_Icon, Pixels]]]) -> dict[str, list[tuple[_Icon, Pixels]]]:
    """Leave out classes that a larger one draws alike."""
    names = sorted(kept, key=lambda label: (-len(kept[label]), label))
    if not names:
        return kept
    vectors = features(drawing for name in names for _, drawing in kept[name])
    shares = shared(vectors, [len(kept[name]) for name in names])
    leaving: set[int] = set()
    for index in range(len(names)):
        if any(earlier not in leaving and shares[index, earlier] >= SHARED for earlier in range(index)):
            leaving.add(index)
    return {name: kept[name] for index, name in enumerate(names) if index not in leaving}
