"""Tensor memory (tcgen05) and mbarriers in the PTX translator: layouts of the PTX ISA, products, misuse.

Independent formulas place elements; numpy computes the products.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

import ptx
from ptx import PtxError
from ptx_matrices import BRING, BYTES, Layout, Operands
from ptx_text import HEAD, SHARED, kernel

pytestmark = pytest.mark.skipif(ptx.COMPILER is None, reason="needs g++")

COLUMNS = 64
ALLOCATE = f"@%p3 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1+{BYTES}], {COLUMNS};"
NO_MORE = "@%p3 tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;"
RETURN = f"@%p3 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r10, {COLUMNS};"
BARRIER = BYTES + 8
INIT = f"@%p4 mbarrier.init.shared::cta.b64 [%r1+{BARRIER}], 1;"
ADDRESSES = f"ld.shared.b32 %r10, [%r1+{BYTES}]; shl.b32 %r12, %r39, 16; and.b32 %r12, %r12, 0x600000; "
ADDRESSES += "add.s32 %r11, %r10, %r12;"
"""Addresses of the allocation (%r10) and of the warp's part (%r11): warp i has lanes 32 i to 32 i + 31."""

WAIT_LD, WAIT_ST = "tcgen05.wait::ld.sync.aligned;", "tcgen05.wait::st.sync.aligned;"
ARRIVE = "@%p4 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r13];"
COMMIT = f"add.s32 %r13, %r1, {BARRIER}; {ARRIVE}"


def wait(parity=0, guard="", at=BARRIER):
    attempt = f"mbarrier.try_wait.parity.shared::cta.b64 complete, [%r1+{at}], {parity}; @!complete bra.uni again;"
    return f"{{ .reg .pred complete; {guard and f'@!{guard} bra past;'} again: {attempt} past: }}"


def some(of, count, first=0):
    return "{" + ", ".join(f"%{of}{first + i}" for i in range(count)) + "}"


def load(of, count, at=0, second=None, address="%r11"):
    second = count if second is None else second
    return f"tcgen05.ld.sync.aligned.16x32bx2.x{count}.b32 {some(of, count)}, [{address} + {at}], {second};"


def store(of, count, at=0, second=None, first=0, address="%r11"):
    second = count if second is None else second
    return f"tcgen05.st.sync.aligned.16x32bx2.x{count}.b32 [{address} + {at}], {second}, {some(of, count, first)};"


