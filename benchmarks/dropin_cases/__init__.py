"""Loops as originals' users write them, each once with the original and once with the stand-in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from metagan_fast.benchmarks.contenders import Prepared
from torch import Tensor


@dataclass(frozen=True)
class DropInCase:
    """One loop as an original's user writes it.

    Attributes:
        name: as it stands in the records.
        prepare: given whether the case is to be short, sets up the contenders by name, the original first.
            `Prepared.collect` makes of a result one flat tensor.
        package: what must be installed for the original.
        rounds: timed calls of each contender.
        allowed: distance (L2, relative) of a contender's result from the original's.
    """

    name: str
    prepare: Callable[[bool], dict[str, Prepared[Tensor]]]
    package: str | None = None
    rounds: int = 5
    allowed: float = 1e-4
