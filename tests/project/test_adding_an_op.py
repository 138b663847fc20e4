"""CONTRIBUTING.md's "Adding an op", followed step by step in a copy of the source tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from metagan_fast import _native, _triton
from proximal_step import INSERTIONS, STEM
from source_copies import copy_source, pip
from support import ROOT

MOST_STEPS = 6

# The op by its definition alone, in float64 and rounded; halves of small integers are exact in every dtype.
USE = """
import sys

import torch
from torch.func import grad, vmap

from metagan_fast import functional

torch.manual_seed(0)
halves = (torch.randint(-4, 5, (3, 2, 70)) / 2).unbind(0)
with functional.use_backend(sys.argv[1]):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        params, grads, anchor = (x.to(dtype, copy=True) for x in halves)
        expected = (halves[0] - 0.5 * (halves[1] + 0.25 * (halves[0] - halves[2]))).to(dtype)
        result = functional.proximal_step(params, grads, anchor, 0.5, strength=0.25)
        assert result.dtype == dtype and torch.equal(result, expected), dtype
        assert functional.proximal_step_(params, grads, anchor, 0.5, strength=0.25) is params
        assert torch.equal(params, expected), dtype

    params, grads, anchor = (x.double() for x in halves)
    rates = torch.tensor([0.5, 2.0], dtype=torch.float64)

    def moved(p, g, a, lr):
        return functional.proximal_step(p, g, a, lr, strength=0.25)

    rows = vmap(moved)(params, grads, anchor, rates)
    assert torch.equal(rows, functional.proximal_step(params, grads, anchor, rates, strength=0.25))
    slopes = vmap(grad(lambda *x: moved(*x).sum(), argnums=(0, 1, 2)))(params, grads, anchor, rates)
    lr = rates[:, None].expand_as(params)
    for slope, expected in zip(slopes, (1 - 0.25 * lr, -lr, 0.25 * lr)):
        assert torch.equal(slope, expected)
print("as defined")
"""

TESTS = (
    "tests/ops",
    "tests/benchmarks/test_benchmarks.py",
    "tests/kernels/test_cuda_kernels.py",
    "tests/kernels/test_triton_assembly.py",
    "tests/project/test_readme.py",
    "tests/project/test_doctests.py",
)
EXPECTED = {
    "test_every_op_is_named",
    "test_every_public_op_has_a_case",
    "test_a_twin_refuses_what_requires_grad",
    "test_one_learning_rate_a_parameter_tensor",
    "test_op_case_agrees_with_plain_pytorch",
    "test_same_bits_as_the_reference",
    "test_special_values",
    "test_the_examples_of_a_docstring_print_what_they_say",
    "test_the_other_ops_are_differentiable_in_plain_pytorch",
    "test_the_public_names_have_examples",
    "test_twins_overwrite_what_they_name_and_nothing_else",
    "test_vmap_is_a_loop",
}
"""Tests that must have met the op; others need Triton, or a compiler for the CUDA shim."""


def steps() -> list[str]:
    """Return the numbered steps of "Adding an op"."""
    page = ROOT / "CONTRIBUTING.md"
    if not page.exists():
        pytest.skip("CONTRIBUTING.md is not part of this source tree")
    section = re.search(r"^## Adding an op$(.*?)^## ", page.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    return re.split(r"^\d+\. ", section[1], flags=re.MULTILINE)[1:]


def test_the_steps_are_few_and_name_the_files() -> None:
    """Text and insertions name the same steps."""
    told = [step.replace("<stem>", STEM) for step in steps()]
    assert 0 < len(told) <= MOST_STEPS
    assert {insertion.step for insertion in INSERTIONS} == set(range(1, len(told) + 1))
    for insertion in INSERTIONS:
        assert f"`{insertion.file}`" in told[insertion.step - 1], f"{insertion.file}: not in step {insertion.step}"


@dataclass(frozen=True)
class Installed:
    """A source tree with the op, and the folder that it is installed in."""

    tree: Path
    site: Path

    def run(self, *command: str, **environment: str) -> str:
        """Return the output of Python that finds the installed package."""
        result = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, "PYTHONPATH": str(self.site), **environment},
            cwd=self.tree / "tests" / "ops",
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
        return result.stdout

    def run_tests(self, *tests: str, **environment: str) -> list[str]:
        """Run the tree's tests that concern the op, or all ops; return the names of those that pass."""
        options = ("-v", "-x", "-p", "no:cacheprovider", "-k", f"{STEM} or every_op or every_public_op")
        paths = (str(self.tree / test) for test in tests)
        report = self.run("-m", "pytest", *options, *paths, **environment)
        return re.findall(r"(test_\w+)(?:\[.*\])? PASSED", report)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Follow the steps in a copy of the source tree, and install it."""
    if not _native.is_available()[0]:
        pytest.skip("the extension is not installed, and may not build here")
    folder = tmp_path_factory.mktemp("new-op")
    tree, site = copy_source(folder / "tree"), folder / "site"
    for insertion in INSERTIONS:
        insertion.apply(tree)
    built = pip("install", "--target", str(site), str(tree), METAGAN_CUDA="OFF")
    assert built.returncode == 0, (built.stdout + built.stderr)[-6000:]
    return Installed(tree, site)


@pytest.mark.slow
def test_the_op_computes_its_definition(installed: Installed) -> None:
    assert installed.run("-c", USE, "native") == "as defined\n"


@pytest.mark.slow
def test_the_op_passes_the_tests_of_every_op(installed: Installed) -> None:
    passed = installed.run_tests(*TESTS)
    assert set(passed) >= EXPECTED, passed


@pytest.mark.slow
def test_the_op_runs_in_the_interpreter_of_triton(installed: Installed) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    if problem := _triton.interpreter_problem():
        pytest.skip(problem)
    assert installed.run("-c", USE, "triton", TRITON_INTERPRET="1") == "as defined\n"
    passed = installed.run_tests("tests/kernels/triton_interpreted.py", TRITON_INTERPRET="1")
    assert set(passed) >= {"test_same_bits_as_the_reference", "test_special_values"}, passed


@pytest.mark.parametrize("step", [1, 2])
def test_a_step_that_is_out_of_date_is_named(step: int, tmp_path: Path) -> None:
    insertion = next(x for x in INSERTIONS if x.step == step)
    with pytest.raises(AssertionError, match=f"step {step} of CONTRIBUTING.md, 'Adding an op', is out of date"):
        insertion.apply(tmp_path)
