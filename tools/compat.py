"""Test the package with other versions of Python and PyTorch: a fresh virtual environment a cell, then a table.

`python tools/compat.py 3.11:2.15.0 3.13:2.13.0` builds a wheel for each Python from a copy of the source tree, installs
it with that PyTorch as a user would, runs the tests of `FAST` and records the counts in `docs/compatibility.json`, a
cell replacing an earlier one of the same versions. Then it writes the table of `docs/compatibility.md`; without cells
that is all. `make compat` runs `DEFAULT`. Environments take 1 to 6 GB each, one at a time, and are deleted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "compatibility.json"
PAGE = ROOT / "docs" / "compatibility.md"

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
TORCHES = ("2.9", "2.10", "2.11", "2.12", "2.13", "2.14", "2.15")
DEFAULT = (
    *("3.11:2.15.0", "3.10:2.9.0", "3.11:2.14.1", "3.11:2.11.0", "3.11:2.10.0", "3.11:2.12.1"),
    *(f"{python}:2.13.0" for python in PYTHONS),
)
"""Cells of `make compat`: each minor version of PyTorch, and each Python with the pinned one."""

OLDEST = "3.10:2.9.0"
"""The cell with the lowest versions that pyproject.toml declares."""

LOWEST = (
    *("numpy==1.26.0", "Pillow==10.1.0", "safetensors==0.4.5", "matplotlib==3.8.0", "fonttools==4.43.0"),
    *("tensorboard==2.16.2", "tqdm==4.66.1"),
)
TOOLS = ("pytest", "hypothesis", "pybind11", "higher")
FAST = (
    *("tests/ops", "tests/executors", "tests/learner", "tests/optim", "tests/engine/test_engine.py"),
    *(
        "tests/test_flat.py",
        "tests/test_noise.py",
        "tests/test_checkpoint.py",
        "tests/training/test_earlier_versions.py",
    ),
    *("tests/cli/test_cli.py", "tests/models"),
)
"""Tests of a cell: about two minutes of one processor."""

FACTS = """
import json, platform
from importlib.metadata import version
print(json.dumps({"python": platform.python_version(), **{
    name: version(name) for name in ("torch", "triton", "numpy", "pillow", "safetensors")
    if __import__("importlib.util").util.find_spec("PIL" if name == "pillow" else name)}}))
"""


class Cell:
    """One virtual environment: `python:torch`, as given on the command line."""

    def __init__(self, text: str, work: Path) -> None:
        self.python, _, self.torch = text.partition(":")
        if not (re.fullmatch(r"3\.\d+", self.python) and re.fullmatch(r"\d+\.\d+\.\d+(\+\w+)?", self.torch)):
            raise SystemExit(f"compat: expected a cell as 3.11:2.15.0, got {text!r}")
        self.work, self.pins = work, LOWEST if text == OLDEST else ()
        self.folder = work / f"env-{self.python}-{self.torch}"

    def run(self, source: Path, tests: Sequence[str]) -> dict[str, Any]:
        """Build, install and test; return the record. No tests: all that plain `pytest` runs."""
        found = find_python(self.python)
        if found is None:
            return {"python": self.python, "torch": self.torch, "result": "no interpreter"}
        record: dict[str, Any] = {"python": self.python, "torch": self.torch}
        step = "environment"
        try:
            if not self.folder.exists():
                subprocess.run([found, "-m", "venv", str(self.folder)], check=True)
            step = "build"
            wheel = str(self.wheel(source))
            step = "installation"
            self.pip("install", f"torch=={self.torch}", *self.pins, *TOOLS, wheel if tests else f"{wheel}[test]")
            self.pip("install", "--no-deps", "--force-reinstall", wheel)  # replaces one that an earlier call left
            step = "import"
            record |= json.loads(self.call("-c", FACTS))
            record["torch"] = record["torch"].partition("+")[0]
            step = "verdicts"
            record["rules"] = json.loads(self.call(str(source / "tests/executors/torch_rules.py")))
            step = "tests"
            return record | self.test(source, tests)
        except subprocess.CalledProcessError as error:
            print(error.stdout or "", error.stderr or "", file=sys.stderr)
            return record | {"result": f"{step} failed"}

    def wheel(self, source: Path) -> Path:
        """Build the package's wheel for this Python, once for all its cells."""
        folder = self.work / f"wheel-{self.python}-{digest(source)}"
        if not list(folder.glob("*.whl")):
            self.pip("wheel", "--no-deps", "-w", str(folder), str(source), METAGAN_CUDA="OFF")
        (wheel,) = folder.glob("*.whl")
        return wheel

    def test(self, source: Path, tests: Sequence[str]) -> dict[str, Any]:
        """Run the tests against the installed package and return their counts."""
        log = self.work / f"tests-{self.python}-{self.torch}.log"
        started = time.time()
        with log.open("w") as output:
            command = [str(self.folder / "bin" / "pytest"), "-q", "-p", "no:cacheprovider", *tests]
            subprocess.run(command, cwd=source, stdout=output, stderr=subprocess.STDOUT, env=environment())
        *_, last = log.read_text().strip().splitlines() or [""]
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", last)}
        print(f"{self.python} {self.torch}: {last} ({log})", flush=True)
        passed = counts.get("passed", 0) > 0 and not counts.get("failed") and not counts.get("error")
        return {
            "result": "passed" if passed else "failed",
            **counts,
            "suite": "fast" if tests else "quick",
            "minutes": round((time.time() - started) / 60, 1),
        }

    def pip(self, command: str, *arguments: str, **variables: str) -> None:
        self.call("-m", "pip", command, "--quiet", "--no-cache-dir", *arguments, **variables)

    def call(self, *arguments: str, **variables: str) -> str:
        command = [str(self.folder / "bin" / "python"), *arguments]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=self.work, env=environment(**variables)
        )
        return done.stdout


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without what would change which packages are found."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return inherited | {"OMP_NUM_THREADS": "1"} | variables


