"""Translator that runs compiled PTX (of Triton and nvcc) on a CPU: see README.md."""

from .loader import COMPILER, ORDERS, Module, load
from .parser import PtxError

__all__ = ["COMPILER", "ORDERS", "Module", "PtxError", "load"]
