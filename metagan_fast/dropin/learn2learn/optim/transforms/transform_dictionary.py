"""Gradient transforms by parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


class TransformDictionary:
    """Select the transform by parameter or by its module; None for other parameters.

    Args:
        dictionary: transform factories by module or parameter.

    Raises:
        ValueError: a key is neither.
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
