"""Build the embedded `glyphs` from the font packages of `packages.tsv`.

    python -m glyphs.build [--cache FOLDER] [--jobs N]        (in tools/)

Packages are downloaded by `npm pack` and `apt-get download` at their pinned versions, compared with their SHA-256 and
unpacked in the cache; no package script runs and nothing is installed. Where a client is missing, put the archives
into the cache by other means.
The same packages and the same versions of Pillow, FreeType and fontTools give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metagan_fast.tasks import embedded
from metagan_fast.tasks.data_sets import choose
from metagan_fast.tasks.data_sets.faces import Face, draw, names_of, own_licence
from metagan_fast.tasks.data_sets.scripts import SCRIPTS, is_reserved
from metagan_fast.tasks.images import Pixels

from .draw import faces, unpack

PACKAGES = Path(__file__).parent / "packages.tsv"
DATA = Path(__file__).parents[2] / "metagan_fast" / "tasks" / "data"
FONTS = DATA / "glyphs.fonts.tsv"
COLUMNS = (
    "font",
    "family",
    "style",
    "version",
    "licence",
    "package",
    "package_version",
    "sha256",
    "scripts",
    "drawings",
    "copyright",
)


@dataclass(frozen=True)
class Package:
    """One pinned archive."""

    source: str
    name: str
    version: str
    sha256: str

    @property
    def archive(self) -> str:
        """Name that the client gives to the archive."""
        if self.source == "debian":
            return f"{self.name}_{self.version}_all.deb"
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    def download(self, cache: Path) -> None:
        """Download the archive into a folder."""
        if self.source == "debian":
            command = ["apt-get", "download", f"{self.name}={self.version}"]
        else:
            command = ["npm", "pack", f"{self.name}@{self.version}", "--ignore-scripts", "--silent"]
        try:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=cache)
        except FileNotFoundError:
            raise SystemExit(f"{command[0]} is missing: put {self.archive} into {cache}") from None


@dataclass(frozen=True)
class Drawn:
    """A face, what its files say of themselves, and its drawings with their characters."""

    face: Face
    licence: str
    names: dict[int, str]
    drawings: dict[str, Pixels]

    @property
    def family(self) -> str:
        """Family of all weights and widths: as npm names packages, which have one family each."""
        if self.face.package.startswith("@"):
            return self.face.package.partition("/")[2]
        return re.sub(r"\B([A-Z])", r"-\1", self.face.files[0].stem.partition("-")[0]).lower()


def read_packages() -> list[Package]:
    """Read the pinned packages."""
    with PACKAGES.open(newline="", encoding="utf-8") as file:
        return [Package(**row) for row in csv.DictReader(file, delimiter="\t")]


def fetch(package: Package, cache: Path) -> Path:
    """Return an unpacked package; download it where the cache lacks it."""
    archive = cache / package.archive
    if not archive.exists():
        package.download(cache)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != package.sha256:
        raise SystemExit(f"{archive} has another SHA-256 than {PACKAGES} says: delete it, or pin it anew")
    folder = cache / "unpacked" / archive.stem
    if not folder.exists():
        unpack(archive, folder)
    return folder


def draw_package(name: str, folder: Path) -> list[Drawn]:
    """Draw a package's faces whose licence is known; Latin, which every package has, by its regular weight alone."""
    drawn = []
    for face in faces(folder, name):
        if face.script == "Latin" and face.style != "400":
            continue
        names = names_of(face.files[0])
        found = own_licence(face.files[0], names)
        if found is not None:
            drawn.append(Drawn(face, found, names, draw(face, SCRIPTS[face.script])))
    return drawn


