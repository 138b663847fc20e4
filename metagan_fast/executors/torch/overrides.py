"""Functions of PyTorch that others stand in for while a context is active."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch.overrides import TorchFunctionMode


class ReplacingMode(TorchFunctionMode):
    """Call `replacements[function]` instead of a function; where that returns NotImplemented, PyTorch's own."""

    replacements: ClassVar[Mapping[Callable, Callable[..., Any]]]

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        replacement = self.replacements.get(func)
        result = NotImplemented if replacement is None else replacement(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is NotImplemented else result
