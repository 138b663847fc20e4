"""Pages are true: the README's code runs, commands are understood, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from metagan_fast import functional
from support import ROOT


def _read(name: str) -> str:
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not part of this source tree")
    return path.read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", _read("README.md"), flags=re.DOTALL | re.MULTILINE)


def test_the_readme_shows_python() -> None:
    assert len(_blocks("python")) == 3


@pytest.mark.parametrize("number", [0, 1, 2])
def test_python_of_the_readme_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(_blocks("python")[number], "README.md", "exec"), names)
    if number == 0:
        images = names["new_images"]
        assert tuple(images.shape) == (16, 1, 8, 8)  # type: ignore[attr-defined]
        assert images.abs().max() <= 1  # type: ignore[attr-defined]
        assert names["learner"].step == 20  # type: ignore[attr-defined]
    elif number == 1:
        assert names["tasks"].image_shape == names["own"].image_shape == (1, 16, 16)  # type: ignore[attr-defined]
    else:
        moved = names["layout"].flatten(names["model"])  # type: ignore[attr-defined]
        assert moved.sum() < names["adapted"].mean(0).add(0.01).sum()  # type: ignore[attr-defined]


def test_commands_of_the_readme_exist() -> None:
    from metagan_fast.cli import parser

    commands = set(re.findall(r"metagan-fast (\w+)", "".join(_blocks("sh"))))
    assert "train" in commands
    known = next(action.choices for action in parser()._actions if action.dest == "command")
    assert commands <= set(known)


def test_every_op_is_named() -> None:
    text = _read("README.md")
    missing = [name for name in functional.__all__ if name + "_" in functional.__all__ and f"`{name}`" not in text]
    assert not missing


def _pages() -> list[str]:
    guides = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))
    return ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *guides]


def test_bench_commands_are_understood() -> None:
    from metagan_fast.benchmarks.command import _parser

    commands = {command for page in _pages() for command in re.findall(r"metagan-fast bench ([^`\n#)]*)", _read(page))}
    assert len(commands) > 5
    for command in commands:
        _parser().parse_args(shlex.split(command))


def test_links_lead_somewhere() -> None:
    """Links to files of the source tree resolve."""
    links = [(page, link) for page in _pages() for link in re.findall(r"\]\(([^)#]+)\)", _read(page))]
    local = [(page, link) for page, link in links if "://" not in link]
    assert len(local) > 8
    assert not [(page, link) for page, link in local if not (ROOT / page).parent.joinpath(link).exists()]


def test_ci_takes_the_test_command_from_the_readme() -> None:
    _read(".ci/run")
    line = next(line for line in _read(".ci/run").splitlines() if line.startswith("command="))
    found = subprocess.run(
        ["bash", "-c", f'{line}; printf %s "$command"'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == 'pip install -c constraints.txt ".[test]" && pytest -x -q'


@pytest.mark.skipif(sys.orig_argv[1:3] == ["-m", "pytest"], reason="python -m puts the source tree on the path")
def test_pytest_imports_the_installed_package() -> None:
    """Without an editable install the source folder must not shadow the installed package."""
    assert str(ROOT) not in sys.path
    assert not (ROOT / "tests" / "__init__.py").exists()
