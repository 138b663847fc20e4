"""Loader of the compiled extension: its availability, its devices, its number of threads."""

from __future__ import annotations

import os

import torch

from .. import _source_tree

_source_tree.activate()
try:
    import metagan_fast._core as _core

    _problem = ""
except ImportError as error:
    _core = None  # type: ignore[assignment]
    if not isinstance(error, ModuleNotFoundError):
        _problem = f"the compiled extension metagan_fast._core did not load ({error})"
    elif _source_tree.root():
        _problem = str(error)
    else:
        _problem = "this installation has no compiled extension: install it without METAGAN_FAST_NO_EXT"

# The codes _core.FLOAT32, BFLOAT16 and FLOAT64; repeated here to be known without the extension.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}

_MOST_THREADS = 2**16  # above any number of processors, and safe in the extension's integers


def is_available() -> tuple[bool, str]:
    """Return whether the extension loaded, and if not, why."""
    return not _problem, _problem


def cuda_is_available() -> tuple[bool, str]:
    """Return whether the extension has CUDA kernels and a GPU is present, and if not, why."""
    available, reason = is_available()
    if available:
        reason = _core.cuda_problem()
    return not reason, reason


def threads() -> int:
    """Return how many threads a call may use: METAGAN_FAST_THREADS if set, else `torch.get_num_threads()`.

    The extension starts at most one thread a processor.

    Raises:
        ValueError: METAGAN_FAST_THREADS is not a positive integer.
    """
    override = os.environ.get("METAGAN_FAST_THREADS")
    if not override:
        return torch.get_num_threads()
    if not override.isdecimal() or int(override) < 1:
        raise ValueError(f"METAGAN_FAST_THREADS must be a positive integer, got {override!r}; correct or unset it")
    return min(int(override), _MOST_THREADS)
