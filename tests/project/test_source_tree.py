"""Python started in a checkout finds the package's parts there, and the extension built from the same sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from metagan_fast import _native, _source_tree
from support import ROOT

needs_extension = pytest.mark.skipif(not _native.is_available()[0], reason=_native.is_available()[1])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the source tree without what was built in it."""
    copy = tmp_path_factory.mktemp("source") / "tree"
    for folder in ("metagan_fast", "csrc", *_source_tree.PACKAGES.values()):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(ROOT / "CMakeLists.txt", copy)
    return copy


def install_extension(site: Path, digest: str) -> Path:
    """Install the extension alone, stamped as built from sources with the given digest."""
    built = Path(_native._core.__file__)
    copy = site / "metagan_fast" / built.name
    copy.parent.mkdir(parents=True)
    stamps = _native._core.SOURCE_DIGEST.encode(), digest.encode()
    copy.write_bytes(built.read_bytes().replace(*stamps))
    return copy


def run_in(tree: Path, *arguments: str, site: Path) -> str:
    """Return the output of Python started in a folder."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@needs_extension
def test_a_checkout_is_complete(tree: Path, tmp_path: Path) -> None:
    extension = install_extension(tmp_path, _source_tree.digest(tree))
    code = """
import metagan_fast as mgf, torch
from importlib.util import find_spec
from metagan_fast import functional
from metagan_fast.benchmarks.baselines import losses
kernel = find_spec("metagan_fast.kernels.updates.sgd_step")
print(mgf.__file__, losses.__file__, kernel.origin, mgf._native._core.__file__)
with functional.use_backend("native"):
    print(*functional.sgd_step(torch.ones(2), torch.ones(2), 0.5).tolist())
"""
    expected = ("metagan_fast/__init__.py", "benchmarks/baselines/losses.py", "kernels/updates/sgd_step.py")
    lines = run_in(tree, "-c", code, site=tmp_path).splitlines()
    assert lines == [" ".join(map(str, (*(tree / name for name in expected), extension))), "0.5 0.5"]


def test_info_says_that_a_checkout_runs_and_what_it_lacks(tree: Path, tmp_path: Path) -> None:
    """An extension of other sources is refused, within the tree too."""
    other = tmp_path / "tree"
    shutil.copytree(tree, other)
    with (other / "csrc" / "kernels.h").open("a") as file:
        file.write("// changed\n")
    shown = run_in(other, "-m", "metagan_fast", "info", site=tmp_path)
    assert f"package          {other}/metagan_fast (source tree)\n" in shown
    assert "extension        none\n" in shown
    assert f"backend native   not available: the package is imported from its source tree {other}, for which" in shown
    assert "METAGAN_FAST_NO_EXT" not in shown


@needs_extension
def test_only_the_extension_of_the_same_sources_is_found(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = _source_tree._Finder(tree).find_spec
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ModuleNotFoundError, match=r"no compiled extension is installed: run `pip install \.` there"):
        find(_source_tree.EXTENSION)
    old = install_extension(tmp_path / "old", "0" * 64)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "old")])
    with pytest.raises(ModuleNotFoundError, match=f"{old} was built from other C\\+\\+ sources: run"):
        find(_source_tree.EXTENSION)
    fitting = install_extension(tmp_path / "new", _source_tree.digest(tree))
    sys.path.append(str(tmp_path / "new"))
    found = find(_source_tree.EXTENSION)
    assert found is not None and found.origin == str(fitting)
    assert find("metagan_fast.losses") is None


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        shutil.rmtree(tmp_path / "csrc", ignore_errors=True)
        for name, content in {"CMakeLists.txt": "", "csrc/notes.txt": str(files), **files}.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        return _source_tree.digest(tmp_path)

    sources = {"csrc/a.cpp": "1", "csrc/b.h": "2"}
    variants = (sources, {**sources, "csrc/a.cpp": "2"}, {**sources, "csrc/c.cu": ""}, {"csrc/a.cpp": "1"})
    others = ({**sources, "CMakeLists.txt": "x"}, {"csrc/a.cpp": "2", "csrc/b.h": "1"})
    found = [digest(**files) for files in (*variants, *others)]
    assert len(set(found)) == len(found)
    assert found[0] == digest(**dict(reversed(sources.items())))
