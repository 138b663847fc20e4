"""Random changes of files: flips, cuts, repeated and spliced parts, and extreme numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_MOST = 6  # changes of one file
_LONGEST = 64  # bytes that a change inserts or removes, unless it cuts the file
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1)
_LONG = b"9" * 400, b"9" * 5000, b"[" * 5000
_WORDS = (b"null", b"-1", b"1e999", b"NaN", b'{"a":', b"true", b'""', b"0.5", b"../", b"\0", *_LONG)


def mutated(seeds: Sequence[bytes], random: random.Random) -> bytes:
    """Return one of the files with a few changes."""
    data = bytearray(random.choice(seeds))
    for _ in range(random.randint(1, _MOST)):
        random.choice(_CHANGES)(data, seeds, random)
    return bytes(data)


def _place(data: bytearray, random: random.Random) -> int:
    return random.randint(0, len(data))


def _flip(data: bytearray, seeds: Sequence[bytes], random: random.Random) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _byte(data: bytearray, seeds: Sequence[bytes], random: random.Random) -> None:
    if data:
        data[random.randrange(len(data))] = random.randrange(256)


def _number(data: bytearray, seeds: Sequence[bytes], random: random.Random) -> None:
    """Overwrite a field with an extreme number, in either order of bytes."""
    width, place = random.choice((1, 2, 4, 8)), _place(data, random)
    value = random.choice(_NUMBERS) & (256**width - 1)
    data[place : place + width] = value.to_bytes(width, random.choice(("little", "big")))  # type: ignore[arg-type]


def _word(data: bytearray, seeds: Sequence[bytes], random: random.Random) -> None:
    place = _place(data, random)
    data[place : place + random.choice((0, 1, 4))] = random.choice(_WORDS)


def _cut(data: bytearray, seeds: Sequence[bytes], random: random.Random) -> None:
    del data[_place(data, random) :]


def _remove(data: bytearray, seeds: Sequence[bytes], random: random.Random) -> None:
    place = _place(data, random)
    del data[place : place + random.randint(1, _LONGEST)]


def _repeat(data: bytearray, seeds: Sequence[bytes], random: random.Random) -> None:
    start = _place(data, random)
    place = _place(data, random)
    data[place:place] = data[start : start + random.randint(1, _LONGEST)] * random.choice((1, 1, 2, 50))


def _splice(data: bytearray, seeds: Sequence[bytes], random: random.Random) -> None:
    other = random.choice(seeds)
    start = random.randint(0, len(other))
    place = _place(data, random)
    data[place : place + random.randint(0, _LONGEST)] = other[start : start + random.randint(1, _LONGEST)]


_CHANGES: tuple[Callable[[bytearray, Sequence[bytes], random.Random], None], ...] = (
    *(_flip, _byte, _number, _word, _cut, _remove, _repeat, _splice),
)
