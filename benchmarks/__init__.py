"""Speed measurements: fused ops and whole inner loops against what people run today."""

from __future__ import annotations

from metagan_fast.benchmarks.command import main

__all__ = ["main"]
