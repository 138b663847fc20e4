"""Comments, docstrings and pages name only what exists: files, modules, attributes, identifiers, headings."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import package_names
from prose import CPP, FOLDERS, PYTHON, cpp_code, files, nodes, prose, python_words, source
from support import ROOT

ALLOWED = {
    "environnements.py": "a file of FIGR's repository",
    "model.py": "a file of FIGR's repository",
    "task_to_examples": "an attribute of FIGR's data sets",
    "gym": "a package that learn2learn imports",
    "n_power_iterations": "an argument of torch's spectral norm",
    "register_autograd": "a function of torch.library",
    "nohup": "a command",
}
"""Names of others, each with its owner."""

VARIABLES = {"learner": "MetaGAN", "adapted": "AdaptedGAN", "tasks": "Tasks", "batch": "TaskBatch"}
"""Classes of the variables that pages and docstrings use."""

LIBRARIES = ("torch", "higher", "learn2learn", "torchopt")
"""Libraries that share their name with a module of the package; a quoted dotted name is theirs."""

FILE = re.compile(r"(?<![\w/.<>*:-])(?:[\w.<>*-]+/)*[\w<>*-]+\.(?:py|pyi|h|cpp|cu|cuh|md)\b(?![\w/(#])")
FOLDER = re.compile(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w/-]*\w\b(?!\.\w|/?[\w<*#-])")
LINK = re.compile(r"(?<![\w/.-])((?:[\w-]+/)*[\w-]+\.md)#([\w-]+)")
FULL_NAME = re.compile(r"(?<![\w./-])(?:metagan_fast|mgf)(?:\.[A-Za-z_]\w*)+(?![\w/])")
QUOTED_NAME = re.compile(r"(?<!`)`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\([^`]*\))?`")
DATA = (".css", ".html", ".json", ".jsonl", ".toml", ".txt", ".png", ".safetensors")
IDENTIFIER = re.compile(r"(?<!`)`((?:[A-Za-z_]\w*::)*[A-Za-z_]\w*)(?:\(\)|<[\w, ]*>)?`")


def mentions(pattern: re.Pattern[str], among: tuple[Path, ...]) -> Iterator[tuple[str, Path, re.Match[str]]]:
    """Yield (place, file, match) for each match in the prose of the files."""
    for path in among:
        for piece in prose(path, pattern):
            for match in pattern.finditer(piece.text):
                line = piece.line + piece.text.count("\n", 0, match.start())
                yield f"{path.relative_to(ROOT)}:{line}", path, match


def stale(pattern: re.Pattern[str], exists: Callable[[str, Path], bool], among: tuple[Path, ...]) -> list[str]:
    """List the mentions that name nothing, as file:line: name."""
    found = {
        f"{place}: {match[match.lastindex or 0]}"
        for place, path, match in mentions(pattern, among)
        if match[match.lastindex or 0] not in ALLOWED and not exists(match[match.lastindex or 0], path)
    }
    return sorted(found)


def assert_none(references: list[str]) -> None:
    assert not references, "no such file, name or heading:\n" + "\n".join(references)


@cache
def paths() -> frozenset[str]:
    """Return each file's path and every shorter end of it, with the installed place of `kernels` and `benchmarks`."""
    ends = set()
    for path in files():
        parts = path.relative_to(ROOT).parts
        installed = ("metagan_fast", *parts) if parts[0] in package_names.INSTALLED_UNDER else parts
        ends |= {"/".join(installed[n:]) for n in range(len(installed))}
    return frozenset(ends)


def file_exists(name: str, path: Path) -> bool:
    """Take `<stem>` and `*` for any name, and a name for the end of a path."""
    if not re.search("[<*]", name):
        return name in paths() or (path.parent / name).exists()
    pattern = re.compile(re.sub(r"<\w+>|\*+", "PLACE", re.escape(name).replace(r"\*", "*")).replace("PLACE", "[^/]*"))
    return any(pattern.fullmatch(end) for end in paths())


def folder_exists(name: str, path: Path) -> bool:
    """Look in the source tree, or in the installed package; a file may be named without its ending."""
    names = (name, name.removeprefix("metagan_fast/"))
    return any((ROOT / one).exists() or (ROOT / one).with_suffix(".py").exists() for one in names)


