"""Fonts of the pinned packages: unpacked, and their faces for each script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from metagan_fast.tasks.data_sets.archives import read_files
from metagan_fast.tasks.data_sets.faces import FONTSOURCE, Face, fontsource_faces
from metagan_fast.tasks.data_sets.scripts import SCRIPTS

_NOTO = re.compile(r".*/Noto(?:Sans|Serif)(\w+)-((?:Extra)?Condensed(?:Thin|Light|Bold|Black)?)\.ttf")
"""Narrow styles, which npm's packages lack, of the scripts that few families have."""
_RARE = {name for name, script in SCRIPTS.items() if script.is_rare}


def unpack(archive: Path, folder: Path) -> None:
    """Extract a package's fonts and the licence beside them: upright `.woff` of npm's, narrow `.ttf` of Debian's."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in read_files(archive, _is_wanted):
        (folder / Path(name).name).write_bytes(content)


def _is_wanted(name: str) -> bool:
    narrow = _NOTO.fullmatch(name)
    return FONTSOURCE.fullmatch(name) is not None or (narrow is not None and narrow[1] in _RARE)


def faces(folder: Path, package: str) -> Iterator[Face]:
    """Yield the faces of an unpacked package."""
    for path in sorted(folder.glob("*.ttf")):
        found = _NOTO.fullmatch(str(path))
        assert found is not None
        yield Face(package, found[1], path.stem.partition("-")[2], (path,))
    yield from fontsource_faces(folder, package, SCRIPTS)
