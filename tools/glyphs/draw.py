"""Fonts of the pinned packages: unpacked, and their faces for each script."""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from metagan_fast.tasks.data_sets.faces import Face
from metagan_fast.tasks.data_sets.scripts import SCRIPTS

_FONTSOURCE = re.compile(r"package/(files/.+-\d00-normal\.woff|LICENSE)")
_NOTO = re.compile(r".*/Noto(?:Sans|Serif)(\w+)-((?:Extra)?Condensed(?:Thin|Light|Bold|Black)?)\.ttf")
"""Narrow styles, which npm's packages lack, of the scripts that few families have."""
_RARE = {name for name, script in SCRIPTS.items() if script.weights > 4}


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
