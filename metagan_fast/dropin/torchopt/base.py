"""Gradient transformations: their type, the identity, and chains."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .._originals import hand_on

if TYPE_CHECKING:
    from typing_extensions import Self

__getattr__, __dir__ = hand_on(__name__, "torchopt.base")


class Init(Protocol):
    """From a tree of parameters to a state."""

    def __call__(self, params: Any) -> Any: ...


class Update(Protocol):
    """From `(grads, state, params=, inplace=)` to `(updates, state)`."""

    def __call__(self, updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> tuple[Any, Any]: ...


class _Functions(NamedTuple):
    init: Init
    update: Update


if not TYPE_CHECKING:
    with suppress(Exception):  # not installed, or broken
        from torchopt.base import GradientTransformation as _Functions  # its optimizers take no other


class EmptyState(NamedTuple):
    """State of a transformation that keeps none."""


class GradientTransformation(_Functions):
    """A pair of pure functions from gradients to updates.

    It is also one of the original's, where TorchOpt is installed, so that either library takes it.

    Attributes:
        init: an `Init`.
        update: an `Update`.
    """

    def chain(self, following: GradientTransformation) -> ChainedGradientTransformation:
        """Return both in a row."""
        return ChainedGradientTransformation(self, following)


class IdentityGradientTransformation(GradientTransformation):
    """A transformation that returns gradients as they are."""

    def __new__(cls) -> Self:
        """Make the identity; any two are equal."""
        return super().__new__(cls, _no_state, _unchanged)

    def __getnewargs__(self) -> tuple[()]:
        return ()


class ChainedGradientTransformation(GradientTransformation):
    """Transformations in a row, the state of which is a tuple of their states.

    Chains within it are joined and identities left out; it equals the one transformation that it may consist of.

    Attributes:
        transformations: at least one; an identity where no other is left.
    """

    transformations: tuple[GradientTransformation, ...]

    def __new__(cls, *transformations: GradientTransformation) -> Self:
        """Make the pure functions of a chain."""
        parts = [part for each in transformations for part in getattr(each, "transformations", (each,))]
        kept = tuple(part for part in parts if not isinstance(part, IdentityGradientTransformation)) or (identity(),)

        def init(params: Any) -> Any:
            return tuple(transformation.init(params) for transformation in kept)

        def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> tuple[Any, Any]:
            if len(state) != len(kept):
                raise ValueError(
                    f"expected a state of {len(kept)} parts, got {len(state)}; make it with init() of this chain"
                )
            states = []
            for transformation, part in zip(kept, state, strict=True):
                updates, part = transformation.update(updates, part, params=params, inplace=inplace)
                states.append(part)
            return updates, tuple(states)

        chained = super().__new__(cls, init, update)
        chained.transformations = kept
        return chained

    def __getnewargs__(self) -> tuple[GradientTransformation, ...]:
        return self.transformations

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Functions):
            return NotImplemented
        return self.transformations == getattr(other, "transformations", (other,))

    def __hash__(self) -> int:
        return hash(self.transformations)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.transformations))})"


def identity() -> IdentityGradientTransformation:
    """Return the transformation that leaves gradients as they are."""
    return IdentityGradientTransformation()


def _no_state(params: Any) -> EmptyState:
    return EmptyState()


def _unchanged(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> tuple[Any, Any]:
    return updates, state
