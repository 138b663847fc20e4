"""Errors of the PTX translator: unknown syntax, and invalid accesses or synchronisation of kernels."""

from __future__ import annotations

import numpy as np
import pytest

import ptx
from ptx import PtxError
from ptx_text import HEAD, SHARED, kernel, launch, load

pytestmark = pytest.mark.skipif(ptx.COMPILER is None, reason="needs g++")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("frobnicate.s32 %r1, %r2;", r"line 10: unknown instruction frobnicate\.s32"),
        ("add.sat.s32 %r1, %r2, %r3;", r"line 10: unknown instruction add\.sat\.s32"),
        ("ld.global.L3::first.b32 %r1, [%d1];", r"line 10: unknown instruction ld\.global\.L3::first\.b32"),
        ("add.s32 %r1, %r2;", "line 10: add.s32 with 2 operands"),
        ("add.s32 %r1, %r2, %r77;", "line 10: unknown operand %r77"),
        ("add.s64 %d1, %d2, %r3;", "line 10: %r3 is narrower than s64"),
        ("mov.b32 %r1, nowhere;", "line 10: unknown operand nowhere"),
        ("bra nowhere;", "line 10: unknown label nowhere"),
        (".whatever 3;", "line 10: unknown directive"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 %r1, %r2;", "line 10: unknown instruction mma"),
    ],
)
def test_what_is_not_known_is_an_error_with_its_line(body, message):
    with pytest.raises(PtxError, match=message):
        load(body, parameters=1)


def test_unknown_directives_of_modules_and_kernels_are_errors():
    with pytest.raises(PtxError, match=r"line 4: unknown directive: \.func"):
        ptx.load(HEAD + ".func f() { ret; }")
    with pytest.raises(PtxError, match="unknown directive of a kernel: cluster"):
        load("", directives=".cluster 2")


def test_constants_may_lie_there_unused():
    """Triton's PTX has such constants of libdevice; reading one is an error."""
    constants = ".global .align 1 .b8 name$_[4] = {95, 67, 0};\n"
    assert ptx.load(HEAD + constants + kernel("ret;"))["k"]
    with pytest.raises(PtxError, match="unknown operand name"):
        ptx.load(HEAD + constants + kernel("mov.u64 %d1, name$_;"))


def test_accesses_outside_of_memory_and_misaligned_ones_are_errors():
    write = "st.global.b64 [%d1], 1;"
    assert launch(write).sum() == 64
    with pytest.raises(PtxError, match=r"line 10, block \(0, 0, 0\), thread 63: .* outside of every buffer"):
        launch(write, size=63)
    with pytest.raises(PtxError, match=r"thread 0: misaligned access of 16 bytes"):
        launch("add.s64 %d1, %d1, 8; st.global.v2.b64 [%d1], {%d1, %d1};")
    with pytest.raises(PtxError, match="of 256 bytes of shared memory"):
        launch("mul.lo.s32 %r1, %r39, 8; st.shared.b64 [%r1], 1;", shared=256)


NEIGHBOUR = """
mov.u32 %r1, memory; shl.b32 %r2, %r39, 2; add.s32 %r3, %r1, %r2; st.shared.u32 [%r3], %r39;
{barrier}
xor.b32 %r4, %r2, 252; add.s32 %r4, %r1, %r4; ld.shared.u32 %r5, [%r4]; st.global.u32 [%d1], %r5;"""


@pytest.mark.parametrize("order", ptx.ORDERS)
def test_a_missing_barrier_is_an_error_in_any_order(order):
    full = NEIGHBOUR.format(barrier="bar.sync 0;")
    np.testing.assert_array_equal(launch(full, shared=256, declared=SHARED, order=order), np.arange(64)[::-1])
    with pytest.raises(PtxError, match="no barrier between"):
        launch(NEIGHBOUR.format(barrier=""), shared=256, declared=SHARED, order=order)
    with pytest.raises(PtxError, match="no barrier between"):  # a warp's barrier does not order two warps
        launch(NEIGHBOUR.format(barrier="bar.warp.sync -1;"), shared=256, declared=SHARED, order=order)


WITHIN_A_WARP = """
mov.u32 %r1, memory; and.b32 %r2, %r39, 31; shl.b32 %r2, %r2, 2; add.s32 %r3, %r1, %r2; st.shared.u32 [%r3], %r39;
{sync}
xor.b32 %r4, %r2, 124; add.s32 %r4, %r1, %r4; ld.shared.u32 %r5, [%r4]; st.global.u32 [%d1], %r5;"""


@pytest.mark.parametrize("order", ptx.ORDERS)
def test_a_warp_is_ordered_by_its_barrier_and_not_by_a_shuffle(order):
    given = {"threads": 32, "shared": 256, "declared": SHARED, "order": order}
    out = launch(WITHIN_A_WARP.format(sync="bar.warp.sync -1;"), **given)
    np.testing.assert_array_equal(out, np.arange(32)[::-1])
    with pytest.raises(PtxError, match="no barrier between"):
        launch(WITHIN_A_WARP.format(sync="shfl.sync.bfly.b32 %r6, %r2, 1, 31, -1;"), **given)


@pytest.mark.parametrize("order", ptx.ORDERS)
def test_reads_before_a_barrier_of_the_warp_do_not_meet_a_write_after_it(order):
    body = """mov.u32 %r1, memory; mov.u32 %r2, 5; st.shared.u32 [%r1], %r2; bar.warp.sync -1;
    ld.shared.u32 %r2, [%r1]; bar.warp.sync -1; setp.ne.u32 %p1, %r39, 0; @%p1 bra end;
    ld.shared.u32 %r2, [%r1]; add.s32 %r2, %r2, 7; st.shared.u32 [%r1], %r2; st.global.u32 [%d1], %r2;
    end: mov.u32 %r3, 0;"""
    out = launch(body, threads=32, shared=256, declared=SHARED, order=order)
    assert out[0] == 12


@pytest.mark.parametrize("order", ptx.ORDERS)
def test_divergent_barriers_are_errors(order):
    half = "setp.lt.u32 %p1, %r39, 17;"
    with pytest.raises(PtxError, match=r"divergent barrier: thread \d+ has left"):
        launch(f"{half} @%p1 bra skip; bar.sync 0; skip: mov.u32 %r1, 0;", order=order)
    with pytest.raises(PtxError, match=r"divergent barrier: thread .* waits at line"):
        launch(f"{half} @%p1 bra other;\nbar.sync 0; bra end;\nother: bar.sync 0;\nend: mov.u32 %r1, 0;", order=order)
    with pytest.raises(PtxError, match="waits for threads of its warp"):
        launch(f"{half} @%p1 bra skip; shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1; skip: mov.u32 %r1, 0;", order=order)


def test_loops_end_or_are_errors():
    out = launch("mov.u32 %r1, 0; again: add.s32 %r1, %r1, 1; setp.lt.u32 %p1, %r1, %r39; @%p1 bra.uni again;"
                 "st.global.u32 [%d1], %r1;")  # fmt: skip
    np.testing.assert_array_equal(out, np.maximum(np.arange(64), 1))
    with pytest.raises(PtxError, match="a loop that does not end"):
        launch("again: bra again;", threads=1)


def test_arguments_are_checked():
    run = load("", parameters=1)["k"]
    with pytest.raises(PtxError, match="takes 1 arguments, not 2"):
        run.launch(1, 1, [1, 2])
    with pytest.raises(PtxError, match="not contiguous"):
        run.launch(1, 1, [np.zeros(8)[::2]])
    with pytest.raises(PtxError, match="not a float"):
        run.launch(1, 1, [1.5])
