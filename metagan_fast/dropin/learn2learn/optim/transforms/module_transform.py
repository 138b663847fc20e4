"""A transform made of any module."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class ReshapedTransform(nn.Module):
    """Apply a module to a gradient in another shape; the update has the gradient's own.

    Args:
        transform: keeps the number of elements.
        shape: what it takes.
    """

    def __init__(self, transform: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.transform = transform
        self.in_shape = shape

    def forward(self, grad: Tensor) -> Tensor:
        return self.transform(grad.reshape(self.in_shape)).reshape(grad.shape)


class ModuleTransform:
    """Make a transform of a class of modules: from `[1, numel]` to `[1, numel]` elements of a parameter.

    Args:
        module_cls: called with the number of elements, twice.
    """

    def __init__(self, module_cls: Callable[[int, int], nn.Module]) -> None:
        self.module_cls = module_cls

    def __call__(self, parameter: Tensor) -> ReshapedTransform:
        numel = parameter.numel()
        return ReshapedTransform(self.module_cls(numel, numel), (1, numel))
