"""Random draws of one thread: forbidden, or redirected to a given generator.

PyTorch's default generator belongs to the whole process, so seeding it temporarily, or comparing its state before and
after, fails when other threads draw. A dispatch mode sees only the draws of its own thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode


class DrawsRandomNumbersError(RuntimeError):
    """Random draw where none is allowed."""


class _ThreadMode(TorchDispatchMode):
    """Dispatch mode that affects only its thread; PyTorch's base class also sets flags for `torch.compile`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: True would import the compiler, which takes a second, to exclude the mode."""
        return False

    def __enter__(self) -> None:
        _push_mode(self)

    def __exit__(self, *error: object) -> None:
        _pop_mode()


class NoDraws(_ThreadMode):
    """Mode that raises DrawsRandomNumbersError when an op would draw from a default generator."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _draws(func, args, kwargs or {}):
            raise DrawsRandomNumbersError(f"{func} draws random numbers")
        return func(*args, **(kwargs or {}))


class DrawsFrom(_ThreadMode):
    """Mode in which ops draw from `generator`, the numbers that a default generator in its state would give."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if _draws(func, args, kwargs):
            func = _with_generator(func)
            kwargs["generator"] = self._generator
        return func(*args, **kwargs)


def draws_from_seed(seed: int) -> DrawsFrom:
    """Return a context in which this thread draws, on the CPU, the numbers that follow `torch.manual_seed(seed)`."""
    return DrawsFrom(torch.Generator().manual_seed(seed))


def _draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call draws from a default generator."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    given = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
    given |= dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    if given.get("generator") is not None or given.get("training", given.get("train")) is False:
        return False
    return given.get("dropout_p", given.get("dropout", 1)) != 0  # attention and RNNs, whose dropout is usually 0


def _with_generator(func: Any) -> Callable[..., Any]:
    """Return the overload of an op that takes a generator: itself, or "generator" or "low_generator" for "low"."""
    if any(a.name == "generator" for a in func._schema.arguments):
        return func
    packet, name = func.overloadpacket, func._overloadname
    wanted = "generator" if name == "default" else f"{name}_generator"
    if wanted not in packet.overloads():
        raise NotImplementedError(f"{func} takes no generator; initialise with torch.nn.init")
    return getattr(packet, wanted)
