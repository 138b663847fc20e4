"""Import support for a source tree: a checkout, or an editable install.

There `kernels/` and `benchmarks/` are not inside the package, and the compiled extension exists only in an installed
copy of the package. That extension is used if it was built from the same C++ sources, whose digest it contains.
`setup.py` executes this file for the names and the digest, so it imports nothing from the package.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

PACKAGES = {"metagan_fast.kernels": "kernels", "metagan_fast.benchmarks": "benchmarks"}
"""Packages outside the package's folder, with their folders in the source tree."""

EXTENSION = "metagan_fast._core"
SOURCES = (".h", ".cpp", ".cu", ".cuh")

_PACKAGE = Path(__file__).parent


def root() -> Path | None:
    """Return the source tree that the package is imported from, None if it is installed."""
    tree = _PACKAGE.parent
    is_tree = (tree / "csrc").is_dir() and all((tree / folder).is_dir() for folder in PACKAGES.values())
    return tree if is_tree and not (_PACKAGE / "kernels").exists() else None


def digest(tree: Path) -> str:
    """Return the SHA-256 of the names and contents of the extension's sources."""
    files = (path for path in (tree / "csrc").rglob("*") if path.suffix in SOURCES)
    found = hashlib.sha256()
    for name in sorted(path.relative_to(tree).as_posix() for path in (*files, tree / "CMakeLists.txt")):
        content = (tree / name).read_bytes()
        found.update(f"{name} {len(content)}\n".encode() + content)
    return found.hexdigest()


def activate() -> None:
    """Install the import finder if the package is imported from its source tree."""
    if tree := root():
        sys.meta_path.insert(0, _Finder(tree))


class _Finder:
    """Import finder for the modules of the package that are outside its folder."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of this package, None for all others.

        Raises:
            ModuleNotFoundError: it is the extension, and none is built from the tree's sources.
        """
        if name in PACKAGES:
            folder = self.tree / PACKAGES[name]
            return spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
        return self._find_extension() if name == EXTENSION else None

    def _find_extension(self) -> ModuleSpec:
        expected = digest(self.tree).encode()
        rejected = ""
        for folder in (str(self.tree), *sys.path):
            spec = PathFinder.find_spec(EXTENSION, [os.path.join(folder, "metagan_fast")])
            if spec is None or spec.origin is None or not isinstance(spec.loader, ExtensionFileLoader):
                continue
            if expected in Path(spec.origin).read_bytes():
                return spec
            rejected = rejected or spec.origin
        reason = f"{rejected} was built from other C++ sources" if rejected else "no compiled extension is installed"
        raise ModuleNotFoundError(
            f"the package is imported from its source tree {self.tree}, for which {reason}: "
            f"run `pip install .` there, or start Python elsewhere to use an installed package",
            name=EXTENSION,
        )
