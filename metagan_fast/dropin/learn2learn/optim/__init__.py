"""Updates as modules: gradients, transforms of gradients, and steps."""

from . import transforms
from .learnable_optimizer import LearnableOptimizer
from .parameter_update import DifferentiableSGD, ParameterUpdate
from .transforms import MetaCurvatureTransform, ModuleTransform, ReshapedTransform, TransformDictionary

__all__ = [
    "DifferentiableSGD",
    "LearnableOptimizer",
    "MetaCurvatureTransform",
    "ModuleTransform",
    "ParameterUpdate",
    "ReshapedTransform",
    "TransformDictionary",
    "transforms",
]
