"""Registry of lowering rules, from PyTorch functions and tensor methods to operations, and their argument checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .builder import Parameter, PermutedView, Unsupported
from .types import Offset

LoweringRule = Callable[..., PermutedView]
"""Function of the builder and the arguments of the lowered call; emits operations and returns the result."""


class LoweringRules:
    """Lowering rules by function and by name of a tensor method."""

    def __init__(self) -> None:
        self._functions: dict[Any, LoweringRule] = {}
        self._methods: dict[str, LoweringRule] = {}

    def find(self, op: str, target: Any) -> LoweringRule | None:
        """Return the rule for a node of a traced graph, None if there is none."""
        return self._methods.get(target) if op == "call_method" else self._functions.get(target)

    def register(self, rule: LoweringRule, *targets: Any) -> None:
        """Register a rule for functions and for names of tensor methods."""
        for target in targets:
            table: dict[Any, LoweringRule] = self._methods if isinstance(target, str) else self._functions
            table[target] = rule

    def lowers(self, *targets: Any) -> Callable[[LoweringRule], LoweringRule]:
        """Register the decorated function as a rule."""

        def decorate(rule: LoweringRule) -> LoweringRule:
            self.register(rule, *targets)
            return rule

        return decorate


def require(condition: bool, reason: str) -> None:
    """Raise Unsupported with the reason if the condition is false."""
    if not condition:
        raise Unsupported(reason)


def as_tensor(x: Any) -> PermutedView:
    """Return an argument that must depend on the network's input."""
    require(isinstance(x, PermutedView), "its input is not a tensor of the network")
    return x


def require_images(x: Any) -> None:
    """Raise Unsupported unless an argument holds images."""
    require(len(as_tensor(x).shape) == 3, "it needs images [n, C, H, W]")


def offset_of(value: Any) -> Offset:
    """Return the offset of an argument that must be a parameter, or None."""
    require(value is None or isinstance(value, Parameter), "its weights are computed, not parameters")
    return None if value is None else value.offset
