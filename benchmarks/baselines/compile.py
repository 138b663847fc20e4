"""Vectorised inner step of `vmap.py` under `torch.compile`."""

from __future__ import annotations

from typing import Any

import torch
from metagan_fast.benchmarks.baselines.vmap import Step, vectorised_step
from torch import nn


def compiled_step(generator: nn.Module, discriminator: nn.Module, *, backend: str = "inductor", **options: Any) -> Step:
    """Return one inner step of a batch of tasks; the first call compiles for seconds to minutes."""
    step = vectorised_step(generator, discriminator, **options)
    compiled: Step = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)
    return compiled
