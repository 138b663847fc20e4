"""Asynchronous products of warp groups (wgmma) in the PTX translator: layouts of the PTX ISA, and misuse.

Independent formulas place elements in shared memory; numpy computes the products.
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

FENCE, COMMIT = "wgmma.fence.sync.aligned;", "wgmma.commit_group.sync.aligned;"
VISIBLE = "fence.proxy.async.shared::cta; bar.sync 0;"


def wait(newest=0):
    return f"wgmma.wait_group.sync.aligned {newest};"


class Case(Operands):
    def product(self, step=0, accumulates=0, signs="1, 1", result="a"):
        d = ", ".join(f"%{result}{i}" for i in range(self.n // 2))
        a = "%d10" if self.a else f"{{{', '.join(f'%w{4 * step + i}' for i in range(4))}}}"
        layouts = "".join(f", {int(x.transposed)}" for x in (self.a, self.b) if x) if self.kind == "bf16" else ""
        descriptors = f"mov.b64 %d11, {self.b.descriptor(step * self.second[1])};"
        if self.a:
            descriptors += f"mov.b64 %d10, {self.a.descriptor(step * self.second[0])};"
        instruction = f"wgmma.mma_async.sync.aligned.m64n{self.n}k{self.k}.f32.{self.kind}.{self.kind}"
        return f"""{descriptors} mov.pred %p1, {accumulates};
        {instruction} {{{d}}}, {a}, %d11, %p1, {signs}{layouts};"""


CASES = {
    "tf32-128": Case("tf32", 32, Layout(0, 16, 1024, 128), Layout(8192, 0, 1024, 128)),
    "tf32-64": Case("tf32", 8, Layout(1024, 0, 512, 64), Layout(512, 0, 512, 64)),
    "tf32-32": Case("tf32", 16, Layout(256, 0, 256, 32), Layout(8192, 0, 512, 32), (4096, 4096)),
    "tf32-none": Case("tf32", 24, Layout(0, 128, 256, 16), Layout(8208, 1024, 128, 16), (4096, 4096)),
    "tf32-registers": Case("tf32", 40, None, Layout(0, 0, 1024, 128)),
    "bf16-128": Case("bf16", 128, Layout(16384, 0, 1024, 128, True), Layout(0, 4096, 1024, 128, True), (2048, 2048)),
    "bf16-64": Case("bf16", 64, Layout(0, 2048, 512, 64, True), Layout(8192, 0, 512, 64), (1024, 32)),
    "bf16-32": Case("bf16", 32, Layout(0, 0, 256, 32), Layout(8192, 512, 256, 32, True), (4096, 2048)),
    "bf16-none": Case("bf16", 16, Layout(0, 1024, 128, 16, True), Layout(8192, 256, 512, 16, True), (4096, 4096)),
    "bf16-registers": Case("bf16", 256, None, Layout(0, 2048, 1024, 128, True), (0, 8192)),
}
SIGNS = {"1, 1": 1, "-1, 1": -1, "1, -1": -1, "-1, -1": 1}
WORDS = "mad.wide.u32 %d3, %r39, 24, %d3;" + "".join(f"ld.global.b32 %w{i}, [%d3+{4 * i}];" for i in range(8))
"""Load a thread's 8 words of A into registers."""


