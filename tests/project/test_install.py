"""Wheels that `pip` builds from the source tree: packages, data, and the extension if wanted."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from metagan_fast import _native
from source_copies import BUILD_REQUIREMENTS, copy_source, missing, pip
from support import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def build_wheel(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build a copy of the source tree."""
    source = copy_source(folder / "source")
    return pip("wheel", "-w", str(folder), str(source), **environment)


def sources(folder: str, package: str) -> set[str]:
    """Return the names under which the modules of a source folder are installed."""
    root = ROOT / folder
    return {f"{package}/{path.relative_to(root).as_posix()}" for path in root.rglob("*.py")}


@pytest.mark.slow
def test_a_wheel_without_the_extension_holds_the_packages_and_the_data(tmp_path: Path) -> None:
    result = build_wheel(tmp_path, METAGAN_FAST_NO_EXT="1")
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("*-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = (
        sources("metagan_fast", "metagan_fast")
        | sources("kernels", "metagan_fast/kernels")
        | sources("benchmarks", "metagan_fast/benchmarks")
    )
    assert expected <= names
    data = {path.name for path in (ROOT / "metagan_fast/tasks/data").iterdir()}
    assert {f"metagan_fast/tasks/data/{name}" for name in data} <= names
    assert {"metagan_fast/py.typed", "metagan_fast/_core.pyi", "metagan_fast/training/report/page.css"} <= names
    assert "metagan_fast/_utils/base.css" in names
    assert {f"metagan_fast/draw/page/page.{end}" for end in ("html", "css", "js")} <= names
    weights = {path.name for path in (ROOT / "metagan_fast/metrics/weights").iterdir()}
    assert {f"metagan_fast/metrics/recorded/glyphs-{part}.json" for part in ("test", "validation")} <= names
    assert len(weights) == 3 and {f"metagan_fast/metrics/weights/{name}" for name in weights} <= names
    assert not [name for name in names if name.endswith((".so", ".pyd"))]
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"metagan_fast"}
    licenses = {Path(name).name for name in names if ".dist-info/licenses/" in name}
    assert licenses == {"LICENSE", "NOTICE", "LICENSE.glyphs.txt", "LICENSE.glyphs-latin.txt", "LICENSE.digits.txt"}


def test_the_installed_package_has_the_extension_that_its_wheel_promises() -> None:
    """A wheel is platform-specific only for the extension, which must then load."""
    found = (x.read_text("WHEEL") for x in importlib.metadata.distributions(name="metagan_fast"))
    wheel = next(filter(None, found), "")  # a build leaves metadata without it in the source tree
    assert "Root-Is-Purelib" in wheel
    available, reason = _native.is_available()
    assert available == ("Root-Is-Purelib: false" in wheel), reason


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_the_extension_is_the_same_from_every_build() -> None:
    """No symbol table: nvcc names symbols after temporary files, which differ from build to build."""
    core = pytest.importorskip("metagan_fast._core", reason="the extension is not installed")
    assert b"tmpxft" not in Path(core.__file__).read_bytes()


@pytest.mark.slow
def test_without_a_compiler_the_error_says_what_to_do(tmp_path: Path) -> None:
    if any(map(missing, BUILD_REQUIREMENTS)):
        pytest.skip("needs setuptools, pybind11, cmake and ninja in this environment, to be quick")
    result = build_wheel(tmp_path, METAGAN_FAST_NO_EXT="", CXX=str(tmp_path / "no-such-compiler"))
    assert result.returncode != 0
    assert "set METAGAN_FAST_NO_EXT=1" in result.stdout + result.stderr


PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(texts: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(x.name): x for x in map(Requirement, texts)}


def pins(python: str | None = None) -> dict[str, str]:
    """Return versions by name, from all lines of constraints.txt or those for a version of Python."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if text := line.partition("#")[0].strip():
            pin = Requirement(text)
            if python is None or pin.marker is None or pin.marker.evaluate({"python_version": python}):
                name = canonicalize_name(pin.name)
                assert python is None or name not in found, f"{name} twice for Python {python}"
                (exact,) = pin.specifier
                assert exact.operator == "==", line
                found[name] = exact.version
    return found


def test_no_newer_pytorch_is_refused() -> None:
    torch = requirements(project()["dependencies"])["torch"]
    assert {part.operator for part in torch.specifier} == {">="}


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_fix_what_is_declared(python: str) -> None:
    """Each name has one version for a Python, within the declared range."""
    pinned = pins(python)
    extras = project()["optional-dependencies"]
    declared = requirements([*project()["dependencies"], *(x for texts in extras.values() for x in texts)])
    declared.pop("metagan-fast")
    assert {name for name in declared if name not in pinned} == set()
    assert {name for name, x in declared.items() if not x.specifier.contains(pinned[name])} == set()
    linters = re.search(r"^pip install --quiet -c constraints.txt (.*)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert linters is not None and set(linters[1].split()) <= set(pinned)


def test_constraints_fix_what_dependencies_need() -> None:
    """Dependencies of packages installed in the fixed version are fixed, too; PyTorch chooses CUDA's libraries."""
    fixed = pins(f"{sys.version_info[0]}.{sys.version_info[1]}")
    installed = {canonicalize_name(x.name): x for x in importlib.metadata.distributions()}
    as_fixed = [name for name in fixed if name in installed and Version(installed[name].version).public == fixed[name]]
    assert as_fixed
    needed = {
        canonicalize_name(x.name)
        for name in as_fixed
        for x in map(Requirement, installed[name].requires or ())
        if x.marker is None or x.marker.evaluate({"extra": ""})
    }
    assert {name for name in needed - set(fixed) if not name.startswith(("nvidia-", "cuda-"))} == set()
