"""Differentiable update rules for given gradients."""

from . import differentiable_sgd
from .differentiable_sgd import DifferentiableSGD

__all__ = ["DifferentiableSGD", "differentiable_sgd"]
