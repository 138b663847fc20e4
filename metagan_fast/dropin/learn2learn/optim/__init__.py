"""Updates as modules: gradients, gradient transforms and steps."""

from __future__ import annotations

from ..._originals import fall_back_to
from . import learnable_optimizer, parameter_update, transforms, update_rules
from .learnable_optimizer import LearnableOptimizer
from .parameter_update import ParameterUpdate
from .transforms import (
    KroneckerTransform,
    MetaCurvatureTransform,
    ModuleTransform,
    ReshapedTransform,
    TransformDictionary,
    kronecker_transform,
    metacurvature_transform,
    module_transform,
    transform_dictionary,
)
from .update_rules import DifferentiableSGD, differentiable_sgd

__all__ = [
    "DifferentiableSGD",
    "KroneckerTransform",
    "LearnableOptimizer",
    "MetaCurvatureTransform",
    "ModuleTransform",
    "ParameterUpdate",
    "ReshapedTransform",
    "TransformDictionary",
    "differentiable_sgd",
    "kronecker_transform",
    "learnable_optimizer",
    "metacurvature_transform",
    "module_transform",
    "parameter_update",
    "transform_dictionary",
    "transforms",
    "update_rules",
]
__getattr__, __dir__ = fall_back_to(__name__, "learn2learn.optim")
