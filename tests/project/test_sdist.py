"""The source distribution: complete, and the same bytes wherever it is built."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import metagan_fast as mgf
from source_copies import copy_source
from support import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        int(importlib.metadata.version("setuptools").split(".")[0]) < 77, reason="needs setuptools 77, as a build does"
    ),
]

BUILD = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"


def build(folder: Path) -> Path:
    """Build the distribution of a copy of the source tree, which has no git folder."""
    copy_source(folder)
    subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True, check=True)
    return folder / "dist" / f"metagan_fast-{mgf.__version__}.tar.gz"


def test_it_holds_all_sources_and_is_reproducible(tmp_path: Path) -> None:
    first, second = build(tmp_path / "a"), build(tmp_path / "elsewhere" / "b")
    with tarfile.open(first) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        dates = {member.mtime for member in archive.getmembers()}
    folders = ("metagan_fast", "kernels", "benchmarks", "csrc", "tests", "tools", "docs")
    files = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    wanted = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    assert {name for name in wanted if ".egg-info" not in name} - names == set()
    assert {"Makefile", "CMakeLists.txt", "CHANGELOG.md", "CITATION.cff", "constraints.txt", "NOTICE"} <= names
    assert len(dates) == 1
    assert first.read_bytes() == second.read_bytes()
