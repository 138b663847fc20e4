"""Hand-written kernels for the translator's tests, and bf16 conversions that numpy lacks."""

from __future__ import annotations

import numpy as np

import ptx

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"
SHARED = ".extern .shared .align 16 .b8 memory[];\n"
REGISTERS = ".reg .pred %p<9>; .reg .b16 %h<20>; .reg .b32 %r<40>; .reg .b64 %d<40>; .reg .f32 %f<9>; .reg .f64 %g<9>;"


def kernel(body: str, parameters: int = 3, name: str = "k", directives: str = "") -> str:
    """Return a kernel of pointers; %d1, %d2, ... point to the thread's element of 8 bytes."""
    names = ", ".join(f".param .u64 p{i}" for i in range(1, parameters + 1))
    start = "\n".join(
        f"ld.param.u64 %d{i}, [p{i}]; mad.wide.u32 %d{i}, %r39, 8, %d{i};" for i in range(1, parameters + 1)
    )
    head = f".visible .entry {name}({names})\n{directives}\n"
    return f"{head}{{\n{REGISTERS}\nmov.u32 %r39, %tid.x;\n{start}\n{body}\nret;\n}}"


def load(body: str, **more) -> ptx.Module:
    """Translate one kernel."""
    return ptx.load(HEAD + kernel(body, **more))


def launch(body, threads=64, order="forward", size=None, shared=0, declared=""):
    """Return a block's output array, an element of 8 bytes a thread."""
    out = np.zeros(threads if size is None else size, np.uint64)
    text = HEAD + declared + kernel(body, parameters=1)
    ptx.load(text)["k"].launch(1, threads, [out], shared_bytes=shared, order=order, seed=5)
    return out


def bf16(x):
    """Round to the bits of bf16."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widen(x):
    """Return the float32 values of bf16 bits."""
    return (x.astype(np.uint32) << 16).view(np.float32)
