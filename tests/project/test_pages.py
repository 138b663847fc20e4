"""The code of the pages in docs/: Python blocks run in order, commands are understood, the quick ones run.

`<!-- not run: REASON -->` before a Python block leaves it at being compiled; `<!-- run -->` before a shell block runs
its commands.
"""

from __future__ import annotations

import argparse
import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from metagan_fast import cli
from support import ROOT

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run: \S[^>]*|run) -->\n)?^```(?P<language>[\w{}-]*)[^\n]*\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_NOT_RUN = "not run: "


class Block(NamedTuple):
    """A fenced block of code, with the comment before it."""

    language: str
    mark: str
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(m["language"], m["mark"] or "", m["code"], text.count("\n", 0, m.start("code")) + 1)
        for m in _BLOCK.finditer(text)
    ]


def commands(code: str) -> Iterator[list[str]]:
    """Yield the arguments of each `metagan-fast` in a block of shell commands."""
    for line in code.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&", line):
            words = shlex.split(command, comments=True)
            if words[:1] == ["metagan-fast"]:
                yield words[1:]


PAGES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.glob("docs/**/*.md"))}
WITH_CODE = sorted(
    name for name, path in PAGES.items() if any(b.language == "python" or b.mark == "run" for b in blocks(path))
)
WITH_COMMANDS = sorted(
    name for name, path in PAGES.items() if any(b.language == "sh" and [*commands(b.code)] for b in blocks(path))
)


def run(block: Block, page: str, names: dict[str, object]) -> None:
    """Compile a block of Python, at its own line of the page, and run it unless it says otherwise."""
    code = compile("\n" * (block.line - 1) + block.code, page, "exec", dont_inherit=True)
    if not block.mark.startswith(_NOT_RUN):
        exec(code, names)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read a command as `cli.main` does; a wrong one ends in SystemExit."""
    if arguments[:1] == ["bench"]:
        from metagan_fast.benchmarks.command import _parser

        return _parser().parse_args(arguments[1:])
    here = ["cpu" if word == "cuda" and not torch.cuda.is_available() else word for word in arguments]
    return cli.parser().parse_args(here)


def test_there_are_pages_with_code() -> None:
    if not PAGES:
        pytest.skip("docs is not part of this source tree")
    assert len(WITH_CODE) > 8 and len(WITH_COMMANDS) > 8


@pytest.mark.slow
@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_of_a_page_runs(page: str) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(PAGES[page]):
        if block.language == "python":
            with redirect_stdout(io.StringIO()) as printed:
                run(block, page, names)
            expected = re.findall(r"^print\(.*\)  # (.*)$", block.code, flags=re.MULTILINE)
            assert [line for line in expected if line not in printed.getvalue().splitlines()] == []
        elif block.language == "sh" and block.mark == "run":
            for arguments in commands(block.code):
                assert cli.main(arguments) == 0


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_the_commands_of_a_page_are_understood(page: str) -> None:
    Path("my_features.py").write_text("def embed(images):\n    return images.flatten(1)\n")  # for evaluate --features
    Path("my-glyphs").mkdir()  # for train --init
    for block in blocks(PAGES[page]):
        if block.language == "sh":
            for arguments in commands(block.code):
                parse(arguments)


def test_every_block_is_closed_and_fits_its_mark() -> None:
    for name, path in PAGES.items():
        found = blocks(path)
        fences = re.findall("^ *```", path.read_text(), flags=re.MULTILINE)
        assert len(fences) == 2 * len(found), f"{name}: a block that is not closed, or oddly begun"
        for block in found:
            allowed = {"python": _NOT_RUN, "sh": "run"}.get(block.language, "nothing")
            assert not block.mark or block.mark.startswith(allowed), f"{name}:{block.line}"


def test_a_wrong_block_is_found() -> None:
    with pytest.raises(NameError) as caught:
        run(Block("python", "", "missing\n", 7), "page.md", {})
    assert caught.traceback[-1].lineno == 6  # counted from 0
    with pytest.raises(SyntaxError):
        run(Block("python", "not run: whatever", "1 +\n", 7), "page.md", {})
    with pytest.raises(SystemExit):
        parse(["train", "--no-such-option"])