def find_python(version: str) -> str | None:
    """Find an interpreter of a minor version: on the path, or one of pyenv's."""
    roots = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions").glob(f"{version}.*/bin/python")
    for candidate in (shutil.which(f"python{version}"), *map(str, sorted(roots))):
        if candidate and not subprocess.run([candidate, "-c", ""], capture_output=True).returncode:
            return candidate
    return None


def copy_source(target: Path) -> Path:
    """Copy the source tree, which may change while cells run."""
    shutil.copytree(
        ROOT, target, ignore=shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    )
    return target


def digest(source: Path) -> str:
    """Return a digest of all that a wheel is built from."""
    folders = (source / name for name in ("metagan_fast", "kernels", "benchmarks", "csrc"))
    files = [source / "pyproject.toml", source / "setup.py", source / "CMakeLists.txt"]
    files += sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def key(cell: dict[str, Any]) -> tuple[list[int], ...]:
    """Return what tells cells apart, minor versions in numerical order."""
    return tuple([int(part) for part in cell[name].split(".")[:2]] for name in ("torch", "python"))


def table(cells: list[dict[str, Any]]) -> str:
    """Return the results as a table: a row a version of PyTorch, a column a version of Python."""
    found = {json.dumps(key(cell)): cell for cell in cells}
    heads = ["PyTorch", "Triton", *(f"Python {python}" for python in PYTHONS)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for torch in reversed(TORCHES):
        row = [found.get(json.dumps(key({"torch": torch, "python": python}))) for python in PYTHONS]
        exact = sorted({cell["torch"] for cell in row if cell and "numpy" in cell}) or [torch]
        triton = sorted({cell["triton"] for cell in row if cell and "triton" in cell})
        lines.append(f"| {', '.join(exact)} | {', '.join(triton)} | {' | '.join(map(shown, row))} |")
    return "\n".join(lines)


def verdicts(cells: list[dict[str, Any]]) -> str:
    """Return PyTorch's verdicts as a table: a row a rule, a column a version, of those that were run."""
    by_torch = {cell["torch"]: cell["rules"] for cell in cells if "rules" in cell}
    rules = list(dict.fromkeys(rule for found in by_torch.values() for rule in found))
    lines = [f"| rule | {' | '.join(by_torch)} |", "|---" * (1 + len(by_torch)) + "|"]
    return "\n".join(
        lines + [f"| {rule} | {' | '.join(found[rule] for found in by_torch.values())} |" for rule in rules]
    )


def shown(cell: dict[str, Any] | None) -> str:
    """Return a cell's text."""
    if cell is None or cell["result"] == "not run":  # verdicts alone
        return "not run"
    if cell["result"] not in ("passed", "failed"):
        return "not run: no interpreter" if cell["result"] == "no interpreter" else f"**{cell['result']}**"
    bad = cell.get("failed", 0) + cell.get("error", 0)
    return f"**{bad} failed**, {cell.get('passed', 0):,} passed" if bad else f"{cell['passed']:,} passed"


def page(text: str, cells: list[dict[str, Any]]) -> str:
    """Return the page with new tables between its marks."""
    for name, content in {"versions": table(cells), "rules": verdicts(cells)}.items():
        start, end = f"<!-- {name}: written by tools/compat.py -->\n", f"<!-- end of {name} -->"
        before, after = text[: text.index(start)], text[text.index(end) :]
        text = f"{before}{start}{content}\n{after}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="PYTHON:TORCH", help="such as 3.11:2.15.0")
    parser.add_argument("--default", action="store_true", help=f"run {' '.join(DEFAULT)}")
    parser.add_argument("--quick-suite", action="store_true", help="run all that plain pytest runs")
    parser.add_argument("--work", type=Path, help="folder for environments and logs; default: a temporary one")
    parser.add_argument("--keep", action="store_true", help="leave the environments; a later call uses them again")
    given = parser.parse_args()
    cells = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    work = (given.work or Path(tempfile.mkdtemp(prefix="compat-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    wanted = [Cell(text, work) for text in (*given.cells, *(DEFAULT if given.default else ()))]
    failed = False
    with tempfile.TemporaryDirectory(dir=work) as folder:
        source = copy_source(Path(folder) / "source")
        for cell in wanted:
            record = cell.run(source, () if given.quick_suite else FAST)
            failed |= record["result"] != "passed"
            if not given.keep:
                shutil.rmtree(cell.folder, ignore_errors=True)
            cells = sorted([record, *(other for other in cells if key(other) != key(record))], key=key)
            RESULTS.write_text(json.dumps(cells, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), cells))
    print(table(cells))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