def digest(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the files' SHA-256, in the order of their names."""
    each = [hashlib.sha256(path.read_bytes()).digest() for path in sorted(files)]
    return each[0].hex() if len(each) == 1 else hashlib.sha256(b"".join(each)).hexdigest()


def font_table(drawn: Sequence[Drawn], used: Counter[int], packages: dict[str, Package]) -> list[list[str]]:
    """Return a row for each font with drawings in the set; `used` counts them by face."""
    by_font: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index in sorted(used):
        one = drawn[index]
        by_font[one.face.package, one.family, one.face.style].append(index)
    rows = []
    for (name, family, style), indices in sorted(by_font.items()):
        first = drawn[indices[0]]
        files = {path for index in indices for path in drawn[index].face.files}
        values = (
            first.names[4],
            family,
            style,
            first.names[5],
            first.licence,
            name,
            packages[name].version,
            digest(files),
            " ".join(drawn[index].face.script for index in indices),
            sum(used[index] for index in indices),
            first.names[0],
        )
        rows.append([" ".join(str(value).split()) for value in values])
    return rows


def main() -> None:
    """Fetch, draw, choose, write, and print what was kept and what left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "metagan_fast" / "fonts")
    parser.add_argument("--jobs", type=int, help="processes that draw")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    packages = {package.name: package for package in read_packages()}
    folders = [fetch(package, arguments.cache) for package in packages.values()]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        drawn = list(itertools.chain.from_iterable(pool.map(draw_package, packages, folders)))
    write(drawn, packages)


def write(drawn: Sequence[Drawn], packages: dict[str, Package]) -> None:
    """Choose among the drawings, and write the set and the table of its fonts."""
    rows = [(index, c, pixels) for index, one in enumerate(drawn) for c, pixels in one.drawings.items()]
    face, character, drawings = (list(column) for column in zip(*rows, strict=True))
    script = [drawn[index].face.script for index in face]
    family = np.unique([drawn[index].family for index in face], return_inverse=True)[1].tolist()
    designs = [f"{drawn[index].family} {drawn[index].face.style}" for index in face]
    classes, legibilities = choose.legible(script, character, face, family, drawings)
    candidates = choose.distinct(classes, legibilities, drawings)
    leaving = choose.alike(candidates, classes, np.unique(designs, return_inverse=True)[1].tolist(), drawings)
    kept = {name: mine for name, mine in candidates.items() if name not in leaving}
    if any(is_reserved(c) for _, c in kept):
        raise SystemExit("a character of a reserved script: remove it from SCRIPTS")
    names = sorted(kept, key=lambda name: (list(SCRIPTS).index(name[0]), name[1]))
    order = [row for name in names for row in kept[name]]
    embedded.save_glyphs(
        DATA / "glyphs.npz",
        np.stack([drawings[row] for row in order]),
        [len(kept[name]) for name in names],
        [f"{script}/{c}" for script, c in names],
        [script for script, _ in names],
        [SCRIPTS[script].part for script, _ in names],
    )
    table = font_table(drawn, Counter(face[row] for row in order), packages)
    lines = ["\t".join(row) for row in ([*COLUMNS], *table)]
    FONTS.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    report(kept, candidates, leaving)


def report(kept: choose.Classes, candidates: choose.Classes, leaving: dict[choose.Name, choose.Name]) -> None:
    """Print a line for each script, and the characters that left for those that they look like."""
    for name, script in SCRIPTS.items():
        counts = [len(rows) for (of, _), rows in kept.items() if of == name]
        across = [f"{c} ({other})" for (of, c), (to, other) in leaving.items() if of == name and _apart(of, to)]
        within = [f"{c} ({other})" for (of, c), (to, other) in leaving.items() if of == name and not _apart(of, to)]
        print(
            f"{name} ({script.part}): {len(counts)} classes of {len(script.characters)}, {sum(counts)} drawings, "
            f"{min(counts, default=0)} to {max(counts, default=0)} a class; like another part's: "
            f"{' '.join(across) or 'none'}; like an earlier one of the part: {' '.join(within) or 'none'}"
        )
    print(f"{len(kept)} classes, {sum(map(len, kept.values()))} drawings; {len(candidates)} before likeness")


def _apart(script: str, other: str) -> bool:
    return SCRIPTS[script].part != SCRIPTS[other].part


if __name__ == "__main__":
    main()
