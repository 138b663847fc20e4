"""Prose of the source tree: comments, docstrings and pages, with the line where each stands."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from support import ROOT

FOLDERS = ("metagan_fast", "csrc", "kernels", "benchmarks", "tests", "tools", "docs")
SCRIPTS = ("CMakeLists.txt", "Makefile", "MANIFEST.in", ".ci/run", "pyproject.toml", "constraints.txt")

CPP = (".h", ".cpp", ".cu", ".cuh")
PYTHON = (".py", ".pyi")

_CPP_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)|R"\((?:.*?)\)"|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+'""", re.DOTALL
)


class Prose(NamedTuple):
    """A piece of prose and the place of its first line."""

    path: Path
    line: int
    text: str


@cache
def files() -> tuple[Path, ...]:
    """List every text file of the source tree, without data and build products."""
    ends = {*CPP, *PYTHON, ".md"}
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in ends]
    found += [path for pattern in ("*.py", "*.md") for path in ROOT.glob(pattern)]
    found += [ROOT / name for name in SCRIPTS if (ROOT / name).exists()]
    return tuple(sorted(set(found)))


@cache
def source(path: Path) -> str:
    """Return the text of a file."""
    return path.read_text(encoding="utf-8")


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Return all nodes of a Python file's syntax tree."""
    return tuple(ast.walk(ast.parse(source(path))))


def prose(path: Path, mention: re.Pattern[str]) -> Iterator[Prose]:
    """Yield the prose of a file that may hold a match of a pattern; pages are prose as a whole."""
    text = source(path)
    if not mention.search(text):
        return
    if path.suffix in CPP:
        yield from (Prose(path, _line(text, m.start()), m[0]) for m in _CPP_TOKEN.finditer(text) if m["comment"])
    elif path.suffix in PYTHON:
        yield from _docstrings(path)
        if any("#" in line and mention.search(line.partition("#")[2]) for line in text.splitlines()):
            tokens = tokenize.generate_tokens(io.StringIO(text).readline)
            yield from (Prose(path, t.start[0], t.string) for t in tokens if t.type == tokenize.COMMENT)
    elif path.suffix == ".md":
        yield Prose(path, 1, text)
    else:
        yield from (Prose(path, _line(text, m.start()), m[0]) for m in re.finditer(r"(?<!\S)#[^\n]*", text))


def cpp_code(path: Path) -> str:
    """Return a C++ file without its comments."""
    return _CPP_TOKEN.sub(lambda m: " " if m["comment"] else m[0], source(path))


def python_words(path: Path) -> set[str]:
    """Return the identifiers of a Python file and the words of its strings, docstrings left out."""
    docstrings = {id(node.value) for node in nodes(path) if isinstance(node, ast.Expr)}
    words: set[str] = set()
    for node in nodes(path):
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            if isinstance(value := getattr(node, field, None), str):
                words |= set(value.split("."))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            words |= set(re.findall(r"\w+", node.value))
    return words


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _docstrings(path: Path) -> Iterator[Prose]:
    """Yield every string that is a statement: docstrings of modules, classes, functions and attributes."""
    for node in nodes(path):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield Prose(path, node.lineno, node.value.value)
