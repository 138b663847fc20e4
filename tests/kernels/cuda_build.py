"""Compilers for the CUDA sources: a host compiler with the shim, and nvcc."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

CSRC = ROOT / "csrc" / "cuda"
SHIM = ROOT / "tests" / "kernels" / "cuda_shim"
SOURCES = ("clip_grad_norm", "tasks", "updates")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")

HOST_FLAGS = (
    *("-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-pthread"),  # aliasing as in nvcc
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-clobbered"),
    *(f"-I{SHIM}", f"-I{ROOT / 'csrc'}"),
    "-DMETAGAN_MAX_BLOCKS=3",  # few blocks, so that small buffers exercise the grid-stride loops
)
NVCC_FLAGS = ("-std=c++17", "-O3", "--fmad=false", f"-I{ROOT / 'csrc'}")

HOST_COMPILER = shutil.which("g++")
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")


@functools.cache
def module_problem() -> str:
    """Return why no Python module can be compiled from `tests/kernels/cuda_shim` here, "" if one can."""
    if HOST_COMPILER is None:
        return "no g++ to compile the kernels with"
    if importlib.util.find_spec("pybind11") is None:
        return "no pybind11 to bind the kernels with"
    return "" if Path(sysconfig.get_path("include"), "Python.h").exists() else "no headers of Python"


def module_flags() -> tuple[str, ...]:
    """Return the flags of `compile_for_host` for a Python module."""
    import pybind11

    headers = pybind11.get_include(), sysconfig.get_path("include")
    return "-shared", "-fPIC", "-fvisibility=hidden", *(f"-isystem{path}" for path in headers)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for build products, deleted at exit."""
    return tempfile.TemporaryDirectory(prefix="metagan_cuda_")


@functools.cache
def compile_for_host(source: str, *flags: str) -> Path:
    """Compile a file of `tests/kernels/cuda_shim` for the host, once a session, and return the product."""
    assert HOST_COMPILER is not None
    target = Path(_folder().name) / "-".join([Path(source).stem, *(re.sub(r"\W", "", flag) for flag in flags)])
    subprocess.run([HOST_COMPILER, *HOST_FLAGS, *flags, str(SHIM / source), "-o", str(target)], check=True)
    return target


@functools.cache
def signatures() -> dict[str, dict[str, str]]:
    """Return the operands of each op, C++ types by name, from `Ops` in csrc/ops/launch.h."""
    text = (ROOT / "csrc" / "ops" / "launch.h").read_text()
    found = {}
    for op, operands in re.findall(r"using (\w+) = void\(const To&,([^)]*)\);", text):
        pairs = [re.fullmatch(r"(?:const )?([A-Za-z]+)([*&]?) ?(\w*)", x.strip()) for x in operands.split(",")]
        found[op] = {x[3] or x[1]: x[1] + x[2].replace("&", "") for x in pairs if x}
        assert None not in pairs, f"{op}: {operands}"
    return found


def source_of(op: str) -> str:
    """Return the name, among `SOURCES`, of the file with an op's launcher."""
    (source,) = (x for x in SOURCES if f"void {op}(const DeviceLaunch&" in (CSRC / f"{x}.cu").read_text())
    return source


@dataclass(frozen=True)
class Resources:
    """Resources of a kernel, as reported by ptxas."""

    registers: int
    stack: int
    spills: int


@functools.cache
def _ptx_file(source: str) -> Path:
    """Return the PTX of one `.cu`, the source of every architecture's code, as in CMakeLists.txt."""
    assert NVCC is not None
    target = Path(_folder().name) / f"{source}.ptx"
    command = [NVCC, *NVCC_FLAGS, "-ptx", "-arch=compute_80", str(CSRC / f"{source}.cu"), "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return target


@functools.cache
def compile_for_gpu(source: str, architecture: str) -> tuple[Path, dict[str, Resources]]:
    """Return the object file of one `.cu` and the resources of its kernels, by mangled name."""
    assert NVCC is not None
    target = Path(_folder().name) / f"{source}.{architecture}.cubin"
    command = [NVCC, "-cubin", f"-arch={architecture}", "-Xptxas", "-v", str(_ptx_file(source)), "-o", str(target)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    kernels = {}
    for section in re.split(r"Compiling entry function ", result.stdout + result.stderr)[1:]:
        name = section.split("'")[1]
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", section)
        registers = re.search(r"Used (\d+) registers", section)
        assert memory is not None and registers is not None, section
        stack, stores, loads = map(int, memory.groups())
        kernels[name] = Resources(int(registers[1]), stack, stores + loads)
    return target, kernels


@functools.cache
def ptx(source: str) -> dict[str, str]:
    """Return the PTX (compute_80) of every kernel of one `.cu`, by mangled name, each a module of its own.

    Parameters, in order, as in C++ on x86-64 (pointers and int64 8 bytes, structs aligned as their widest member):

    - `for_each_pack<kWidth, Op>(int64 rows, int64 columns, Op op)`: `Op` is one of the structs of
      `csrc/cuda/updates.cuh`, its members in the order of their declaration there. `kWidth` elements move together:
      16 bytes of them, or 1. Threads (x, y) of a block, x times y at most 256, are packs and rows.
    - `clip_short_rows<kWidth, T>(int64 rows, int64 columns, Buffer<T> grads, A* norms, double max_norm,
      bool in_place)`: grid (1, y), 256 threads a block.
    - `sum_of_squares<kWidth, T>(int64 rows, int64 columns, Input<T> grads, double* sums)`: grid (parts, y), 256
      threads a block.
    - `scale_to_norm<kWidth, T>(int64 rows, int64 columns, Buffer<T> grads, const double* sums, int64 parts,
      A* norms, double max_norm, bool in_place)`: any grid, 256 threads a block.

    `Input<T>` is (address, int64 row stride), `Buffer<T>` an `Input<T>`, an address and an int64 row stride.
    """
    text = _ptx_file(source).read_text()
    head, *kernels = re.split(r"(?=^[ \t]*(?:\.weak |\.visible )?\.entry )", text, flags=re.M)
    names = [re.search(r"\.entry (\w+)", kernel) for kernel in kernels]
    return {name[1]: head + kernel for name, kernel in zip(names, kernels, strict=True) if name is not None}


def cuobjdump() -> str | None:
    """Return a disassembler: CUDA's own or Triton's."""
    beside = Path(sysconfig.get_path("purelib"), "triton/backends/nvidia/bin")
    try:
        import triton

        beside = Path(triton.__file__).parent / "backends/nvidia/bin"
    except ImportError:
        pass
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=str(beside))


def sass(source: str, architecture: str) -> dict[str, str]:
    """Return the machine code of every kernel, by mangled name."""
    program = cuobjdump()
    assert program is not None
    cubin, _ = compile_for_gpu(source, architecture)
    result = subprocess.run([program, "-sass", str(cubin)], check=True, capture_output=True, text=True)
    sections = re.split(r"Function : ", result.stdout)[1:]
    return {section.split()[0]: section for section in sections}