def results(n, of="a"):
    """Store to the second array, `n / 2` numbers a thread."""
    stores = "".join(f"st.global.f32 [%d4+{4 * i}], %{of}{i};" for i in range(n // 2))
    return f"ld.param.u64 %d4, [p2]; mad.wide.u32 %d4, %r39, {2 * n}, %d4; {stores}"


def text(name, body, n):
    more = f".reg .f32 %a<{n // 2}>; .reg .f32 %b<{n // 2}>; .reg .b32 %w<8>;"
    starts = "".join(f"mov.b32 %a{i}, 0f40400000;" for i in range(n // 2))
    return kernel(f"{more} {starts} {body}", name=name)


@functools.cache
def products():
    """Return two products of each case: the first overwrites, the second adds."""
    parts = [HEAD, SHARED]
    for name, case in CASES.items():
        both = case.product() + case.product(1, -1)
        body = f"{BRING} {WORDS} {VISIBLE} {FENCE} {both} {COMMIT} {wait()} {results(case.n)}"
        parts.append(text(name.replace("-", "_"), body, case.n))
    case = CASES["tf32-64"]
    for i, signs in enumerate(SIGNS):
        body = f"{BRING} {WORDS} {VISIBLE} {FENCE} {case.product(0, -1, signs)} {COMMIT} {wait()} {results(case.n)}"
        parts.append(text(f"signs{i}", body, case.n))
    return ptx.load("\n".join(parts))


def operands(case, seed):
    """Return A, B, the contents of shared memory, and every thread's words of A."""
    a, b, of_a, image = case.draw(seed)
    thread = np.arange(128)
    words = np.zeros((128, 8, 4 // case.size), of_a.dtype)
    for step in range(2):
        for word in range(4):
            for half in range(4 // case.size):
                row = thread // 32 * 16 + thread % 32 // 4 + word % 2 * 8
                column = (thread % 4 + word // 2 * 4) * (4 // case.size) + half
                words[:, 4 * step + word, half] = of_a[row, step * case.k + column]
    return a, b, image, words


def matrix(out, n):
    """Return D from the threads' parts, `[128, n / 2]`."""
    d = np.full((64, n), np.nan, np.float32)
    for thread in range(128):
        for i in range(n // 2):
            row = thread // 32 * 16 + thread % 32 // 4 + i // 2 % 2 * 8
            d[row, i // 4 * 8 + thread % 4 * 2 + i % 2] = out[thread, i]
    return d


@pytest.mark.parametrize("name", CASES)
def test_products_of_whole_numbers_are_exact(name):
    case = CASES[name]
    a, b, image, words = operands(case, 0)
    out = np.full((128, case.n // 2), np.nan, np.float32)
    order = ptx.ORDERS[list(CASES).index(name) % 3]
    products()[name.replace("-", "_")].launch(1, 128, [image, out, words], shared_bytes=BYTES, order=order, seed=3)
    np.testing.assert_array_equal(matrix(out, case.n), a @ b)


@pytest.mark.parametrize("signs", SIGNS)
def test_signs_of_operands(signs):
    case = CASES["tf32-64"]
    a, b, image, words = operands(case, 1)
    out = np.full((128, case.n // 2), np.nan, np.float32)
    name = f"signs{list(SIGNS).index(signs)}"
    products()[name].launch(1, 128, [image, out, words], shared_bytes=BYTES)
    expected = SIGNS[signs] * a[:, : case.k] @ b[: case.k] + 3
    np.testing.assert_array_equal(matrix(out, case.n), expected)


# ---- order and misuse

SMALL = Case("tf32", 8, Layout(0, 0, 1024, 128), Layout(8192, 0, 1024, 128))
OF_REGISTERS = Case("tf32", 8, None, Layout(8192, 0, 1024, 128))
WIDER = Case("tf32", 16, SMALL.a, SMALL.b)
OVERWRITE = "setp.eq.u32 %p2, %r39, 1; @%p2 st.shared.b32 [%r1+4], %r39;"


def steps(**other):
    """Return the text of one product from start to end, with replacements for some steps."""
    usual = {"bring": BRING + WORDS, "visible": VISIBLE, "fence": FENCE, "product": SMALL.product(), "commit": COMMIT}
    return " ".join({**usual, "wait": wait(), "out": results(8), **other}.values())


def all_but(threads):
    return f"setp.{threads} %p2, %r39, 96; @!%p2 bra end;"


RIGHT = {
    "once": steps(),
    "fence_after_the_barrier": steps(visible="bar.sync 0; fence.proxy.async;"),
    "again": steps(out=f"{results(8)} {FENCE} {SMALL.product()} {COMMIT} {wait()} {results(8)}"),
    "two_groups": steps(
        commit=f"{COMMIT} {SMALL.product(result='b')} {COMMIT}",
        wait=wait(1),
        out=f"{results(8)} {wait()} {results(8, 'b')}",
    ),
    "memory_after_a_barrier": steps(wait=f"{wait()} bar.sync 0; {OVERWRITE}"),
    "registers": steps(product=OF_REGISTERS.product()),
    "same_A": steps(product=OF_REGISTERS.product() + OF_REGISTERS.product(result="b")),
}

NO_WAIT = "uses a register of a product under way: no wait between"
NO_FENCE = "a register that was used with no wgmma.fence after|takes a register as A that was used"
IN_USE = r"writes shared byte \d+, which a product under way reads: no wait between"
NOT_VISIBLE = r"a product reads shared byte \d+: no fence.proxy.async after its write"
MISSING = "waits for threads of its warp group that do not come"
WRONG = {
    "no_wait": (steps(wait=""), NO_WAIT),
    "no_commit": (steps(commit=""), NO_WAIT),
    "wait_before_commit": (steps(commit=wait(), wait=COMMIT), NO_WAIT),
    "wait_for_older_groups": (steps(wait=wait(1)), NO_WAIT),
    "result_set_under_way": (steps(commit=f"{COMMIT} mov.b32 %a1, 0;"), NO_WAIT),
    "operand_set_under_way": (
        steps(product=OF_REGISTERS.product(), commit=f"{COMMIT} mov.b32 %w2, 0;"),
        NO_WAIT,
    ),
    "no_fence": (steps(fence=""), "a product with no wgmma.fence before"),
    "result_set_after_the_fence": (steps(fence=f"{FENCE} mov.b32 %a1, 0;"), NO_FENCE),
    "operand_set_after_the_fence": (
        steps(fence=f"{FENCE} mov.b32 %w2, 0;", product=OF_REGISTERS.product()),
        NO_FENCE,
    ),
    "again_with_no_fence": (steps(out=f"{results(8)} {SMALL.product()} {COMMIT} {wait()}"), NO_FENCE),
    "result_as_operand": (
        steps(product=SMALL.product() + OF_REGISTERS.product(result="b").replace("%w", "%a")),
        "takes as A what a product under way gives",
    ),
    "another_shape": (steps(product=SMALL.product() + WIDER.product()), "a register of another product under way"),
    "memory_under_way": (steps(commit=f"{COMMIT} bar.sync 0; {OVERWRITE}"), IN_USE),
    "copy_under_way": (steps(commit=f"{COMMIT} bar.sync 0; cp.async.ca.shared.global [%r3], [%d1], 8;"), IN_USE),
    "memory_after_no_barrier": (steps(wait=f"{wait()} {OVERWRITE}"), "no barrier between"),
    "copy_not_waited_for": (
        steps(bring=f"{BRING} {WORDS} bar.sync 0; cp.async.ca.shared.global [%r3], [%d1], 8;"),
        r"uses shared byte \d+, to which thread \d+ copies: no wait between",
    ),
    "no_proxy_fence": (steps(visible="bar.sync 0;"), NOT_VISIBLE),
    "proxy_fence_first": (steps(bring=f"fence.proxy.async; {BRING} {WORDS}", visible="bar.sync 0;"), NOT_VISIBLE),
    "proxy_fence_of_some": (
        steps(visible="bar.sync 0; setp.ne.u32 %p2, %r39, 17; @%p2 fence.proxy.async;"),
        NOT_VISIBLE,
    ),
    "no_barrier": (steps(visible="fence.proxy.async;"), "which a thread writes: no barrier between"),
    "a_warp_is_missing": (steps(product=f"{all_but('lt.u32')} {SMALL.product()}", out=f"{results(8)} end:"), MISSING),
    "a_lane_is_missing": (steps(product=f"{all_but('ne.u32')} {SMALL.product()}", out=f"{results(8)} end:"), MISSING),
    "a_wait_is_missing": (steps(wait=f"{all_but('lt.u32')} {wait()}", out=f"{results(8)} end:"), MISSING),
    "other_descriptors": (
        steps(product=SMALL.product().replace("wgmma", "setp.eq.u32 %p2, %r39, 70; @%p2 add.s64 %d11, %d11, 1; wgmma")),
        "thread 70: has another product than thread 0",
    ),
    "base_offset": (
        steps(product=SMALL.product().replace("wgmma", "or.b64 %d11, %d11, 0x2000000000000; wgmma")),
        "a matrix descriptor with a base offset or unknown bits",
    ),
    "outside": (
        steps(product=SMALL.product().replace("wgmma", "add.s64 %d11, %d11, 768; wgmma")),
        f"of {BYTES} bytes of shared memory",
    ),
}


@functools.cache
def one_product():
    bodies = {**RIGHT, **{name: body for name, (body, _) in WRONG.items()}}
    return ptx.load("\n".join([HEAD, SHARED, *(text(name, body, 16) for name, body in bodies.items())]))


def launch(name, order="forward", threads=128):
    a, b, image, words = operands(SMALL, 2)
    out = np.full((128, 4), np.nan, np.float32)
    one_product()[name].launch(1, threads, [image, out, words], shared_bytes=BYTES, order=order, seed=6)
    return a[:, :8] @ b[:8], matrix(out, 8)


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


def test_a_warp_group_has_128_threads():
    with pytest.raises(PtxError, match="a warp group has 128 threads, the block 96"):
        launch("once", threads=96)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("m64n8k8", "m64n12k8", "unknown instruction"),
        ("m64n8k8", "m64n8k16", "unknown instruction"),
        ("%a3}", "%a2, %a3}", "fragments of another size"),
        ("%a3}", "%d5}", "not registers of 32 bits"),
        ("1, 1;", "1, 2;", "other signs or layouts"),
        ("1, 1;", "1, 1, 0, 0;", "with 8 operands"),
    ],
)
def test_operands_are_checked(old, new, message):
    product = SMALL.product().replace(old, new)
    assert product != SMALL.product()
    with pytest.raises(PtxError, match=message):
        ptx.load(HEAD + text("k", product, 8))
