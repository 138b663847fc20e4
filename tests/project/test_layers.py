"""Imports and includes point downwards: each folder uses only the layers below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from support import ROOT

PACKAGE = "metagan_fast"
INSTALLED = {"metagan_fast": (), "kernels": ("kernels",), "benchmarks": ("benchmarks",)}
"""Folders of the source tree, with their place in the installed package."""

CPP_LAYERS = {
    "ops": set[str](),
    "cpu": {"ops"},
    "cuda": {"ops"},
    "engine": {"ops", "cpu"},
    "bindings": {"ops", "cpu", "cuda", "engine"},
}
"""Folders of csrc that each folder may include, besides itself."""

KERNELS_USE = {"_native", "_triton", "_utils", "flat", "kernels", "ops"}
SHARED_KERNELS = {"kernels.blocks", "kernels.updates.formulas"}


def imports(file: Path) -> Iterator[str]:
    """Yield what a source file imports from the package when it is imported itself, without `metagan_fast.`.

    Imports in functions and for type checking alone are left out.
    """
    folder, *parts = file.relative_to(ROOT).parts
    package = [PACKAGE, *INSTALLED[folder], *parts[:-1]]
    for node in _run_on_import(ast.parse(file.read_text()).body):
        if isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            origin = [*origin, *(node.module.split(".") if node.module else [])]
            if origin[0] == PACKAGE:
                yield from (".".join([*origin[1:], alias.name]) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(f"{PACKAGE}."):
                    yield alias.name.removeprefix(f"{PACKAGE}.")


def _run_on_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "handlers", "finalbody"):
                yield from _run_on_import(getattr(node, field, []))


def includes(file: Path) -> set[str]:
    """Return the folders of csrc, below its root, that a C++ file includes from; bare names are its own folder's."""
    names = re.findall(r'^#include "([^"]+)"', file.read_text(), flags=re.MULTILINE)
    return {name.partition("/")[0] for name in names if "/" in name}


def cpp_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]


def test_imports_and_includes_are_read() -> None:
    assert {"flat.ALIGNMENT", "ops.reference", "kernels.updates._launch"} <= set(
        imports(ROOT / "kernels" / "updates" / "adam_step.py")
    )
    assert "_native" in set(imports(ROOT / PACKAGE / "ops" / "_dispatch.py"))
    assert includes(ROOT / "csrc" / "bindings" / "updates.cpp") == {"cuda", "ops"}


def test_the_package_imports_downwards() -> None:
    """In the order that CONTRIBUTING.md gives."""
    rule = (ROOT / "CONTRIBUTING.md").read_text().split("- Imports point downwards: ")[1].split("\n- ")[0]
    order = re.findall(r"`(\w+)`", rule)
    package = ROOT / PACKAGE
    parts = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    assert parts - {"__init__", "__main__"} == set(order)
    upwards = []
    for place, part in enumerate(order):
        for file in (*package.glob(f"{part}.py"), *package.glob(f"{part}/**/*.py")):
            higher = {*order[:place], "benchmarks", "kernels"}
            upwards += [f"{file.relative_to(ROOT)}: {name}" for name in imports(file) if name.split(".")[0] in higher]
    assert not upwards


def test_kernels_use_the_lowest_layers() -> None:
    """Updates and layers share the primitives alone."""
    wrong = []
    for file in (ROOT / "kernels").rglob("*.py"):
        folder = ".".join(file.parent.relative_to(ROOT).parts)
        for name in imports(file):
            part = name.split(".")[0]
            shared = name.startswith((folder, *SHARED_KERNELS)) or name in ("kernels.updates", "kernels.layers")
            if part not in KERNELS_USE or (part == "kernels" and folder != "kernels" and not shared):
                wrong.append(f"{file.relative_to(ROOT)}: {name}")
    assert not wrong


def test_baselines_share_no_code_with_the_package() -> None:
    """So that they are an independent oracle."""
    files = sorted((ROOT / "benchmarks" / "baselines").glob("*.py"))
    assert len(files) > 5
    assert not [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in imports(file)
        if not name.startswith("benchmarks.baselines")
    ]


def test_cpp_includes_downwards() -> None:
    csrc = ROOT / "csrc"
    assert {path.name for path in csrc.iterdir() if path.is_dir()} == set(CPP_LAYERS)
    assert not [
        f"{file.relative_to(ROOT)}: {layer}"
        for folder, lower in CPP_LAYERS.items()
        for file in cpp_files(csrc / folder)
        for layer in sorted(includes(file) - lower - {folder})
    ]


def test_libraries_of_python_stay_in_the_bindings() -> None:
    """No header of torch anywhere, so that one binary serves every version; pybind11 in the bindings alone."""
    wrong = []
    for file in cpp_files(ROOT / "csrc"):
        for name in re.findall(r"^#include <(pybind11|torch|ATen|c10|Python\.h)", file.read_text(), flags=re.MULTILINE):
            if name != "pybind11" or file.parent.name != "bindings":
                wrong.append(f"{file.relative_to(ROOT)}: {name}")
    assert not wrong
