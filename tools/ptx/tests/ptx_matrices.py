"""Matrices in shared memory for the translator's tests, laid out by independent formulas from the PTX ISA."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ptx_text import bf16

MODES = {16: 0, 128: 1, 64: 2, 32: 3}
"""Descriptor code of a swizzle by its bytes; 16 is none."""

BYTES = 20480
BRING = "\n".join(
    ["mov.u32 %r1, memory; shl.b32 %r2, %r39, 3; add.s32 %r3, %r1, %r2;"]
    + [f"ld.global.b64 %d9, [%d1+{i}]; st.shared.b64 [%r3+{i}], %d9;" for i in range(0, BYTES, 1024)]
)
"""Copy of the first array to shared memory, by 128 threads."""


@dataclass(frozen=True)
class Layout:
    """Layout of a matrix (rows, k) of elements of `size` bytes: a descriptor's byte offsets and swizzle."""

    start: int
    leading: int
    stride: int
    swizzle: int
    transposed: bool = False

    def descriptor(self, more=0):
        at = self.start + more
        return at >> 4 | self.leading >> 4 << 16 | self.stride >> 4 << 32 | MODES[self.swizzle] << 62

    def addresses(self, rows, columns, size):
        i, k = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        width, each = self.swizzle, 16 // size
        if not self.transposed:
            within = k // each * self.leading + k % each * size if width == 16 else k * size
            offset = i // 8 * self.stride + i % 8 * width + within
        elif width == 16:
            offset = i // each * self.stride + k // 8 * self.leading + k % 8 * 16 + i % each * size
        else:
            block = width // size
            offset = i // block * self.leading + k // 8 * self.stride + k % 8 * width + i % block * size
        address = self.start + offset
        return address ^ (address >> 7) % (width // 16) * 16


@dataclass(frozen=True)
class Operands:
    """A (64, k) and B (k, n), continued along k `second` bytes further on; an A of None is not in shared memory."""

    kind: str
    n: int
    a: Layout | None
    b: Layout
    second: tuple[int, int] = (32, 32)

    @property
    def size(self):
        return 4 if self.kind == "tf32" else 2

    @property
    def k(self):
        return 32 // self.size

    def draw(self, seed):
        """Return A (64, 2 k) and B (2 k, n) of whole numbers, A's bits, and the contents of shared memory."""
        draw = np.random.default_rng(seed)
        a, b = (draw.integers(-8, 9, shape).astype(np.float32) for shape in ((64, 2 * self.k), (2 * self.k, self.n)))
        if self.kind == "tf32":  # the lower 13 bits of an operand are not read
            of_a, of_b = a.view(np.uint32) | np.uint32(0x1FFF), b.T.copy().view(np.uint32) | np.uint32(0xABC)
        else:
            of_a, of_b = bf16(a), bf16(b.T)
        image = np.full(BYTES // self.size, -1, f"i{self.size}").view(of_a.dtype)
        for step in range(2):
            along = slice(step * self.k, (step + 1) * self.k)
            for layout, bits, more in ((self.a, of_a, self.second[0]), (self.b, of_b, self.second[1])):
                if layout is not None:
                    part = bits[:, along]
                    moved = replace(layout, start=layout.start + step * more)
                    image[moved.addresses(*part.shape, self.size) // self.size] = part
        return a, b, of_a, image
