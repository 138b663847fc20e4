"""`metagan-fast info`: what a bug report needs, with a check of kernels and engine against PyTorch."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import time
from collections.abc import Iterator
from typing import Any

import torch

from .. import _native, _source_tree
from .._utils import machine, torch_version
from ..ops import _dispatch
from ..training import config as configuration
from . import self_check

_FAILED = 1
_PACKAGES = ("metagan_fast", "torch", "triton", "numpy", "pillow", "safetensors", "matplotlib")
_VARIABLES = ("METAGAN_", "OMP_", "MKL_", "GOMP_", "KMP_", "CUDA_", "TRITON_", "TORCH_", "PYTORCH_", "LD_PRELOAD")
"""Beginnings of the names of environment variables that change results or speed."""


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "info",
        help="show what this installation can use, and check it",
        description="Show versions, machine, threads and backends, and compare kernels and engine with PyTorch: the "
        "text to paste into a bug report. The exit code is 1 if a check fails or the extension does not load.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print the report."""
    report = gather()
    print(json.dumps(report, indent=2) if given.json else "\n".join(lines(report)))
    broken = report["extension"]["broken"] or not all(check["passed"] for check in report["self-check"]["checks"])
    return _FAILED if broken else 0


def gather() -> dict[str, Any]:
    """Return all facts as plain data."""
    started = time.perf_counter()
    checks = [check._asdict() | {"passed": check.passed} for check in self_check.checks()]
    seconds = time.perf_counter() - started
    memory = machine.memory()
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "torch-untested": torch_version.problem(),
        "system": f"{platform.platform()}, {platform.python_implementation()}",
        "processor": machine.processor(),
        "processors": {"usable": machine.usable_processors(), "all": os.cpu_count()},
        "memory": None if memory is None else {"bytes": memory[0], "free": memory[1]},
        "package": {"folder": os.path.dirname(_source_tree.__file__), "source-tree": _source_tree.root() is not None},
        "extension": _extension(),
        "instruction-set": _instruction_set(),
        "threads": _threads(),
        "cuda": _cuda(),
        "backends": {name: _backend(name) for name in _dispatch.NAMES},
        "kernels": {device: _kernels(device) for device in ("cpu", *(["cuda"] * torch.cuda.is_available()))},
        "default-network": _default_network(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
        "self-check": {"checks": checks, "seconds": round(seconds, 2)},
    }


def lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the report as text: a name, padded, and its value."""

    def line(name: str, value: object) -> str:
        return f"{name:16} {value}"

    for name, version in report["versions"].items():
        yield line(name, version or "not installed")
    if report["torch-untested"]:
        yield line("untested", report["torch-untested"])
    yield line("system", report["system"])
    yield line("processor", f"{report['processor']}; {report['processors']['usable']} usable")
    if report["memory"]:
        yield line("memory", "{:.1f} GB, {:.1f} GB free".format(*(n / 1e9 for n in report["memory"].values())))
    package, extension = report["package"], report["extension"]
    yield line("package", package["folder"] + (" (source tree)" if package["source-tree"] else ""))
    yield line("extension", extension["file"] or "none")
    if extension["file"]:
        yield line("built", f"{extension['build']}; sources {extension['digest'][:12]}")
    elif extension["broken"]:
        yield line("broken", extension["problem"])
    yield line("threads", report["threads"])
    yield line("instruction set", report["instruction-set"])
    for text in report["cuda"]:
        yield line("cuda", text)
    for name, text in report["backends"].items():
        yield line(f"backend {name}", text)
    for device, name in report["kernels"].items():
        yield line(f"kernels on {device}", name)
    yield line("default network", report["default-network"])
    for name, value in report["environment"].items():
        yield line("environment", f"{name}={value}")
    yield from _check_lines(report["self-check"])


def _check_lines(result: dict[str, Any]) -> Iterator[str]:
    checks = result["checks"]
    bad = [check for check in checks if not check["passed"]]
    what = f"{len(checks)} results compared with PyTorch in {result['seconds']} s"
    if not checks:
        what = "nothing to compare: all runs in PyTorch"
    yield f"{'self-check':16} {f'FAILED: {len(bad)} of ' if bad else 'passed: ' if checks else ''}{what}"
    for check in bad:
        wrong = check["problem"] or f"relative error {check['error']:.1e}, expected at most {check['limit']:.0e}"
        yield f"{'FAILED':16} {check['name']}: {wrong}"


def _version(package: str) -> str | None:
    if package == "metagan_fast":
        return configuration.versions()[package]
    if package == "torch":
        return torch.__version__  # with the build, such as +cpu
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extension() -> dict[str, Any]:
    available, problem = _native.is_available()
    if available:
        core = _native._core
        return {
            "file": core.__file__,
            "digest": core.SOURCE_DIGEST,
            "build": ", ".join(f"{name} {version}" for name, version in core.BUILD.items()),
            "problem": "",
            "broken": False,
        }
    try:
        broken = importlib.util.find_spec(_source_tree.EXTENSION) is not None  # there, but does not load
    except ModuleNotFoundError:  # a source tree without a fitting one
        broken = False
    return {"file": None, "digest": None, "build": None, "problem": problem, "broken": broken}


def _instruction_set() -> str:
    if not _native.is_available()[0]:
        return "as PyTorch's: the compiled extension is missing"
    core = _native._core
    why = "METAGAN_FAST_ISA" if os.environ.get("METAGAN_FAST_ISA") else "the fastest"
    return f"{core.isa()}, {why} (this processor runs {', '.join(core.available_isas())})"


def _threads() -> str:
    try:
        count = _native.threads()
    except ValueError as error:
        return str(error)
    for name in ("METAGAN_FAST_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if os.environ.get(name):
            return f"{count}, from {name}={os.environ[name]}"
    return f"{count}, PyTorch's default"


def _cuda() -> list[str]:
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        return [f"no device; PyTorch is {build}"]
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [
        f"{x.name}, compute capability {x.major}.{x.minor}, {x.total_memory / 1e9:.1f} GB, CUDA {torch.version.cuda}"
        for x in devices
    ]


def _backend(name: str) -> str:
    row = next(row for row in _dispatch.BACKENDS if row.name == name)
    available, reason = row.is_available()
    return "available" if available else f"not available: {reason}"


def _kernels(device: str) -> str:
    """Return the backend that runs the fused ops on a device."""
    rows = (row for row in _dispatch.BACKENDS if row.device in (device, _dispatch.ANY))
    return next(row.name for row in rows if row.is_available()[0])


def _default_network() -> str:
    """Return the executor of the networks that `metagan-fast train` trains, and why."""
    settings = configuration.resolve(configuration.from_preset("default"))
    text = configuration.build_learner(settings, (1, 32, 32)).explain()
    first = text.partition("\n")[0].removeprefix("executor: ")
    return f"{first}: the engine supports every layer" if first.startswith("native") else first
