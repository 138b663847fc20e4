"""Converters: how to express a call of a function of PyTorch in operations, and what they ask of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .builder import Parameter, PermutedView, Unsupported

Converter = Callable[..., PermutedView]
"""Takes the builder, then the function's own arguments."""


class Converters:
    """A table of converters, by function and by name of a tensor's method."""

    def __init__(self) -> None:
        self._functions: dict[Any, Converter] = {}
        self._methods: dict[str, Converter] = {}

    def find(self, op: str, target: Any) -> Converter | None:
        """Return the converter of a node of a traced graph."""
        return self._methods.get(target) if op == "call_method" else self._functions.get(target)

    def enter(self, converter: Converter, *targets: Any) -> None:
        """Enter a converter under functions and under names of methods."""
        for target in targets:
            table: dict[Any, Converter] = self._methods if isinstance(target, str) else self._functions
            table[target] = converter

    def converts(self, *targets: Any) -> Callable[[Converter], Converter]:
        """Enter the function below as a converter."""

        def decorate(converter: Converter) -> Converter:
            self.enter(converter, *targets)
            return converter

        return decorate


def refuse_unless(condition: bool, reason: str) -> None:
    """Raise Unsupported with the reason."""
    if not condition:
        raise Unsupported(reason)


def as_tensor(x: Any) -> PermutedView:
    """Return an argument that must be a tensor of the network."""
    refuse_unless(isinstance(x, PermutedView), "its input is not a tensor of the network")
    return x


def refuse_unless_images(x: Any) -> None:
    """Raise Unsupported for an argument that is no tensor of images."""
    refuse_unless(len(as_tensor(x).shape) == 3, "it needs images [n, C, H, W]")


def as_parameters(*values: Any) -> list[Parameter | None]:
    """Return arguments that must be parameters, or None."""
    ours = all(value is None or isinstance(value, Parameter) for value in values)
    refuse_unless(ours, "its weights are computed, not parameters")
    return list(values)
