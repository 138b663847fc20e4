"""Copies of the source tree, and pip's builds of them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

BUILD_REQUIREMENTS = ("setuptools", "pybind11", "cmake", "ninja")


def copy_source(target: Path) -> Path:
    """Copy the source tree, without what was built in it."""
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__", "*.so")
    shutil.copytree(ROOT, target, ignore=ignored)
    return target


def missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None


def pip(command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build with pip, in an isolated environment unless this one has what a build needs; skip if neither works."""
    isolation = () if any(map(missing, BUILD_REQUIREMENTS)) else ("--no-build-isolation",)
    result = subprocess.run(
        [sys.executable, "-m", "pip", command, "--no-deps", *isolation, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if result.returncode != 0 and "Could not find a version that satisfies" in result.stdout + result.stderr:
        pytest.skip("the build requirements are neither installed nor to be had from a package index")
    return result