def name_exists(name: str, path: Path) -> bool:
    return package_names.exists(re.sub(r"^mgf\b", "metagan_fast", name))


def quoted_name_exists(name: str, path: Path) -> bool:
    """Look up names that begin with a module or class of the package; others belong to libraries or are variables."""
    if name.endswith((*CPP, *PYTHON, ".md", *DATA)):
        return True  # a file, which another test looks for
    first, *rest = name.split(".")
    if first in VARIABLES and package_names.class_has(VARIABLES[first], rest):
        return True
    candidates = package_names.homes(first) if first not in LIBRARIES and first not in arguments(path) else []
    if not candidates and first not in package_names.classes():
        return True
    return package_names.class_has(first, rest) or any(
        package_names.exists(".".join([home, *rest])) for home in candidates
    )


@cache
def arguments(path: Path) -> frozenset[str]:
    """Return the names of all arguments in a Python file."""
    known = nodes(path) if path.suffix in PYTHON else ()
    return frozenset(node.arg for node in known if isinstance(node, ast.arg))


@cache
def code_words() -> frozenset[str]:
    """Return every word of the code, without comments, docstrings and these tests."""
    words = {*dir(builtins), *keyword.kwlist}
    for path in files():
        if path.suffix in CPP:
            words |= set(re.findall(r"[A-Za-z_]\w*", cpp_code(path)))
        elif path.suffix in PYTHON and path.parent != Path(__file__).parent:
            words |= python_words(path)
    words |= set(re.findall(r"\w+", source(ROOT / "pyproject.toml")))
    return frozenset(words)


def identifier_exists(name: str, path: Path) -> bool:
    """Take names of one or two letters for symbols of a formula."""
    return all(part in code_words() for part in name.split("::") if len(part) > 2)


def slugs(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```", "", source(page), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    found: set[str] = set()
    for heading in headings:
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 1
        while slug in found:
            slug = f"{slug.removesuffix(f'-{number - 1}')}-{number}"
            number += 1
        found.add(slug)
    return found


def test_files_and_folders_exist() -> None:
    assert_none(stale(FILE, file_exists, files()) + stale(FOLDER, folder_exists, files()))


def test_dotted_names_exist() -> None:
    assert_none(stale(FULL_NAME, name_exists, files()) + stale(QUOTED_NAME, quoted_name_exists, files()))


def test_identifiers_exist() -> None:
    assert_none(stale(IDENTIFIER, identifier_exists, files()))


def test_links_to_headings_lead_somewhere() -> None:
    broken, missing = [], set()
    for place, path, match in mentions(LINK, files()):
        page = next((p for p in (path.parent / match[1], ROOT / match[1]) if p.exists()), None)
        if page is None:
            missing.add(match[1])
        elif match[2] not in slugs(page):
            broken.append(f"{place}: {match[0]}")
    assert_none(broken)
    if missing:
        pytest.skip(f"{', '.join(sorted(missing))}: not part of this source tree")


@pytest.mark.parametrize(
    ("pattern", "exists", "good", "bad"),
    [
        (FILE, file_exists, "See csrc/ops/formulas.h, formulas.h and `tests/ops/test_*.py`.", "See ops/formula.h."),
        (FOLDER, folder_exists, "Tests in tests/ops and `csrc/engine/ops`.", "Tests in tests/opps."),
        (FULL_NAME, name_exists, "metagan_fast.functional.sgd_step, mgf.MetaGAN.save.", "mgf.MetaGAN.store"),
        (QUOTED_NAME, quoted_name_exists, "`MetaGAN.save`, `torch.optim.SGD`", "`functional.sgd`"),
        (IDENTIFIER, identifier_exists, "`set_isa`", "`set_isas`"),
    ],
    ids=["file", "folder", "full name", "quoted name", "identifier"],
)
def test_a_stale_reference_is_found(
    pattern: re.Pattern[str], exists: Callable[[str, Path], bool], good: str, bad: str
) -> None:
    def stale_in(text: str) -> list[str]:
        found = (match[match.lastindex or 0] for match in pattern.finditer(text))
        return [name for name in found if not exists(name, ROOT / "README.md")]

    assert pattern.search(good) and stale_in(good) == []
    assert len(stale_in(bad)) == 1
