"""The examples in the docstrings of the installed package."""

from __future__ import annotations

import doctest
import functools
import importlib
import pkgutil
import types
from collections.abc import Iterator

import pytest
import torch

import metagan_fast
from metagan_fast.ops._op import OPS

# Parts without public docstrings, or with optional dependencies.
LEFT_OUT = ("metagan_fast._core", "metagan_fast.__main__", "metagan_fast.benchmarks", "metagan_fast.kernels")

CLASSES = ("FOMAML", "MAML", "AnnealedStepWeights", "FlatLayout", "InnerLoop", "MetaGAN", "Reptile", "TaskBatch")
MODULES = ("functional", "losses", "metrics", "models", "optim", "schedules")
TASKS = ("tasks.from_arrays", "tasks.from_dataset", "tasks.load")
DOCUMENTED = (*CLASSES, *MODULES, *TASKS, *(f"functional.{op}" for op in OPS))


def modules(package: types.ModuleType) -> Iterator[types.ModuleType]:
    yield package
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if found.name.startswith(LEFT_OUT) or ".build_" in found.name or ".dropin." in found.name:
            continue
        module = importlib.import_module(found.name)
        yield from modules(module) if found.ispkg else (module,)


@functools.cache
def examples() -> dict[str, doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = (test for module in modules(metagan_fast) for test in finder.find(module))
    return {test.name: test for test in found if test.examples}


def run(test: doctest.DocTest) -> str:
    """Return what the examples print where it is not what they say."""
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)  # else pytest's -v counts
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        runner.run(test, out=report.append, clear_globs=False)
    return "".join(report)


@pytest.mark.parametrize("name", sorted(examples()))
def test_the_examples_of_a_docstring_print_what_they_say(name: str) -> None:
    assert run(examples()[name]) == ""


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_public_names_have_examples(name: str) -> None:
    documented = pkgutil.resolve_name(f"metagan_fast:{name}")
    is_module = isinstance(documented, types.ModuleType)
    home = documented.__name__ if is_module else f"{documented.__module__}.{documented.__name__}"
    assert home in examples()


def test_a_wrong_example_is_found() -> None:
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert "Expected:\n    3" in run(test)
