"""Lowering: a module is traced by torch.fx and lowered to a plan, the list of operations that the engine runs."""

from __future__ import annotations

from .lower import make_plan
from .report import describe_plan, inner_step_multiply_adds
from .types import Plan, PlanError

__all__ = ["Plan", "PlanError", "describe_plan", "inner_step_multiply_adds", "make_plan"]
