"""The Triton kernels compiled ahead of time: wide accesses, no spills, no contraction, 64-bit offsets."""

from __future__ import annotations

import inspect
import os
import re
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels that are interpreted cannot be compiled", allow_module_level=True)

import ops_cases
import triton_aot
from metagan_fast import _triton
from metagan_fast.ops._op import OPS
from metagan_fast.ops.clip_grad_norm import SHORT_ROW
from triton_aot import Launch

LAUNCHES = triton_aot.launches()

MOST_REGISTERS = (72, 128)
"""Upper bound of registers a thread, for float32 or bfloat16 and for float64; with 128 an SM holds 512 threads."""

FEWER_REGISTERS = {
    "sgd_step_kernel": (48, 72),
    "reptile_interpolate_kernel": (48, 72),
    "reptile_gradient_kernel": (48, 72),
    "ema_update_kernel": (40, 64),
    "sum_of_squares_kernel": (40, 40),
    "clip_grad_norm_kernel": (40, 48),
    "clip_short_rows_kernel": (40, 48),
}
"""Smaller bounds of simple kernels."""


# Before 3.6 Triton flushes subnormals in roots and quotients.
INEXACT = r"\bfma\.|\.approx|\.ftz" if _triton.release("triton") >= (3, 6) else r"\bfma\.|\.approx|(?<!\.rn)\.ftz"


def is_double(launch: Launch) -> bool:
    return "-float64-" in str(launch)


def narrow_accesses(launch: Launch) -> int:
    """Return the number of narrow accesses (below 128 bits) that a kernel needs: operands that are not buffers."""
    arguments = launch.arguments
    # Weights: the first task's, the next ones' in the loop, and the remainder's of an unrolled loop.
    count = 3 * (arguments.get("weights") is not None)
    count += {"row": 1, "segment": 16}.get(launch.constants.get("FORM", ""), 0)
    count += 2 * (arguments.get("corrections") is not None)
    if launch.name in ("sum_of_squares_kernel", "clip_short_rows_kernel"):
        return 1
    return count + 5 * (arguments.get("sums") is not None)  # 512 sums among 128 threads, and the norm


def is_telling(launch: Launch) -> bool:
    """Choose one launch a kernel and dtype for the targets beside sm_90."""
    mode = (launch.name, str(launch).split("-")[-3])
    same = [x for x in LAUNCHES if (x.name, str(x).split("-")[-3]) == mode and is_double(x) == is_double(launch)]
    return same[-1] is launch


def test_every_op_is_compiled() -> None:
    assert {launch.name for launch in LAUNCHES} == {f"{op}_kernel" for op in OPS} | set(FEWER_REGISTERS)


@pytest.mark.parametrize("case", (*ops_cases.CASES, *ops_cases.CLIP_CASES), ids=str)
def test_an_op_is_one_launch_but_where_sums_come_first(case: ops_cases.Case) -> None:
    """Sums come first where an op clips long rows, or clips and resets."""

    def launched(numel: int, **options: Any) -> list[str]:
        function = case.twin if "zero_grads" in options else case.function
        return [launch.name for launch in triton_aot.record(case, torch.float32, 3, numel, "task", function, **options)]

    short, long, alone = SHORT_ROW, SHORT_ROW + 1, [f"{case.op}_kernel"]
    after_sums = ["sum_of_squares_kernel", *alone]
    if case.op == "clip_grad_norm":
        assert (launched(short), launched(long)) == (["clip_short_rows_kernel"], after_sums)
        return
    assert launched(short) == launched(long) == alone
    if "max_norm" in inspect.signature(case.function).parameters:
        assert (launched(short, max_norm=1.0), launched(long, max_norm=1.0)) == (alone, after_sums)
        assert launched(long, zero_grads=True) == alone
        assert launched(short, max_norm=1.0, zero_grads=True) == after_sums


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "target"),
    [
        (launch, target)
        for target in ("sm_80", "sm_90", "sm_100")
        for launch in LAUNCHES
        if target == "sm_90" or (is_telling(launch) and not is_double(launch))
    ],
    ids=str,
)
def test_nvidia(launch: Launch, target: str) -> None:
    compiled = launch.compile(target)
    ptx = compiled.asm["ptx"]
    accesses = re.findall(r"(?:ld|st)\.global[\w.:]*", ptx)
    wide = [x for x in accesses if re.search(r"\.v4\.b32|\.v2\.b64|\.v8\.b32|\.v4\.b64", x)]
    assert wide
    assert len(accesses) - len(wide) <= narrow_accesses(launch), accesses
    assert not re.search(INEXACT, ptx), "the reference rounds each operation"
    used = triton_aot.resources(compiled)
    assert used["STACK"] == used["LOCAL"] == 0, used
    assert used["REG"] <= FEWER_REGISTERS.get(launch.name, MOST_REGISTERS)[is_double(launch)], used


