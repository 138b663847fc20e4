"""`Pair`: one value for each network of a GAN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Pair(tuple[T, T]):
    """One value for each network of a GAN: the generator's, then the discriminator's."""

    __slots__ = ()

    def __new__(cls, generator: T, discriminator: T) -> Pair[T]:
        return super().__new__(cls, (generator, discriminator))

    def __getnewargs__(self) -> tuple[T, T]:
        return self.generator, self.discriminator

    def __repr__(self) -> str:
        return f"Pair(generator={self.generator!r}, discriminator={self.discriminator!r})"

    @property
    def generator(self) -> T:
        """The generator's value."""
        return self[0]

    @property
    def discriminator(self) -> T:
        """The discriminator's value."""
        return self[1]

    def map(self, function: Callable[..., U], *others: tuple[Any, Any]) -> Pair[U]:
        """Return the results of `function` on each network's value, followed by its values in `others`."""
        return Pair(*map(function, self, *others))

    def items(self) -> Iterator[tuple[str, T]]:
        """Iterate over ("generator", value) and ("discriminator", value)."""
        return zip(ROLES, self, strict=True)


ROLES = Pair("generator", "discriminator")
"""Names of the networks, in messages, checkpoints and calls of the engine."""
