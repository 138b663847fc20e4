"""Asynchronous copies (cp.async) in the PTX translator: their results, and every use before arrival."""

from __future__ import annotations

import numpy as np
import pytest

import ptx
from ptx import PtxError
from ptx_text import HEAD, SHARED, kernel

pytestmark = pytest.mark.skipif(ptx.COMPILER is None, reason="needs g++")

START = """
mov.u32 %r1, memory; shl.b32 %r2, %r39, 3; add.s32 %r3, %r1, %r2;
xor.b32 %r4, %r2, 504; add.s32 %r4, %r1, %r4;"""
COPY = "cp.async.ca.shared.global [%r3], [%d1], 0x8;"
DONE = "cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;"
READ = "ld.shared.b64 %d9, [%r4]; st.global.b64 [%d2], %d9;"
"""Each thread copies to its place (%r3) in shared memory and reads the mirrored thread's (%r4)."""


def launch(body, order="forward", size=64, shared=1024):
    x, out = np.arange(size, dtype=np.uint64) << np.uint64(33), np.zeros(64, np.uint64)
    text = HEAD + SHARED + kernel(START + body, parameters=2)
    ptx.load(text)["k"].launch(1, 64, [x, out], shared_bytes=shared, order=order, seed=3)
    return x, out


@pytest.mark.parametrize("order", ptx.ORDERS)
@pytest.mark.parametrize("done", [DONE, "cp.async.wait_all; bar.sync 0;"])
def test_copies_arrive_at_the_wait(done, order):
    x, out = launch(COPY + done + READ, order)
    np.testing.assert_array_equal(out, x[::-1])


@pytest.mark.parametrize("order", ptx.ORDERS)
@pytest.mark.parametrize(
    "done",
    [
        "bar.sync 0;",
        "cp.async.commit_group; bar.sync 0;",
        "cp.async.wait_group 0; cp.async.commit_group; bar.sync 0;",  # an open group is not waited for
        "cp.async.commit_group; cp.async.wait_group 1; bar.sync 0;",
        "cp.async.commit_group; bar.sync 0; setp.lt.u32 %p1, %r39, 63; @%p1 cp.async.wait_all; bar.sync 0;",
    ],
)
def test_reading_without_a_wait_is_an_error(done, order):
    with pytest.raises(PtxError, match=r"uses shared byte \d+, to which thread \d+ copies: no wait between"):
        launch(COPY + done + READ, order)


@pytest.mark.parametrize("order", ptx.ORDERS)
def test_a_wait_is_for_the_own_copies_only(order):
    with pytest.raises(PtxError, match=r"no wait between|no barrier between"):
        launch(f"{COPY} cp.async.wait_all; {READ}", order)
    with pytest.raises(PtxError, match=r"no wait between|no barrier between"):
        launch(f"{COPY} bar.sync 0; cp.async.wait_all; {READ}", order)
    last = "setp.ne.u32 %p1, %r39, 63; @%p1 bra end;"  # all others have waited
    with pytest.raises(PtxError, match="no barrier between"):
        launch(f"{COPY} bar.sync 0; cp.async.wait_all; {last} {READ} end:", "forward")
    x, out = launch(f"{COPY} cp.async.wait_all; ld.shared.b64 %d9, [%r3]; st.global.b64 [%d2], %d9;", order)
    np.testing.assert_array_equal(out, x)


GROUPS = f"""
{COPY} cp.async.commit_group; cp.async.ca.shared.global [%r3+512], [%d1+256], 8; cp.async.commit_group;
cp.async.wait_group 1; bar.sync 0;
ld.shared.b64 %d9, [%r4]; add.s64 %d10, %d9, 0; {{second}} st.global.b64 [%d2], %d10;"""


def test_groups_end_in_their_order():
    x, out = launch(GROUPS.format(second=""), size=96)
    np.testing.assert_array_equal(out, x[:64][::-1])
    read = "ld.shared.b64 %d9, [%r4+512]; add.s64 %d10, %d10, %d9;"
    with pytest.raises(PtxError, match=r"uses shared byte \d+, .*: no wait between"):
        launch(GROUPS.format(second=read), size=96)
    x, out = launch(GROUPS.format(second=f"cp.async.wait_group 0; bar.sync 0; {read}"), size=96)
    np.testing.assert_array_equal(out, x[:64][::-1] + x[32:][::-1])


def test_what_the_source_lacks_is_zero():
    part = "and.b32 %r5, %r39, 1; shl.b32 %r5, %r5, 3; cp.async.ca.shared.global [%r3], [%d1], 8, %r5;"
    x, out = launch(part + DONE + READ)
    np.testing.assert_array_equal(out, np.where(np.arange(64) % 2, x, 0)[::-1])
    # A copy of zero source bytes reads nothing.
    nowhere = "setp.lt.u32 %p1, %r39, 32; selp.b32 %r5, 8, 0, %p1; cp.async.ca.shared.global [%r3], [%d1], 8, %r5;"
    x, out = launch(nowhere + DONE + READ, size=32)
    np.testing.assert_array_equal(out, np.concatenate([np.zeros(32, np.uint64), x[::-1]]))
    with pytest.raises(PtxError, match="outside of every buffer"):
        launch(COPY + DONE + READ, size=63)
    with pytest.raises(PtxError, match="copies 9 bytes of 8"):
        launch("cp.async.ca.shared.global [%r3], [%d1], 8, 9;")


def test_copies_of_16_bytes():
    body = """
    and.b32 %r5, %r39, 1; setp.eq.u32 %p1, %r5, 0; @%p1 cp.async.cg.shared.global.L2::128B [%r3], [%d1], 16, 12;"""
    x, out = launch(body + DONE + READ)
    kept = np.where(np.arange(64) % 2, x & np.uint64(0xFFFFFFFF), x)
    np.testing.assert_array_equal(out, kept[::-1])
    with pytest.raises(PtxError, match="misaligned access of 16 bytes"):
        launch("cp.async.cg.shared.global [%r3], [%d1], 16;")
    with pytest.raises(PtxError, match="misaligned access of 8 bytes"):  # of the source
        launch("cp.async.ca.shared.global [%r3], [%d1+4], 8;")
    with pytest.raises(PtxError, match="a copy of 8 bytes"):
        launch("cp.async.cg.shared.global [%r3], [%d1], 8;")
    with pytest.raises(PtxError, match="shared memory"):
        launch(COPY, shared=504)


@pytest.mark.parametrize("order", ptx.ORDERS)
def test_nothing_may_touch_where_a_copy_goes_or_comes_from(order):
    with pytest.raises(PtxError, match="no wait between"):
        launch(f"{COPY} st.shared.b64 [%r3], %d1;", order)
    with pytest.raises(PtxError, match="no wait between"):
        launch(f"{COPY} atom.shared.add.u32 %r5, [%r3], 1;", order)
    with pytest.raises(PtxError, match="no wait between"):
        launch(f"{COPY} {COPY}", order)
    with pytest.raises(PtxError, match=r"no barrier between|no wait between"):  # others read the bytes that it replaces
        launch(f"{COPY} {DONE} {READ} {COPY}", order)
    with pytest.raises(PtxError, match="no barrier between"):  # a thread before it has
        launch(f"{COPY} {DONE} {READ} setp.eq.u32 %p1, %r39, 63; @%p1 {COPY}", "forward")
    x, out = launch(f"{COPY} {DONE} {READ} bar.sync 0; {COPY}", order)
    np.testing.assert_array_equal(out, x[::-1])
    with pytest.raises(PtxError, match="source has changed"):
        launch(f"{COPY} st.global.b64 [%d1], -1; {DONE}", order)
