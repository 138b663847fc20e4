"""Bindings to the compiled extension; only this package handles addresses and streams.

`extension` loads it, `buffers` and `engine` pass tensors to the fused ops and to the engine, `optimizers` gathers the
tensors of an optimizer, and `overlap` detects shared memory.
"""

from .engine import EngineCall, make_engine
from .extension import DTYPES, _core, cuda_is_available, is_available, threads
from .optimizers import can_gather, gather
from .overlap import find_overlap

__all__ = [
    "DTYPES",
    "EngineCall",
    "_core",
    "can_gather",
    "cuda_is_available",
    "find_overlap",
    "gather",
    "is_available",
    "make_engine",
    "threads",
]