class Case(Operands):
    """A product; an A of None lies in tensor memory, behind D."""

    def descriptor(self, extra=0):
        kind = 1 if self.kind == "bf16" else 2
        layouts = (self.a is not None and self.a.transposed) << 15 | self.b.transposed << 16
        return 1 << 4 | kind << 7 | kind << 10 | layouts | self.n // 8 << 17 | 64 // 16 << 24 | extra

    def product(self, step=0, accumulates=0, extra=0, lane=0, guard="%p4"):
        a = f"[%r14 + {self.n + 8 * step}]" if self.a is None else "%d10"
        of_a = "" if self.a is None else f"mov.b64 %d10, {self.a.descriptor(step * self.second[0]) | 1 << 46};"
        kind = "f16" if self.kind == "bf16" else "tf32"
        return f"""{of_a} mov.b64 %d11, {self.b.descriptor(step * self.second[1]) | 1 << 46};
        add.s32 %r14, %r10, {lane << 16}; mov.b32 %r15, {self.descriptor(extra)}; mov.pred %p1, {accumulates};
        @{guard} tcgen05.mma.cta_group::1.kind::{kind} [%r14 + 0], {a}, %d11, %r15, %p1;"""

    def words(self, of_a):
        """Return every thread's words of A: 16 rows a warp, 4 words to a thread and 4 to the one 16 lanes on."""
        thread, words = np.arange(128), of_a.view(np.uint32)
        row = thread // 32 * 16 + thread % 16
        column = [[step * 8 + thread % 32 // 16 * 4 + i for i in range(4)] for step in range(2)]
        return np.stack([words[row, c] for step in column for c in step], axis=1).copy()


CASES = {
    "tf32-128": Case("tf32", 32, Layout(0, 16, 1024, 128), Layout(8192, 0, 1024, 128)),
    "tf32-64": Case("tf32", 8, Layout(1024, 0, 512, 64), Layout(512, 0, 512, 64)),
    "tf32-32": Case("tf32", 16, Layout(256, 0, 256, 32), Layout(8192, 0, 512, 32), (4096, 4096)),
    "tf32-none": Case("tf32", 32, Layout(0, 128, 256, 16), Layout(8208, 1024, 128, 16), (4096, 4096)),
    "tf32-tensor-memory": Case("tf32", 16, None, Layout(0, 0, 512, 64)),
    "bf16-128": Case("bf16", 64, Layout(16384, 0, 1024, 128, True), Layout(0, 0, 1024, 128, True), (2048, 2048)),
    "bf16-64": Case("bf16", 64, Layout(0, 2048, 512, 64, True), Layout(8192, 0, 512, 64), (1024, 32)),
    "bf16-32": Case("bf16", 32, Layout(0, 0, 256, 32), Layout(8192, 512, 256, 32, True), (4096, 2048)),
    "bf16-none": Case("bf16", 16, Layout(0, 1024, 128, 16, True), Layout(8192, 256, 512, 16, True), (4096, 4096)),
    "bf16-tensor-memory": Case("bf16", 32, None, Layout(0, 0, 1024, 128, True), (0, 2048)),
}
ADDING = {"tf32-64", "tf32-tensor-memory", "bf16-128", "bf16-none"}
"""Cases whose products both add to D; in the others the first overwrites it."""

WORDS = "mad.wide.u32 %d3, %r39, 24, %d3;" + "".join(f"ld.global.b32 %w{i}, [%d3+{4 * i}];" for i in range(8))
"""Load a thread's words of A into registers."""


def results(n, of="a"):
    """Store a warp's rows of D in the second array, `n / 2` numbers a thread."""
    stores = "".join(f"st.global.f32 [%d4+{4 * i}], %{of}{i};" for i in range(n // 2))
    return f"ld.param.u64 %d4, [p2]; mad.wide.u32 %d4, %r39, {2 * n}, %d4; {stores}"


def steps(case, **other):
    """Return the text of a case's two products, D filled with threes before, with replacements for some steps."""
    n, a = case.n, case.a is None
    usual = {
        "bring": BRING + WORDS,
        "allocate": "setp.lt.u32 %p3, %r39, 32; setp.eq.u32 %p4, %r39, 0; " + ALLOCATE,
        "init": INIT,
        "visible": "fence.proxy.async.shared::cta;",
        "barrier": "bar.sync 0;",
        "addresses": ADDRESSES + NO_MORE,
        "store": store("a", n // 2) + (store("w", 4, n, 4) + store("w", 4, n + 8, 4, 4) if a else ""),
        "wait_store": WAIT_ST,
        "barrier2": "bar.sync 0;",
        "product": case.product() + case.product(1, -1),
        "commit": COMMIT,
        "wait": wait(),
        "more": "",
        "load": load("a", n // 2),
        "wait_load": WAIT_LD,
        "out": results(n),
        "barrier3": "bar.sync 0;",
        "release": RETURN,
    }
    assert other.keys() <= usual.keys()
    return " ".join({**usual, **other}.values())


def text(name, body, n):
    more = f".reg .b32 %a<{max(n // 2, 8)}>; .reg .b32 %b<8>; .reg .b32 %w<8>;"
    starts = "".join(f"mov.b32 %a{i}, 0f40400000;" for i in range(n // 2))
    return kernel(f"{more} {starts} {body}", name=name)


@functools.cache
def products():
    """Return two products of each case."""
    parts = [HEAD, SHARED]
    for name, case in CASES.items():
        body = steps(case, product=case.product(0, -int(name in ADDING)) + case.product(1, -1))
        parts.append(text(name.replace("-", "_"), body, case.n))
    return ptx.load("\n".join(parts))


def matrix(out, n):
    """Return D from the threads' parts, `[128, n / 2]`."""
    d = np.full((64, n), np.nan, np.float32)
    for thread in range(128):
        for i in range(n // 2):
            d[thread // 32 * 16 + thread % 16, thread % 32 // 16 * (n // 2) + i] = out[thread, i]
    return d


@pytest.mark.parametrize("name", CASES)
def test_products_of_whole_numbers_are_exact(name):
    case = CASES[name]
    a, b, of_a, image = case.draw(0)
    out = np.full((128, case.n // 2), np.nan, np.float32)
    order = ptx.ORDERS[list(CASES).index(name) % 3]
    arguments = [image, out, case.words(of_a)]
    products()[name.replace("-", "_")].launch(1, 128, arguments, shared_bytes=BYTES + 24, order=order, seed=3)
    np.testing.assert_array_equal(matrix(out, case.n), a @ b + 3 * (name in ADDING))


@pytest.mark.parametrize("lane", [0, 16])
@pytest.mark.parametrize("count", [1, 2, 4, 8, 16, 32, 64, 128])
def test_layout_of_loads_and_stores(count, lane):
    """Words stored in one shape are loaded in another, through all 16 lanes of the warp."""
    columns, second, at = 256, 3, 2
    body = f"""mov.u32 %r1, memory; setp.lt.u32 %p3, %r39, 32;
    {ALLOCATE.replace(f", {COLUMNS}", f", {columns}").replace(f"+{BYTES}", "")} bar.sync 0;
    {ADDRESSES.replace(f"+{BYTES}", "")} add.s32 %r11, %r11, {lane << 16};
    .reg .b32 %a<{count}>; .reg .b32 %x<128>;
    {"".join(f"mad.lo.u32 %x{i}, %r39, 128, {i};" for i in range(128))} {store("x", 128)} {WAIT_ST}
    bar.warp.sync -1; {load("a", count, at, second)} {WAIT_LD} {results(2 * count).replace("p2", "p1")} bar.sync 0;
    {RETURN.replace(f", {COLUMNS}", f", {columns}")}"""
    out = np.zeros((128, count), np.uint32)
    loads = (np.arange(128) % 32 // 16)[:, None] * second + at + np.arange(count)
    cells = np.zeros((128, 256), np.uint32)
    for thread in range(128):
        first = thread % 32 // 16 * 128
        cells[thread // 32 * 16 + thread % 16, first : first + 128] = thread * 128 + np.arange(128)
    ptx.load(HEAD + SHARED + kernel(body, parameters=1))["k"].launch(1, 128, [out], shared_bytes=16, order="random")
    thread = np.arange(128)[:, None]
    np.testing.assert_array_equal(out, cells[thread // 32 * 16 + thread % 16, loads])


# ---- order and misuse

SMALL = Case("tf32", 8, Layout(0, 0, 1024, 128), Layout(8192, 0, 1024, 128))
IN_MEMORY = Case("tf32", 8, None, SMALL.b)
WIDER = Case("tf32", 16, SMALL.a, SMALL.b)
SECOND = SMALL.product(1, -1)
OVERWRITE = "st.shared.b32 [%r3], %r39;"
OVERWRITE_A = store("a", 4, 8) + WAIT_ST
END = f"@%p4 mbarrier.inval.shared::cta.b64 [%r1+{BARRIER}];"
ONE = "setp.eq.u32 %p5, %r39, 77;"

RIGHT = {
    "once": steps(SMALL),
    "in_two_phases": steps(SMALL, product=SMALL.product(), more=f"{SECOND} {COMMIT} {wait(1)}"),
    "two_arrivals": steps(SMALL, init=INIT.replace(", 1", ", 2"), product=SMALL.product() + COMMIT + SECOND),
    "one_waits": steps(SMALL, wait=f"{ONE} {wait(guard='%p5')} bar.sync 0;"),
    "parity_of_the_phase_before": steps(SMALL, product=f"{wait(1)} {SMALL.product()} {SECOND}"),
    "fence_after_the_barrier": steps(SMALL, visible="", barrier="bar.sync 0; fence.proxy.async;"),
    "memory_after_the_wait": steps(SMALL, more=OVERWRITE),
    "memory_of_A_after_the_wait": steps(IN_MEMORY, more=OVERWRITE_A),
    "other_half_of_the_lanes": steps(
        SMALL,
        addresses=f"{ADDRESSES} add.s32 %r11, %r11, 0x100000;",
        product=SMALL.product(lane=16) + SMALL.product(1, -1, lane=16),
    ),
    "mbarrier_ends": steps(SMALL, barrier3=f"bar.sync 0; {END} @%p4 st.shared.b64 [%r1+{BARRIER}], %d3;"),
    "an_elected_thread": steps(SMALL).replace(
        "setp.eq.u32 %p4, %r39, 0;", "elect.sync %r16|%p4, -1; elect.sync _|%p4, -1; and.pred %p4, %p4, %p3;"
    ),
}

UNDER_WAY = "of tensor memory, as a product under way does: no wait between"
IN_USE = r"writes shared byte \d+, which a product under way reads: no wait between"
NOT_VISIBLE = r"a product reads shared byte \d+: no fence.proxy.async after its write"
NO_BARRIER = "of tensor memory, as another thread does: no barrier between"
STORED = r"of tensor memory, to which thread \d+ stores: no wait between"
LOADED = "of tensor memory, which is loaded: no wait between"
TOUCHED = "uses a register that tcgen05.ld loads: no tcgen05.wait::ld between"
NEVER = rf"waits for a phase of the mbarrier at {BARRIER} that does not complete"
NO_MBARRIER = r"no mbarrier was initialised at shared \d+"
NOT_ALLOCATED = "of tensor memory, which is not allocated"
OTHER_LANES = "other lanes of tensor memory than a product of 64 rows has"
OTHER_DESCRIPTOR = "an instruction descriptor of other types or with unknown bits"
WRONG = {
    "no_wait": (steps(SMALL, wait=""), UNDER_WAY),
    "one_attempt": (
        steps(SMALL, wait=f"mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r1+{BARRIER}], 0;"),
        UNDER_WAY,
    ),
    "some_wait": (steps(SMALL, wait=wait(guard="%p3")), UNDER_WAY),
    "wait_for_the_commit_of_another": (
        steps(
            SMALL,
            init=INIT + INIT.replace(str(BARRIER), str(BARRIER + 8)),
            commit=f"{COMMIT} {ONE} add.s32 %r13, %r13, 8; {ARRIVE.replace('%p4', '%p5')} not.pred %p6, %p3;",
            wait=f"{wait(guard='%p3')} {wait(guard='%p6', at=BARRIER + 8)}",
        ),
        UNDER_WAY,
    ),
    "store_under_way": (steps(SMALL, wait=store("a", 4) + WAIT_ST + wait()), UNDER_WAY),
    "return_under_way": (steps(SMALL, wait="", load="", wait_load=""), UNDER_WAY),
    "no_commit": (steps(SMALL, commit=""), NEVER),
    "commit_after_the_wait": (steps(SMALL, commit=wait(), wait=COMMIT), NEVER),
    "commit_before_the_product": (steps(SMALL, product=COMMIT, commit=SMALL.product()), UNDER_WAY),
    "wait_for_the_phase_before": (steps(SMALL, wait=wait(1)), UNDER_WAY),
    "wait_for_the_next_phase": (steps(SMALL, wait=wait() + wait(1)), NEVER),
    "too_few_arrivals": (steps(SMALL, init=INIT.replace(", 1", ", 2")), NEVER),
    "a_parity_of_2": (steps(SMALL, wait=wait(2)), "a phase of parity 2"),
    "no_wait_for_loads": (steps(SMALL, wait_load=""), TOUCHED),
    "loaded_register_set": (steps(SMALL, wait_load=f"mov.b32 %a1, 0; {WAIT_LD}"), TOUCHED),
    "loaded_twice": (steps(SMALL, wait_load=load("a", 4) + WAIT_LD), TOUCHED),
    "store_while_loaded": (steps(SMALL, wait_load=store("w", 4) + WAIT_LD), LOADED),
    "return_while_loaded": (steps(SMALL, wait_load="", out=""), LOADED),
    "no_wait_for_stores": (steps(SMALL, wait_store=""), STORED),
    "load_of_what_is_stored": (steps(SMALL, wait_store=load("b", 4) + WAIT_LD + WAIT_ST), STORED),
    "no_barrier_after_stores": (steps(SMALL, barrier2=""), f"{NO_BARRIER}|{STORED}"),
    "no_barrier_after_stores_of_A": (
        steps(IN_MEMORY, store=store("w", 4, 8, 4), barrier2="", product=IN_MEMORY.product()),
        f"{NO_BARRIER}|{STORED}",
    ),
    "no_barrier_after_loads": (steps(SMALL, barrier3=""), NO_BARRIER),
    "another_product_after_loads": (steps(SMALL, barrier3=SECOND), f"{NO_BARRIER}|{LOADED}"),
    "two_start_a_product": (
        steps(SMALL, product="setp.lt.u32 %p5, %r39, 2;" + SMALL.product(guard="%p5")),
        UNDER_WAY,
    ),
    "another_shape": (steps(SMALL, product=SMALL.product() + WIDER.product()), UNDER_WAY),
    "A_is_a_result": (
        steps(SMALL, product=SMALL.product() + IN_MEMORY.product().replace("%r14 + 8", "%r14 + 0")),
        UNDER_WAY,
    ),
    "A_is_the_own_result": (
        steps(IN_MEMORY, product=IN_MEMORY.product().replace("%r14 + 8", "%r14 + 0")),
        UNDER_WAY,
    ),
    "store_of_A_under_way": (steps(IN_MEMORY, wait=OVERWRITE_A + wait()), UNDER_WAY),
    "memory_under_way": (steps(SMALL, commit=f"{COMMIT} bar.sync 0; {OVERWRITE}"), IN_USE),
    "copy_under_way": (
        steps(SMALL, commit=f"{COMMIT} bar.sync 0; cp.async.ca.shared.global [%r3], [%d1], 8;"),
        IN_USE,
    ),
    "memory_after_the_wait_of_another": (
        steps(SMALL, wait=f"bar.sync 0; {wait(guard='%p3')} {OVERWRITE}"),
        IN_USE,
    ),
    "no_proxy_fence": (steps(SMALL, visible=""), NOT_VISIBLE),
    "proxy_fence_first": (steps(SMALL, bring=f"fence.proxy.async; {BRING} {WORDS}", visible=""), NOT_VISIBLE),
    "proxy_fence_of_another": (
        steps(SMALL, visible="", barrier=f"bar.sync 0; {ONE} @%p5 fence.proxy.async;"),
        NOT_VISIBLE,
    ),
    "no_barrier": (
        steps(SMALL, barrier2=f"bar.sync 0; {OVERWRITE} fence.proxy.async;"),
        "a product reads shared byte .* which a thread writes: no barrier between",
    ),
    "beyond_the_columns": (steps(SMALL, load=load("a", 4, COLUMNS - 4)), NOT_ALLOCATED),
    "before_the_columns": (steps(SMALL, load=load("a", 4, -4)), NOT_ALLOCATED),
    "a_product_beyond_the_columns": (
        steps(SMALL, product=SMALL.product().replace("%r14 + 0", f"%r14 + {COLUMNS - 4}")),
        NOT_ALLOCATED,
    ),
    "address_not_read": (steps(SMALL, addresses=f"{ADDRESSES} mov.u32 %r11, %r12;"), NOT_ALLOCATED),
    "lanes_of_another_warp": (
        steps(SMALL, load=f"xor.b32 %r11, %r11, 0x200000; {load('a', 4)}"),
        "reaches for lane .* of tensor memory, its warp has those from",
    ),
    "a_product_of_other_lanes": (steps(SMALL, product=SMALL.product(lane=8)), OTHER_LANES),
    "A_of_other_lanes": (
        steps(IN_MEMORY, product=IN_MEMORY.product(lane=16).replace("[%r14 + 0]", "[%r10 + 0]")),
        OTHER_LANES,
    ),
    "nothing_returned": (steps(SMALL, release=""), "allocates 64 columns of tensor memory that nobody returns"),
    "fewer_returned": (steps(SMALL, release=RETURN.replace("64", "32")), "that were not allocated so"),
    "returned_twice": (steps(SMALL, release=RETURN + RETURN), "that were not allocated so"),
    "used_after_return": (steps(SMALL, release=f"{RETURN} bar.sync 0; {load('a', 4)} {WAIT_LD}"), NOT_ALLOCATED),
    "allocated_too_late": (steps(SMALL, barrier2=f"bar.sync 0; {ALLOCATE}"), "allocates after tcgen05.relinquish"),
    "too_many_columns": (
        steps(SMALL, init=INIT + ALLOCATE.replace("64", "512")),
        "waits for 512 columns of tensor memory",
    ),
    "odd_columns": (steps(SMALL).replace(ALLOCATE, ALLOCATE.replace("64", "48")), "allocates 48 columns"),
    "no_mbarrier": (steps(SMALL, init=""), NO_MBARRIER),
    "mbarrier_of_another_address": (steps(SMALL, wait=wait().replace(str(BARRIER), str(BARRIER - 8))), NO_MBARRIER),
    "mbarrier_ended": (steps(SMALL, barrier2=f"bar.sync 0; {END} bar.sync 0;"), NO_MBARRIER),
    "mbarrier_ended_under_way": (
        steps(SMALL, wait=f"{END} {wait()}"),
        "invalidates an mbarrier that is waited for or arrived at|which another thread uses: no barrier between",
    ),
    "mbarrier_ended_with_no_barrier": (
        steps(SMALL, more=END),
        f"which another thread uses: no barrier between|{NO_MBARRIER}",
    ),
    "mbarrier_twice": (steps(SMALL, init=INIT + INIT), "which is an mbarrier's"),
    "mbarrier_as_memory": (steps(SMALL, more=f"ld.shared.b32 %r20, [%r1+{BARRIER + 4}];"), "which is an mbarrier's"),
    "mbarrier_with_no_barrier": (
        steps(SMALL, init="", barrier2=f"bar.sync 0; {INIT}"),
        f"which another thread writes: no barrier between|{NO_MBARRIER}",
    ),
    "mbarrier_of_no_arrivals": (steps(SMALL, init=INIT.replace(", 1", ", 0")), "an mbarrier of 0 arrivals"),
    "a_lane_is_missing": (
        steps(SMALL, load=f"{ONE} @%p5 bra gone; {load('a', 4)}", release="gone:"),
        "waits for threads of its warp that do not come",
    ),
    "other_columns_of_a_lane": (
        steps(SMALL, load=f"{ONE} @%p5 add.s32 %r11, %r11, 1; {load('a', 4)}"),
        "has other operands than its warp",
    ),
    "saturation": (steps(SMALL, product=SMALL.product(extra=1 << 3)), OTHER_DESCRIPTOR),
    "negation": (steps(SMALL, product=SMALL.product(extra=1 << 13)), OTHER_DESCRIPTOR),
    "operands_of_another_type": (
        steps(SMALL, product=SMALL.product().replace("kind::tf32", "kind::f16")),
        OTHER_DESCRIPTOR,
    ),
    "rows": (steps(SMALL, product=SMALL.product(extra=8 << 24)), "a product of 192 rows"),
    "transposed_tf32": (steps(SMALL, product=SMALL.product(extra=1 << 16)), "a transposed operand of 32 bits"),
    "descriptor_of_wgmma": (
        steps(SMALL, product=SMALL.product().replace("mov.b32 %r15", f"xor.b64 %d11, %d11, {1 << 46}; mov.b32 %r15")),
        "a matrix descriptor with a base offset or unknown bits",
    ),
}


@functools.cache
def one_product():
    bodies = {**RIGHT, **{name: body for name, (body, _) in WRONG.items()}}
    return ptx.load("\n".join([HEAD, SHARED, *(text(name, body, 16) for name, body in bodies.items())]))


def launch(name, order="forward"):
    a, b, of_a, image = SMALL.draw(2)
    out = np.full((128, 4), np.nan, np.float32)
    arguments = [image, out, SMALL.words(of_a)]
    one_product()[name].launch(1, 128, arguments, shared_bytes=BYTES + 24, order=order, seed=6)
    return a @ b, matrix(out, 8)


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_ordered_is_right(name):
    for order in ptx.ORDERS:
        expected, d = launch(name, order)
        np.testing.assert_array_equal(d, expected)


@pytest.mark.parametrize("order", ptx.ORDERS)
@pytest.mark.parametrize("name", WRONG)
def test_misuse_is_an_error(name, order):
    with pytest.raises(PtxError, match=WRONG[name][1]):
        launch(name, order)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tcgen05.mma.cta_group::1", "tcgen05.mma.cta_group::2", "unknown instruction"),
        ("kind::tf32", "kind::i8", "unknown instruction"),
        ("16x32bx2.x4.b32", "16x32bx2.x4.pack::16b.b32", "unknown instruction"),
        ("16x32bx2.x4.b32", "32x32b.x4.b32", "unknown instruction"),
        ("16x32bx2.x4.b32", "16x32bx2.x3.b32", "unknown instruction"),
        ("16x32bx2.x4.b32", "16x32bx2.x2.b32", "4 elements"),
        (load("a", 4), load("d", 4), "not registers of 32 bits"),
        ("try_wait.parity", "try_wait", "unknown instruction"),
        ("%r15, %p1;", "%r15, %p1, 1;", "with 6 operands"),
        ("arrive::one.shared", "arrive::one.multicast::cluster.shared", "unknown instruction"),
    ],
)
def test_operands_are_checked(old, new, message):
    body = steps(SMALL)
    assert old in body
    with pytest.raises(PtxError, match=message):
        ptx.load(HEAD + SHARED + text("k", body.replace(old, new), 16))
