"""Gradient transformations: base type, identity and chain."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .._originals import fall_back_to

if TYPE_CHECKING:
    from typing_extensions import Self

__getattr__, __dir__ = fall_back_to(__name__, "torchopt.base")


class Init(Protocol):
    """Function from a tree of parameters to an initial state."""

    def __call__(self, params: Any) -> Any: ...


class Update(Protocol):
    """Function from `(grads, state, params=, inplace=)` to `(updates, state)`."""

    def __call__(self, updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> tuple[Any, Any]: ...


class _Functions(NamedTuple):
    init: Init
    update: Update


if not TYPE_CHECKING:
    with suppress(Exception):  # not installed, or fails to import
        from torchopt.base import GradientTransformation as _Functions  # TorchOpt's optimizers require this type


class EmptyState(NamedTuple):
    """State of a stateless transformation."""


class GradientTransformation(_Functions):
    """Pair of pure functions `(init, update)` that transforms gradients into updates.

    If TorchOpt is installed, this is a subclass of its type, so both libraries accept it.

    Attributes:
        init: an `Init`.
        update: an `Update`.
    """

    def chain(self, following: GradientTransformation) -> ChainedGradientTransformation:
        """Return this transformation followed by another."""
        return ChainedGradientTransformation(self, following)


class IdentityGradientTransformation(GradientTransformation):
    """Transformation that returns gradients unchanged."""

    def __new__(cls) -> Self:
        """Build the identity; all instances are equal."""
        return super().__new__(cls, _no_state, _unchanged)

    def __getnewargs__(self) -> tuple[()]:
        return ()


class ChainedGradientTransformation(GradientTransformation):
    """Sequence of transformations; its state is the tuple of their states.

    Nested chains are flattened and identities dropped; a chain of one transformation equals that transformation.

    Attributes:
        transformations: the transformations, at least one; an identity if no other is left.
    """

    transformations: tuple[GradientTransformation, ...]

    def __new__(cls, *transformations: GradientTransformation) -> Self:
        """Build the pure functions of a chain."""
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
    """Return the transformation that leaves gradients unchanged."""
    return IdentityGradientTransformation()


def _no_state(params: Any) -> EmptyState:
    return EmptyState()


def _unchanged(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> tuple[Any, Any]:
    return updates, state
