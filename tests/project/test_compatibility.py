"""The page about other versions of Python and PyTorch says what was run, and the package what the page says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from packaging.requirements import Requirement

import compat
from metagan_fast._utils import torch_version
from support import ROOT
from test_install import pins, project, requirements


def cells() -> list[dict[str, Any]]:
    return json.loads(compat.RESULTS.read_text())


def test_the_page_shows_the_recorded_results() -> None:
    assert compat.page(compat.PAGE.read_text(), cells()) == compat.PAGE.read_text()


def test_versions_without_a_log_line_are_those_that_passed() -> None:
    """And the one that constraints.txt pins, in which all tests run."""
    passed = [cell["torch"] for cell in cells() if cell["result"] == "passed"]
    assert set(torch_version.TESTED) == {".".join(x.split(".")[:2]) for x in (*passed, pins()["torch"])}


def test_the_oldest_cell_has_the_declared_lowest_versions() -> None:
    declared = requirements(project()["dependencies"])
    torch = compat.OLDEST.partition(":")[2]
    for pin in (*map(Requirement, compat.LOWEST), Requirement(f"torch=={torch}")):
        (lowest,), (exact,) = declared[pin.name.lower()].specifier, pin.specifier
        assert lowest.operator == ">=" and exact.version.startswith(lowest.version), pin
    assert compat.OLDEST.startswith(project()["requires-python"].removeprefix(">="))


def test_a_table_tells_results_from_cells_that_were_not_run() -> None:
    ran = {"python": "3.11.7", "torch": "2.9.1", "triton": "3.5.1", "numpy": "2.4"}
    results = [
        {**ran, "result": "passed", "passed": 1200},
        {**ran, "python": "3.10.1", "result": "failed", "passed": 10, "failed": 2, "error": 1},
        {"python": "3.14", "torch": "2.9.1", "result": "no interpreter"},
        {"python": "3.12", "torch": "2.9.1", "result": "installation failed"},
    ]
    row = compat.table(results).splitlines()[-1]
    assert row == (
        "| 2.9.1 | 3.5.1 | **3 failed**, 10 passed | 1,200 passed | **installation failed** | not run | "
        "not run: no interpreter |"
    )


@pytest.mark.parametrize("text", ["3.11", "2.15.0:3.11", "3.11:2.15", "3.11:2.15.0;rm"])
def test_a_cell_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match=r"expected a cell as 3\.11:2\.15\.0, got"):
        compat.Cell(text, ROOT)
