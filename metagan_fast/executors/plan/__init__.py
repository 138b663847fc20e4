"""Plans: a module, traced by torch.fx, as the list of operations that the native engine runs."""

from __future__ import annotations

from .conversion import make_plan
from .types import ACTIVATIONS, Operation, Plan, PlanError

__all__ = ["ACTIVATIONS", "Operation", "Plan", "PlanError", "make_plan"]
