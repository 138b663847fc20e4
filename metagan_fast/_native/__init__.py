"""The compiled extension: the only place that touches addresses and streams.

`extension` loads it, `ops` runs the fused ops, `engine` the inner loops, `optimizers` gathers the tensors of an
optimizer, and `overlap` tells whether tensors share memory.
"""

from ..ops._native import OPS
from .engine import EngineCall, make_engine
from .extension import DTYPES, _core, cuda_is_available, is_available, threads
from .optimizers import can_gather, gather
from .overlap import find_overlap

__all__ = [
    "DTYPES",
    "OPS",
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
