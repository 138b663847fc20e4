"""Gradient transform from an arbitrary module."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class ReshapedTransform(nn.Module):
    """Apply a module to a reshaped gradient, and restore the gradient's shape.

    Args:
        transform: module that keeps the number of elements.
        shape: the module's input shape.
    """

    def __init__(self, transform: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.transform = transform
        self.in_shape = shape

    def forward(self, grad: Tensor) -> Tensor:
        return self.transform(grad.reshape(self.in_shape)).reshape(grad.shape)


class ModuleTransform:
    """Factory of transforms from a module class that maps `[1, numel]` to `[1, numel]`.

    Args:
        module_cls: module class called with the input and output size, both the parameter's number of elements.
    """

    def __init__(self, module_cls: Callable[[int, int], nn.Module]) -> None:
        self.module_cls = module_cls

    def __call__(self, parameter: Tensor) -> ReshapedTransform:
        numel = parameter.numel()
        return ReshapedTransform(self.module_cls(numel, numel), (1, numel))
