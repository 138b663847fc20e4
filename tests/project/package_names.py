"""Names that the package's source files define, read from their syntax trees: nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from prose import PYTHON, files, nodes
from support import ROOT

PACKAGE = "metagan_fast"
INSTALLED_UNDER = {PACKAGE: PACKAGE, "kernels": f"{PACKAGE}.kernels", "benchmarks": f"{PACKAGE}.benchmarks"}


@cache
def modules() -> dict[str, Path]:
    """Map each module's dotted name to its file."""
    found = {}
    for path in files():
        folder, *parts = path.relative_to(ROOT).with_suffix("").parts
        if path.suffix in PYTHON and folder in INSTALLED_UNDER and parts:
            names = [INSTALLED_UNDER[folder], *(part for part in parts if part != "__init__")]
            found[".".join(names)] = path
    return found


@cache
def classes() -> dict[str, list[tuple[str, ast.ClassDef]]]:
    """Map each class name to the classes of that name, each with its module."""
    found: dict[str, list[tuple[str, ast.ClassDef]]] = {}
    for module, path in modules().items():
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append((module, node))
    return found


def exists(name: str) -> bool:
    """Say whether a full dotted name, `metagan_fast.` first, is a module, or an attribute of one or of its classes."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        if (module := ".".join(parts[:split])) in modules():
            return _has(module, parts[split:])
    return False


def homes(first: str) -> list[str]:
    """Return the modules whose last part is `first`."""
    return [name for name in modules() if name.rpartition(".")[2] == first and name != PACKAGE]


def class_has(name: str, attributes: list[str]) -> bool:
    """Say whether a class called `name` has an attribute; bases from elsewhere may have any."""
    return any(_class_has(node, attributes[0]) for _, node in classes().get(name, []))


def _has(module: str, parts: list[str]) -> bool:
    if not parts:
        return True
    first, rest = parts[0], parts[1:]
    if "__getattr__" in _bindings(module):
        return True
    if first not in _bindings(module):
        return False
    if not rest:
        return True
    target = _bindings(module)[first]
    if isinstance(target, ast.ClassDef):
        return _class_has(target, rest[0])
    if isinstance(target, str):
        return exists(".".join([target, *rest])) if target.startswith(PACKAGE) else True
    return True  # an attribute of a value


@cache
def _bindings(module: str) -> dict[str, ast.ClassDef | str | None]:
    """Map the names bound in a module to a class, the dotted name of an import, or None."""
    path = modules()[module]
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    bound: dict[str, ast.ClassDef | str | None] = {"__name__": None, "__file__": None}
    for node in nodes(path):
        if isinstance(node, ast.ClassDef):
            bound[node.name] = node
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            bound.setdefault(node.name, None)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.setdefault(node.id, None)
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            origin = [*origin, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                bound[alias.asname or alias.name] = ".".join([*origin, alias.name])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                bound[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else None
    return bound


def _class_has(node: ast.ClassDef, attribute: str) -> bool:
    if attribute in set(_attributes(node)):
        return True
    for base in node.bases:
        name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        if name not in classes():
            return name not in ("Protocol", "Generic", "NamedTuple", "ABC")
        if any(_class_has(other, attribute) for _, other in classes()[name] if other is not node):
            return True
    return False


def _attributes(node: ast.ClassDef) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child.name
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
            yield child.attr
