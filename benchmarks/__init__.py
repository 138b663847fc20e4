"""Benchmarks: fused ops and whole inner loops against plain PyTorch and other libraries."""

from __future__ import annotations

from metagan_fast.benchmarks.command import main

__all__ = ["main"]
