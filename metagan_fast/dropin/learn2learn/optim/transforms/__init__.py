"""Gradient transforms: factories of modules from a parameter's gradient to its update."""

from . import kronecker_transform, metacurvature_transform, module_transform, transform_dictionary
from .kronecker_transform import KroneckerTransform
from .metacurvature_transform import MetaCurvatureTransform
from .module_transform import ModuleTransform, ReshapedTransform
from .transform_dictionary import TransformDictionary

__all__ = [
    "KroneckerTransform",
    "MetaCurvatureTransform",
    "ModuleTransform",
    "ReshapedTransform",
    "TransformDictionary",
    "kronecker_transform",
    "metacurvature_transform",
    "module_transform",
    "transform_dictionary",
]
