"""What `pip` builds from the source tree: the packages, the data, and the extension or not."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD_REQUIREMENTS = ("setuptools", "pybind11", "cmake", "ninja")


def build_wheel(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build a copy of the source tree, in an isolated environment unless this one has what a build needs."""
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__", "*.so")
    shutil.copytree(ROOT, source, ignore=ignored)
    isolation = () if any(map(missing, BUILD_REQUIREMENTS)) else ("--no-build-isolation",)
    return subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", *isolation, "-w", str(folder), str(source)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None


def content(folder: Path, result: subprocess.CompletedProcess[str]) -> set[str]:
    """Return the names in the wheel that was built."""
    output = result.stdout + result.stderr
    if result.returncode != 0 and "Could not find a version that satisfies" in output:
        pytest.skip("the build requirements are neither installed nor to be had from a package index")
    assert result.returncode == 0, output
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def sources(folder: str, package: str) -> set[str]:
    """Return the names under which the modules of a source folder are installed."""
    root = ROOT / folder
    return {f"{package}/{path.relative_to(root).as_posix()}" for path in root.rglob("*.py")}


@pytest.mark.slow
def test_a_wheel_holds_the_packages_the_data_and_the_extension(tmp_path: Path) -> None:
    names = content(tmp_path, build_wheel(tmp_path, METAGAN_FAST_NO_EXT=""))
    expected = (
        sources("metagan_fast", "metagan_fast")
        | sources("kernels", "metagan_fast/kernels")
        | sources("benchmarks", "metagan_fast/benchmarks")
    )
    assert expected <= names
    data = {path.name for path in (ROOT / "metagan_fast/tasks/data").iterdir()}
    assert {f"metagan_fast/tasks/data/{name}" for name in data} <= names
    assert {"metagan_fast/py.typed", "metagan_fast/_core.pyi"} <= names
    assert [name for name in names if name.startswith("metagan_fast/_core.") and name.endswith((".so", ".pyd"))]
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"metagan_fast"}


@pytest.mark.slow
def test_without_the_extension_the_wheel_is_pure_python(tmp_path: Path) -> None:
    names = content(tmp_path, build_wheel(tmp_path, METAGAN_FAST_NO_EXT="1"))
    assert "metagan_fast/__init__.py" in names
    assert not [name for name in names if name.endswith((".so", ".pyd"))]
    assert list(tmp_path.glob("*-py3-none-any.whl"))


@pytest.mark.slow
def test_without_a_compiler_the_error_says_what_to_do(tmp_path: Path) -> None:
    if any(map(missing, BUILD_REQUIREMENTS)):
        pytest.skip("needs setuptools, pybind11, cmake and ninja in this environment, to be quick")
    result = build_wheel(tmp_path, METAGAN_FAST_NO_EXT="", CXX=str(tmp_path / "no-such-compiler"))
    assert result.returncode != 0
    assert "set METAGAN_FAST_NO_EXT=1" in result.stdout + result.stderr
