"""Conversion of NumPy and PyTorch scalars to Python numbers, once, at the public interface.

A NumPy scalar or a 0-dim tensor behaves like its number, but cannot be written to JSON, overflows where Python's
integers grow, and rounds in its own precision.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

LARGEST_SEED = 2**64 - 1
_LARGEST = 2**63 - 1  # of int64


def count(name: str, value: Any, *, least: int = 0, most: int = _LARGEST) -> int:
    """Return a whole number as an int.

    Args:
        name: for the error.
        value: an integer of Python, NumPy or PyTorch; a bool is none.
        least, most: the range.

    Raises:
        ValueError: not a whole number, or out of range.
    """
    if type(value) is not int:
        try:
            if not _is_single(value):
                raise TypeError
            value = operator.index(value)
        except TypeError:
            raise ValueError(f"expected {name} to be a whole number, got {value!r}") from None
    if value < least:
        raise ValueError(f"expected {name} to be at least {least}, got {value}")
    if value > most:
        raise ValueError(f"expected {name} to be at most {most}, got {_shortened(value)}")
    return value


def seed(value: Any) -> int:
    """Return a seed as an int; ValueError unless it is a whole number from 0 to 2**64 - 1."""
    return count("seed", value, most=LARGEST_SEED)


def real(name: str, value: Any) -> float:
    """Return a real number as a float, infinite and NaN ones too.

    Raises:
        ValueError: not a real number, such as a bool, a string, a tensor with dimensions or one that requires grad.
    """
    if type(value) is float:
        return value
    if getattr(value, "requires_grad", False):
        raise ValueError(f"expected {name} to be a number, got a tensor that requires grad; pass {name}.item()")
    try:
        if not _is_single(value) or isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"expected {name} to be a number, got {value!r}") from None
    except OverflowError:
        raise ValueError(f"expected {name} to fit a float, got {_shortened(value)}") from None


def non_negative(name: str, value: Any) -> float:
    """Return a finite number of at least 0 as a float, or raise ValueError."""
    number = real(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"expected a finite {name} of at least 0, got {number}")
    return number


def reals(name: str, value: Any, length: int | None = None) -> tuple[float, ...]:
    """Return a sequence of `length` real numbers as floats, or raise ValueError."""
    return tuple(real(f"{name}[{index}]", item) for index, item in enumerate(_items(name, value, length)))


def counts(name: str, value: Any, length: int) -> tuple[int, ...]:
    """Return a sequence of `length` whole numbers as ints, or raise ValueError."""
    return tuple(count(f"{name}[{index}]", item) for index, item in enumerate(_items(name, value, length)))


def _items(name: str, value: Any, length: int | None) -> list[Any]:
    items = list(value) if isinstance(value, Iterable) and getattr(value, "ndim", 1) == 1 else None
    if items is None or (length is not None and len(items) != length):
        raise ValueError(f"expected {name} to be {length or 'a sequence of'} numbers, got {value!r}")
    return items


def sides(name: str, value: Any) -> tuple[int, int]:
    """Return (height, width), which one number gives both, as ints of at least 1; ValueError for anything else."""
    pair = list(value) if isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0 else [value, value]
    if len(pair) != 2:
        raise ValueError(f"expected {name} to be one number or (height, width), got {value!r}")
    height, width = (count(name, side, least=1) for side in pair)
    return height, width


def flag(name: str, value: Any) -> bool:
    """Return True or False, of Python, NumPy or PyTorch, or 1 or 0, as a bool; ValueError for anything else."""
    if getattr(value, "ndim", 0) != 0 or value not in (False, True):
        raise ValueError(f"expected {name} to be True or False, got {value!r}")
    return bool(value)


_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def memory(name: str, value: Any) -> int:
    """Return an amount of memory in bytes: a whole number, or a text such as "2GB", "500 MB" or "1.5GiB".

    Raises:
        ValueError: neither, or not positive.
    """
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([a-z]*)\s*", value, re.IGNORECASE)
        if found is None or found[2].upper() not in _UNITS:
            raise ValueError(f'expected {name} in bytes, such as 2000000000, "2GB" or "1.5GiB", got {value!r}')
        value = int(float(found[1]) * _UNITS[found[2].upper()])
    return count(name, value, least=1)


def in_units(size: float) -> str:
    """Return bytes as a text of three digits, such as "1.25 GB"."""
    unit = "bytes"
    for larger in ("KB", "MB", "GB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def convert(
    instance: object, conversion: Callable[..., Any], *names: str, optional: bool = False, **options: Any
) -> None:
    """Convert fields of a frozen dataclass; `optional` ones may be None."""
    for name in names:
        value = getattr(instance, name)
        if value is not None or not optional:
            object.__setattr__(instance, name, conversion(name, value, **options))


def _is_single(value: Any) -> bool:
    """Return whether a value of any library is a scalar, neither bool nor complex."""
    dtype = str(getattr(value, "dtype", type(value).__name__))
    return getattr(value, "ndim", 0) == 0 and "bool" not in dtype and "complex" not in dtype


def _shortened(value: Any) -> str:
    """Format a number in one line: Python refuses to print integers of more than some thousand digits."""
    return f"a number of {value.bit_length()} bits" if isinstance(value, int) and abs(value) >= 2**128 else str(value)
