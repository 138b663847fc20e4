"""Triton kernels compiled ahead of time in representative modes: launches, targets, assembly.

The launches are recorded from real calls of the ops on CPU tensors, so arguments, signatures and grids are those of
the package and cannot drift from it. Needs Triton without its interpreter, and no GPU.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from metagan_fast.kernels.updates import _launch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import ops_cases
from metagan_fast import FlatLayout, _triton
from metagan_fast.ops import _dispatch
from metagan_fast.ops.clip_grad_norm import SHORT_ROW
from ops_cases import CASES, CLIP_CASES, Case

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float64: "*fp64", torch.int32: "*i32"}


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch: `arguments` by name in the kernel's order, `programs` of its one-dimensional grid.

    `options` say how it is compiled, None: as the element-wise kernels are.
    """

    mode: str
    kernel: Any
    programs: int
    arguments: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return self.kernel.__name__

    def __str__(self) -> str:
        return f"{self.name}-{self.mode}"

    @property
    def signature(self) -> dict[str, str]:
        """Triton's type of each parameter; "constexpr" for compile-time constants."""
        return {name: self._type(name) for name in self.kernel.arg_names}

    @property
    def passed(self) -> tuple[str, ...]:
        """Arguments passed at a launch, in order."""
        return tuple(name for name, kind in self.signature.items() if kind != "constexpr")

    def _type(self, name: str) -> str:
        if name in self.constants:
            return "constexpr"
        value = self.arguments[name]
        if isinstance(value, Tensor):
            return POINTERS[value.dtype]
        if isinstance(value, float):
            return "fp64"
        if value is None or value == 1:  # Triton makes constants of both
            return "constexpr"
        return "i32" if -(2**31) <= value < 2**31 else "i64"

    def _is_divisible(self, name: str) -> bool:
        value = self.arguments.get(name)
        if isinstance(value, Tensor):
            return value.data_ptr() % 16 == 0
        return isinstance(value, int) and value % 16 == 0

    @functools.cache  # noqa: B019 (launches live as long as the module)
    def compile(self, target: str) -> Any:
        """Return Triton's compiled kernel; `.asm["ptx" | "cubin" | "amdgcn" | "ttir"]` and `.metadata`."""
        signature = self.signature
        constants = {
            name: self.constants.get(name, self.arguments.get(name))
            for name, kind in signature.items()
            if kind == "constexpr"
        }
        attributes = {
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(self.kernel.arg_names)
            if name in self.passed and self._is_divisible(name)
        }
        source = ASTSource(self.kernel, signature, constants, attributes)
        options = self.options or _launch.options(TARGETS[target].warp_size)
        return triton.compile(source, target=TARGETS[target], options=options)


@contextmanager
def recording(mode: str) -> Iterator[list[Launch]]:
    """Collect launches instead of starting them; the ops take their Triton implementation on any device."""
    launches: list[Launch] = []

    def start(kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        names = [name for name in kernel.arg_names if name not in constants]
        used = {name: value for name, value in constants.items() if name in kernel.arg_names}
        assert used == constants, "a constant that the kernel does not take"
        launches.append(Launch(mode, kernel, programs, dict(zip(names, arguments, strict=True)), constants))

    with (
        mock.patch.object(_launch, "start", start),
        mock.patch.object(_dispatch, "select", lambda op, *_: _triton.implementation(op.name)),
    ):
        yield launches


def record(
    case: Case,
    dtype: torch.dtype,
    rows: int | None = 3,
    numel: int = 2080,
    lr_form: str = "number",
    function: Callable[..., Any] | None = None,
    **more: Any,
) -> list[Launch]:
    """Return the launches of a case; `numel` is divisible by 16 unless given."""
    mode = "-".join([*str(case).split("-")[1:], str(dtype).removeprefix("torch."), lr_form, str(rows), str(numel)])
    with recording(mode) as launches:
        arguments = ops_cases.make(case, rows, numel, dtype, lr_form=lr_form)
        ops_cases.call(function or case.function, {**arguments, **more})
    return launches


@functools.cache
def launches() -> tuple[Launch, ...]:
    """Return every kernel in every option mode in float32, and representative modes in bfloat16 and float64."""
    found = [launch for case in (*CASES, CLIP_CASES[0]) for launch in record(case, torch.float32)]
    first = list({case.op: case for case in (*CASES, *CLIP_CASES)}.values())
    for dtype in (torch.bfloat16, torch.float64):
        found += [launch for case in first for launch in record(case, dtype)]
    adam = next(case for case in CASES if case.op == "adam_step")
    for lr_form in ("task", "task-element"):
        found += record(adam, torch.float32, lr_form=lr_form)
    found += record(adam, torch.float32, lr_form="scalar", step=torch.ones(2, dtype=torch.float64))
    layout = FlatLayout.from_module(torch.nn.Linear(40, 52))
    slots = torch.rand(3, len(layout.slots))
    found += record(adam, torch.float32, numel=layout.numel, lr_form="slots", lr=slots, layout=layout)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):  # in two launches
        found += record(CLIP_CASES[0], dtype, numel=SHORT_ROW + 16)
    for op in ("sgd_step", "adam_step"):
        case = next(case for case in CASES if case.op == op)
        fused: dict[str, Any] = {"max_norm": 1.0, "zero_grads": True}
        for dtype in (torch.float32, torch.bfloat16):
            found += record(case, dtype, lr_form="clip", max_norm=1.0)
            found += record(case, dtype, lr_form="clip", numel=SHORT_ROW + 16, max_norm=1.0)
            found += record(case, dtype, lr_form="clip-reset", function=case.twin, **fused)
    return tuple(found)


def resources(compiled: Any) -> dict[str, int]:
    """Return a cubin's resources from `cuobjdump -res-usage`: REG, STACK, LOCAL and so on."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    line = next(line for line in text.splitlines() if "REG:" in line)
    return {key: int(value) for key, _, value in (x.partition(":") for x in line.split()) if value.isdigit()}
