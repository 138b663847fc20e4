"""Modules from a gradient to an update, made for a parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
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


class TransformDictionary:
    """Choose the transform by parameter, or by the module that holds it; None for any other.

    Args:
        dictionary: from modules or parameters to what makes their transform.

    Raises:
        ValueError: a key is something else.
    """

    def __init__(self, dictionary: Mapping[Any, Callable[..., nn.Module | None]]) -> None:
        self.param_to_transform: dict[Tensor, Callable[..., nn.Module | None]] = {}
        for key, transform in dictionary.items():
            if not isinstance(key, (nn.Module, nn.Parameter)):
                raise ValueError(f"expected modules or parameters as keys, got {type(key).__name__}")
            for parameter in key.parameters() if isinstance(key, nn.Module) else [key]:
                self.param_to_transform[parameter] = transform

    def __call__(self, param: Tensor, *args: Any, **kwargs: Any) -> nn.Module | None:
        transform = self.param_to_transform.get(param)
        return None if transform is None else transform(param, *args, **kwargs)


class MetaCurvatureTransform(nn.Module):
    """Multiply a gradient along each of its axes by a learned matrix (Park & Oliva 2019, arXiv:1902.03356).

    The matrices start as the identity. A vector is multiplied by a learned vector; the spatial axes of a convolution's
    weight count as one.

    Args:
        param: of 1, 2 or 4 dimensions.
        lr: a factor of the update, not learned.

    Raises:
        NotImplementedError: other dimensions.
    """

    def __init__(self, param: Tensor, lr: float = 1.0) -> None:
        super().__init__()
        self.lr = lr
        self.dim = param.ndim
        if self.dim not in (1, 2, 4):
            raise NotImplementedError(f"expected a parameter of 1, 2 or 4 dimensions, got shape {list(param.shape)}")

        def identity(size: int) -> nn.Parameter:
            return nn.Parameter(torch.eye(size, dtype=param.dtype, device=param.device))

        if self.dim == 1:
            self.mc = nn.Parameter(torch.ones_like(param))
            return
        self.mc_in, self.mc_out = identity(param.shape[0]), identity(param.shape[1])
        if self.dim == 4:
            self.mc_f = identity(param.shape[2:].numel())

    def forward(self, grad: Tensor) -> Tensor:
        if self.dim == 1:
            return self.lr * (self.mc * grad)
        if self.dim == 2:
            return self.lr * (self.mc_in @ grad @ self.mc_out)
        update = torch.einsum("ai,iof,ob,cf->abc", self.mc_in, grad.flatten(2), self.mc_out, self.mc_f)
        return self.lr * update.reshape(grad.shape)
