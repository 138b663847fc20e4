"""Context managers that override functions of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch.overrides import TorchFunctionMode


class FunctionOverrides(TorchFunctionMode):
    """Calls `overrides[function]` instead of a function; PyTorch's own if that returns NotImplemented."""

    overrides: ClassVar[Mapping[Callable, Callable[..., Any]]]

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        override = self.overrides.get(func)
        result = NotImplemented if override is None else override(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is NotImplemented else result
