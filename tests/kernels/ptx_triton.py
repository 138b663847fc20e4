"""Launches of Triton kernels (`triton_aot.Launch`) as PTX on the CPU, confined to their tensors' memory."""

from __future__ import annotations

import ctypes
import re
import struct
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

import ptx

if TYPE_CHECKING:
    from triton_aot import Launch


def memory(x: Tensor) -> np.ndarray:
    """Return the bytes from a tensor's first element to its last, which a kernel may touch."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    size = (last + 1) * x.element_size() if x.numel() else 0
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(x.data_ptr()))


def with_early_waits(text: str) -> str:
    """Return PTX with tcgen05.wait::ld directly behind the load, where Triton puts it.

    LLVM does not know that the loaded registers depend on the wait, and moves it behind their uses, barriers and
    branches. PTX forbids that; on a GPU it is right, since in ptxas's code the first use waits for the registers.
    """
    between = r"((?:(?!tcgen05).)*?)"
    return re.sub(rf"(tcgen05\.ld\.[^;]*;){between}(tcgen05\.wait::ld[^;]*;)", r"\1 \3\2", text, flags=re.S)


def run(launch: Launch, order: str, without: str | None = None, target: str = "sm_80") -> str:
    """Compile a launch for a GPU, run the PTX, and return it; its tensors change in place.

    `without` is an opcode whose instructions are taken out, with their guards and with the loop around an
    `mbarrier.try_wait`, to see that they are missed.
    """
    compiled = launch.compile(target)
    text = with_early_waits(compiled.asm["ptx"])
    if without is not None:
        taken = rf"(?:@!?%\w+\s+)?{re.escape(without)}\b[^;]*;(?:\s*@!complete\s[^;]*;)?"
        text, count = re.subn(taken, "", text)
        assert count, f"{launch} has no {without}"
    kernel = ptx.load(text)[launch.name]
    values = [launch.arguments[name] for name in launch.passed]
    buffers = [memory(x) for x in values if isinstance(x, Tensor)]
    passed = [struct.pack("<Q", x.data_ptr()) if isinstance(x, Tensor) else x for x in values]
    threads = kernel.kernel.bounds["reqntid"]
    scratch = [0] * (len(kernel.kernel.parameters) - len(passed))  # of the GPU's memory: the kernels use none
    shared = compiled.metadata.shared
    kernel.launch(launch.programs, threads, [*passed, *scratch], shared, order=order, seed=1, buffers=buffers)
    return text
