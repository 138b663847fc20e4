"""Detection of tensors that share memory."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from torch import Tensor


def find_overlap(written: dict[str, Tensor], read: dict[str, Tensor]) -> tuple[str, str] | None:
    """Return the names of two tensors whose overlap makes an in-place call undefined, or None.

    An output may share memory only with an input that is the identical view; rows of two tensors may interleave.
    """
    spans = [(_Span.of(x), name, name in written) for name, x in (*read.items(), *written.items()) if x.numel()]
    spans.sort(key=lambda item: item[0].begin)
    if all(a[0].end <= b[0].begin for a, b in itertools.pairwise(spans)):
        return None
    for (a, name, a_written), (b, other, b_written) in itertools.combinations(spans, 2):
        harmless = not (a_written or b_written) or (a == b and not (a_written and b_written))
        if not harmless and a.meets(b):
            return name, other
    return None


class _Span(NamedTuple):
    """Byte range of a matrix: `rows` rows of `width` bytes, `pitch` bytes apart."""

    begin: int
    end: int
    rows: int
    width: int
    pitch: int

    @classmethod
    def of(cls, x: Tensor) -> _Span:
        size = x.element_size()
        rows, pitch = (x.shape[0], x.stride(0) * size) if x.ndim == 2 else (1, 0)
        width = ((x.shape[-1] - 1) * x.stride(-1) + 1) * size if x.ndim else size
        begin = x.data_ptr()
        return cls(begin, begin + (rows - 1) * pitch + width, rows, width, pitch)

    def meets(self, other: _Span) -> bool:
        """Return whether two spans share a byte; True if unequal pitches leave it undecided."""
        if self.end <= other.begin or other.end <= self.begin:
            return False
        pitch = max(self.pitch, other.pitch)
        if any(span.rows > 1 and span.pitch != pitch for span in (self, other)) or pitch == 0:
            return True
        distance = (other.begin - self.begin) % pitch
        return not (self.width <= distance <= pitch - other.width)
