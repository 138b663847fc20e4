"""Compiled CUDA kernels: registers, stack, access widths; and builds of the extension with nvcc and without."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cuda_build
from metagan_fast import _native
from metagan_fast.ops._op import OPS
from metagan_fast.ops.clip_grad_norm import SHORT_ROW

needs_nvcc = pytest.mark.skipif(cuda_build.NVCC is None, reason="no CUDA compiler")

# 64 registers let four blocks of 256 threads share a multiprocessor.
MAX_REGISTERS = {"clip_grad_norm": 48, "tasks": 64, "updates": 64}
KERNELS = {"clip_grad_norm": 3, "tasks": 1, "updates": 1}  # of each op, dtype and width


def number_of_kernels(source: str) -> int:
    """Count the ops of a file, times their kernels, three dtypes and two widths."""
    return KERNELS[source] * 6 * sum(cuda_build.source_of(op) == source for op in OPS)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", cuda_build.ARCHITECTURES)
@pytest.mark.parametrize("source", cuda_build.SOURCES)
def test_kernels_stay_in_registers(source: str, architecture: str) -> None:
    _, kernels = cuda_build.compile_for_gpu(source, architecture)
    assert len(kernels) == number_of_kernels(source)
    for name, resources in kernels.items():
        assert (resources.stack, resources.spills) == (0, 0), name
        assert resources.registers <= MAX_REGISTERS[source], name


@needs_nvcc
@pytest.mark.slow
@pytest.mark.skipif(cuda_build.cuobjdump() is None, reason="no cuobjdump, from CUDA or from Triton")
@pytest.mark.parametrize("architecture", cuda_build.ARCHITECTURES)
@pytest.mark.parametrize("source", cuda_build.SOURCES)
def test_packs_move_in_one_access(source: str, architecture: str) -> None:
    for name, code in cuda_build.sass(source, architecture).items():
        loads, stores = "LDG.E.128" in code, "STG.E.128" in code
        if re.search(r"(for_each_pack|scale_to_norm|clip_short_rows)ILi1E", name) or "sum_of_squaresILi1E" in name:
            assert not loads and not stores, name
        else:
            assert loads, name
            assert stores or "sum_of_squares" in name, name


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("source", cuda_build.SOURCES)
def test_ptx_by_kernel(source: str) -> None:
    kernels = cuda_build.ptx(source)
    assert len(kernels) == number_of_kernels(source)
    for name, text in kernels.items():
        assert text.count(".entry") == 1 and f".entry {name}(" in text
        assert ".target sm_80" in text
        products = re.findall(r"\bfma\.rn\.f(?:32|64)\b", text)
        assert not products, f"{name} contracts products and sums"


def configure(folder: Path, choice: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Configure a build, and compile nothing."""
    pybind11 = pytest.importorskip("pybind11", reason="needs pybind11, as a build does")
    cmake, ninja = (find(tool) for tool in ("cmake", "ninja"))
    command = [
        *(cmake, "-S", str(cuda_build.ROOT), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
        f"-DMETAGAN_CUDA={choice}",
    ]
    kept = {name: value for name, value in os.environ.items() if name not in ("CUDACXX", "CUDA_PATH", "CUDA_HOME")}
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True)


def find(tool: str) -> str:
    path = shutil.which(tool) or shutil.which(tool, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip(f"needs {tool}, as a build does")
    return path


def without_nvcc(folder: Path) -> dict[str, str]:
    """Return an environment whose PATH has CPU compilers only."""
    folder.mkdir()
    for tool in ("cc", "c++", "gcc", "g++", "ld", "as", "ar", "ranlib", "nm", "strip", "uname", "sh"):
        if path := shutil.which(tool):
            (folder / tool).symlink_to(path)
    return {"PATH": str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize("choice, returned", [("OFF", 0), ("AUTO", 0), ("ON", 1)])
def test_without_nvcc(tmp_path: Path, choice: str, returned: int) -> None:
    result = configure(tmp_path / "build", choice, **without_nvcc(tmp_path / "bin"))
    output = re.sub(r"\s+", " ", result.stdout + result.stderr)
    if "The CUDA compiler identification" in output:
        pytest.skip("CMake finds a CUDA compiler that is not on PATH")
    assert result.returncode == returned, output
    if returned:
        assert "put nvcc on PATH, name it in CUDACXX, or set METAGAN_CUDA=OFF" in output
    else:
        assert "CUDA kernels: OFF" in output


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("choice, found", [("OFF", "OFF"), ("AUTO", "ON")])
def test_with_nvcc(tmp_path: Path, choice: str, found: str) -> None:
    result = configure(tmp_path, choice)
    assert result.returncode == 0, result.stderr
    assert f"CUDA kernels: {found}" in result.stdout


@pytest.mark.slow
def test_a_choice_that_there_is_not(tmp_path: Path) -> None:
    result = configure(tmp_path, "YES")
    assert result.returncode != 0
    assert "METAGAN_CUDA must be AUTO, ON or OFF, got 'YES'" in re.sub(r"\s+", " ", result.stderr)


built_with_cuda = pytest.mark.skipif(
    not _native.is_available()[0] or not hasattr(_native._core, "cuda_sgd_step"), reason="built without CUDA"
)

OPTIONS = {
    "SgdOptions": (0.0, 0.0, 0.0, False),
    "AdamOptions": (0.9, 0.99, 1.0, 1.0, 1e-8, 0.0, 0.0, False),
    "RmspropOptions": (0.9, 1e-8, 0.0, 0.0),
}
ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"Matrix": (0, 0), "void*": 0, "double*": 0, "double": 0.9, "Number": 0.5, "LearningRate": 0.1, **OPTIONS},
    {
        **{"Matrix": None, "void*": 0, "double*": 0, "double": 1},
        **{"Number": (0,), "LearningRate": (0, 0, 0, 1, 0, 1), **OPTIONS},
    },
)
"""Arguments by C++ type, in two forms."""


@built_with_cuda
@pytest.mark.parametrize("by_type", ARGUMENTS, ids=["numbers", "addresses"])
@pytest.mark.parametrize("op", OPS)
def test_bindings(op: str, by_type: dict[str, Any]) -> None:
    """An empty call needs no device; any other without one is an error that says so."""
    function = getattr(_native._core, f"cuda_{op}")
    arguments = [by_type[kind] for kind in cuda_build.signatures()[op].values()]
    function((0, 0, 0, (0, 0)), *arguments)
    for launch in ((0, 0, 0, 1), (3, 0, 0, (0, 0))):
        with pytest.raises(TypeError):
            function(launch, *arguments)
    if not _native.cuda_is_available()[0]:
        with pytest.raises(RuntimeError, match="CUDA"):
            function((0, 1, 1, (0, 0)), *arguments)


@built_with_cuda
def test_short_rows_take_one_launch_and_no_memory() -> None:
    parts = _native._core.cuda_clip_grad_norm_parts
    assert parts(SHORT_ROW) == 0 < parts(SHORT_ROW + 1)


@built_with_cuda
def test_without_a_device_the_reason_is_said() -> None:
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("there is a device")
    assert _native.cuda_is_available() == (False, "there is no CUDA device")