def test_what_a_step_clips_is_rounded_as_if_it_were_stored() -> None:
    """bfloat16 is rounded between clipping and step, as when they run apart."""
    fused = [x for x in LAUNCHES if "bfloat16-clip-" in str(x) and x.name != "sum_of_squares_kernel"]
    results = {"sgd_step_kernel": 1, "adam_step_kernel": 3}
    assert {launch.name for launch in fused} == set(results)
    for launch in fused:
        ptx = launch.compile("sm_90").asm["ptx"]
        rounded = ptx.count("cvt.rn.bf16.f32") + 2 * ptx.count("cvt.rn.bf16x2.f32")
        assert rounded == 8 * (1 + results[launch.name])  # 8 elements a thread


@pytest.mark.slow
@pytest.mark.parametrize(
    "launch", [launch for launch in LAUNCHES if is_telling(launch) and not is_double(launch)], ids=str
)
def test_amd(launch: Launch) -> None:
    assembly = launch.compile("gfx942").asm["amdgcn"]
    spills = re.findall(r"\.(?:vgpr|sgpr)_spill_count:\s*(\d+)", assembly)
    assert spills
    assert not any(map(int, spills)), spills
    assert re.search(r"\.private_segment_fixed_size:\s*0\b", assembly)
    accesses = re.findall(r"(?:global|buffer)_(?:load|store)_\w+", assembly)
    wide = [x for x in accesses if x.endswith("x4")]
    assert wide
    assert len(accesses) - len(wide) <= narrow_accesses(launch), accesses


def test_odd_sizes_have_narrow_accesses() -> None:
    """The check above catches sizes that are not known to be divisible."""
    case = next(case for case in ops_cases.CASES if case.op == "ema_update")
    (launch,) = triton_aot.record(case, torch.float32, numel=2081)
    accesses = re.findall(r"(?:ld|st)\.global[\w.:]*", launch.compile("sm_90").asm["ptx"])
    assert not any(".v4" in x for x in accesses)


@pytest.mark.parametrize("launch", [launch for launch in LAUNCHES if is_telling(launch)], ids=str)
def test_offsets_have_64_bits(launch: Launch) -> None:
    """Offsets that can exceed 2^31 are 64-bit products; lanes of 32 bits are added to them."""
    ttir = launch.compile("sm_90").asm["ttir"]
    products = re.findall(r"arith\.muli .*: (\S+)", ttir)
    assert products
    assert set(products) == {"i64"}, products
    steps = [line for line in ttir.splitlines() if "tt.addptr" in line and "tensor<" not in line.split(":", 1)[1]]
    offsets = {line.rsplit(", ", 1)[1].split(" ")[0] for line in steps}
    assert "i64" in offsets


def test_more_than_32_bits_of_elements_compile() -> None:
    case = next(case for case in ops_cases.CASES if case.op == "ema_update")
    (launch,) = triton_aot.record(case, torch.float32)
    launch.arguments["numel"] = 2**33
    assert launch.signature["numel"] == "i64"
    assert "ptx" in launch.compile("sm_90").asm
