"""Cases of the drop-ins: an original's loop against the same loop with the import changed."""

from __future__ import annotations

from metagan_fast.benchmarks.dropin_cases import DropInCase, figr, higher, learn2learn, optim, torchopt

CASES: tuple[DropInCase, ...] = (*figr.CASES, *higher.CASES, *learn2learn.CASES, *optim.CASES, *torchopt.CASES)
