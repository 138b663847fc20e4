"""`metagan-fast info`: versions, threads and backends of this installation."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
from typing import Any

import torch

from .. import _native, _source_tree
from ..ops import _dispatch
from ..training import config as configuration


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "info", help="show what this installation can use", description="Show versions, threads and backends."
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print versions, threads and backends."""
    for name, value in configuration.versions().items():
        print(f"{name:16} {value}")
    print(f"{'triton':16} {_version('triton')}")
    tree = _source_tree.root()
    print(f"{'package':16} {os.path.dirname(_source_tree.__file__)}{' (source tree)' if tree else ''}")
    print(f"{'extension':16} {_native._core.__file__ if _native.is_available()[0] else 'none'}")
    print(f"{'threads':16} {_native.threads()}")
    print(f"{'instruction set':16} {_instruction_set()}")
    print(f"{'cuda':16} {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no device'}")
    for name in _dispatch.NAMES:
        row = next(row for row in _dispatch.BACKENDS if row.name == name)
        available, reason = row.is_available()
        print(f"{'backend ' + name:16} {'available' if available else f'not available: {reason}'}")
    return 0


def _instruction_set() -> str:
    try:
        from .. import _core
    except ImportError:
        return "as PyTorch's: the compiled extension is missing"
    return f"{_core.isa()} (this processor runs {', '.join(_core.available_isas())})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
