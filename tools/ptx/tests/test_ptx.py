"""The PTX translator's instructions: each group against numpy."""

from __future__ import annotations

import re

import numpy as np
import pytest

import ptx
from ptx import PtxError
from ptx_text import HEAD, REGISTERS, bf16, kernel, load, widen

pytestmark = pytest.mark.skipif(ptx.COMPILER is None, reason="needs g++")

WORDS = np.array([0, 1, 2, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xDEADBEEF, 0x12345678], dtype=np.uint32)
FLOATS = np.array([0.0, -0.0, 1.5, -2.25, 3e-40, 1e30, np.inf, -np.inf, np.nan, 0.1, 7.0], dtype=np.float32)


class Batch:
    """Return a module of two-operand instructions, a kernel each, so that the C++ compiler starts once."""

    def __init__(self, cases):
        self.cases = {f"k{i}": case for i, case in enumerate(cases)}
        text = HEAD
        for name, (instruction, kind, _) in self.cases.items():
            wide = "64" in kind
            r = "%d" if wide else "%r"
            bits = "b64" if wide else "b32"
            body = f"ld.global.{bits} {r}10, [%d1]; ld.global.{bits} {r}11, [%d2];\nmov.b64 %d12, 0;\n"
            body += re.sub(r"\b[AB]\b", lambda x: r + str(10 + (x[0] == "B")), instruction)  # noqa: B023
            body += " cvt.u64.u32 %d12, %r12;" if "%r12" in instruction else ""
            body += "\nst.global.b64 [%d3], %d12;"
            text += kernel(body, name=name) + "\n"
        self.module = ptx.load(text)

    def check(self):
        for name, (instruction, kind, expected) in self.cases.items():
            values = FLOATS.astype(kind) if kind.startswith("f") else WORDS.astype(kind)
            a, b = (x.ravel().copy() for x in np.meshgrid(values, values))
            buffers = [np.zeros(a.size, dtype=np.uint64) for _ in range(3)]
            for buffer, x in zip(buffers, (a, b), strict=False):
                buffer.view(a.dtype).reshape(a.size, -1)[:, 0] = x
            self.module[name].launch(1, a.size, buffers)
            with np.errstate(all="ignore"):
                wanted = np.asarray(expected(a, b))
            result = buffers[2].view(wanted.dtype).reshape(a.size, -1)[:, 0]
            np.testing.assert_array_equal(result, wanted, err_msg=instruction)


def s(x):
    return x.astype(np.int32)


def quotient(a, b):
    whole = np.trunc(s(a) / np.where(b == 0, 1, s(b)).astype(np.float64))
    return np.where(b == 0, np.int64(-1), whole.astype(np.int64)).astype(np.int32)


def test_integers_wrap_shift_and_select_as_in_ptx():
    mask = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    product = lambda a, b: a.astype(np.uint64) * b.astype(np.uint64)  # noqa: E731
    cases = [
        ("add.s32 %r12, A, B;", "u4", lambda a, b: a + b),
        ("add.s16x2 %r12, A, B;", "u4", lambda a, b: (a.view(np.uint16) + b.view(np.uint16)).view(np.uint32)),
        ("sub.u32 %r12, A, B;", "u4", lambda a, b: a - b),
        ("mul.lo.s32 %r12, A, B;", "u4", lambda a, b: a * b),
        ("mul.hi.u32 %r12, A, B;", "u4", lambda a, b: (product(a, b) >> shift).astype(np.uint32)),
        ("mad.lo.s32 %r12, A, B, -7;", "u4", lambda a, b: a * b - np.uint32(7)),
        ("mul.wide.u32 %d12, A, B;", "u4", product),
        ("mul.wide.s32 %d12, A, B;", "u4", lambda a, b: s(a).astype(np.int64) * s(b)),
        (
            "mul.hi.s64 %d12, A, B;",
            "i8",
            lambda a, b: np.array([(int(x) * int(y)) >> 64 for x, y in zip(a, b, strict=True)]),
        ),
        ("div.s32 %r12, A, B;", "u4", lambda a, b: quotient(a, b)),
        ("rem.u32 %r12, A, B;", "u4", lambda a, b: np.where(b == 0, a, a % np.maximum(b, 1))),
        ("and.b32 %r12, A, B;", "u4", lambda a, b: a & b),
        ("or.b32 %r12, A, B;", "u4", lambda a, b: a | b),
        ("xor.b32 %r12, A, B;", "u4", lambda a, b: a ^ b),
        ("not.b32 %r12, A;", "u4", lambda a, b: ~a),
        ("neg.s32 %r12, A;", "u4", lambda a, b: np.uint32(0) - a),
        ("min.s32 %r12, A, B;", "u4", lambda a, b: np.minimum(s(a), s(b))),
        ("max.u32 %r12, A, B;", "u4", lambda a, b: np.maximum(a, b)),
        ("shl.b32 %r12, A, B;", "u4", lambda a, b: np.where(b < 32, a << (b & 31), 0).astype(np.uint32)),
        ("shr.u32 %r12, A, B;", "u4", lambda a, b: np.where(b < 32, a >> (b & 31), 0).astype(np.uint32)),
        ("shr.s32 %r12, A, B;", "u4", lambda a, b: s(a) >> np.minimum(b, 31).astype(np.int32)),
        ("shl.b64 %d12, A, 40;", "u8", lambda a, b: a << np.uint64(40)),
        ("bfe.u32 %r12, A, 4, 9;", "u4", lambda a, b: (a >> 4) & 511),
        ("bfe.s32 %r12, A, 4, 9;", "u4", lambda a, b: s(a << 19) >> 23),
        ("bfi.b32 %r12, A, B, 8, 8;", "u4", lambda a, b: (b & ~np.uint32(0xFF00)) | ((a & 255) << 8)),
        ("lop3.b32 %r12, A, B, 255, 0xEA;", "u4", lambda a, b: (a & b) | 255),
        ("prmt.b32 %r12, A, B, 0x5410;", "u4", lambda a, b: (a & 0xFFFF) | (b << 16)),
        ("shf.r.wrap.b32 %r12, A, B, 5;", "u4", lambda a, b: (a >> 5) | (b << 27)),
        ("popc.b32 %r12, A;", "u4", lambda a, b: np.array([bin(x).count("1") for x in a], np.uint32)),
        ("setp.lt.s32 %p1, A, B; selp.b32 %r12, 5, 6, %p1;", "u4", lambda a, b: np.where(s(a) < s(b), 5, 6)),
        ("setp.hi.u32 %p1, A, B; selp.b32 %r12, 5, 6, %p1;", "u4", lambda a, b: np.where(a > b, 5, 6)),
        (
            "setp.eq.b32 %p1, A, B; setp.ge.u32 %p2, A, 32; or.pred %p3, %p1, %p2; not.pred %p3, %p3;"
            "mov.b32 %r12, 1; @!%p3 mov.b32 %r12, 2;",
            "u4",
            lambda a, b: np.where((a == b) | (a >= 32), 2, 1),
        ),
        ("cvt.s64.s32 %d12, A;", "u4", lambda a, b: s(a).astype(np.int64)),
        ("cvt.s64.s8 %d12, A;", "u4", lambda a, b: a.astype(np.int8).astype(np.int64)),
        ("mov.b64 %d12, {A, B};", "u4", lambda a, b: a.astype(np.uint64) | (b.astype(np.uint64) << shift)),
        ("mov.b64 {_, %r12}, A;", "u8", lambda a, b: a >> shift),
        ("add.s64 %d12, A, B; not.b64 %d12, %d12;", "u8", lambda a, b: ~(a + b)),
        ("cvt.u32.u64 %r12, A;", "u8", lambda a, b: a & mask),
    ]
    Batch([(text, np.dtype(kind).name, f) for text, kind, f in cases]).check()


def test_floats_round_and_treat_nans_as_in_ptx():
    def either(f):
        return lambda a, b: np.where(np.isnan(a), b, np.where(np.isnan(b), a, f(a, b)))

    def compared(f):
        return lambda a, b: np.where(f(a, b), 5, 6)

    cases = []
    for kind, r, z in (("f32", "%r12", "0f00000000"), ("f64", "%d12", "0d0000000000000000")):
        dtype = f"float{kind[1:]}"
        cases += [
            (f"add.{kind} {r}, A, B;", dtype, lambda a, b: a + b),
            (f"sub.rn.{kind} {r}, A, B;", dtype, lambda a, b: a - b),
            (f"mul.rn.{kind} {r}, A, B;", dtype, lambda a, b: a * b),
            (f"div.rn.{kind} {r}, A, B;", dtype, lambda a, b: a / b),
            (f"fma.rn.{kind} {r}, A, B, {z};", dtype, lambda a, b: a * b + 0),
            (f"sqrt.rn.{kind} {r}, A;", dtype, lambda a, b: np.sqrt(a)),
            (f"rcp.rn.{kind} {r}, A;", dtype, lambda a, b: 1 / a),
            (f"min.{kind} {r}, A, B;", dtype, either(np.minimum)),
            (f"max.{kind} {r}, A, B;", dtype, either(np.maximum)),
            (f"neg.{kind} {r}, A;", dtype, lambda a, b: -a),
            (f"abs.{kind} {r}, A;", dtype, lambda a, b: np.abs(a)),
        ]
        for name, f in (("lt", np.less), ("eq", np.equal), ("ne", lambda a, b: (a < b) | (a > b))):
            text = f"setp.{name}.{kind} %p1, A, B; selp.b64 %d12, 5, 6, %p1;"
            cases.append((text, dtype, compared(f)))
        text = f"setp.neu.{kind} %p1, A, B; selp.b64 %d12, 5, 6, %p1;"
        cases.append((text, dtype, compared(np.not_equal)))
        text = f"setp.gtu.{kind} %p1, A, B; selp.b64 %d12, 5, 6, %p1;"
        cases.append((text, dtype, compared(lambda a, b: ~(a <= b))))
    cases += [
        ("ex2.approx.f32 %r12, A;", "float32", lambda a, b: np.exp2(a.astype(np.float64)).astype(np.float32)),
        ("cvt.f64.f32 %d12, A;", "float32", lambda a, b: a.astype(np.float64)),
        ("cvt.rn.f32.f64 %r12, A;", "float64", lambda a, b: a.astype(np.float32)),
        ("cvt.rni.f32.f32 %r12, A;", "float32", lambda a, b: np.rint(a)),
        ("add.ftz.f32 %r12, A, 0f00000000;", "float32", lambda a, b: np.where(np.abs(a) < 1e-38, 0, a + 0)),
        ("cvt.rn.f32.s32 %r12, A;", "uint32", lambda a, b: s(a).astype(np.float32)),
        (
            "cvt.rzi.s32.f32 %r12, A;",
            "float32",
            lambda a, b: np.where(np.isnan(a), 0, np.clip(np.trunc(a.astype(np.float64)), -(2**31), 2**31 - 1)).astype(
                np.int32
            ),
        ),
    ]
    Batch(cases).check()


def test_bf16_is_rounded_once():
    a = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
    x, y = bf16(a[0]), bf16(a[1])
    body = """
    ld.global.b16 %h1, [%d1]; ld.global.b16 %h2, [%d2]; cvt.f64.bf16 %g1, %h1; cvt.f32.bf16 %f2, %h2;
    cvt.rn.f32.f64 %f1, %g1; add.rn.f32 %f3, %f1, %f2; cvt.rn.bf16x2.f32 %r1, %f3, %f1; fma.rn.bf16 %h3, %h1, %h2, %h1;
    cvt.rn.bf16.f32 %h4, %f3; mov.b32 %r2, {%h3, %h4}; st.global.v2.b32 [%d3], {%r1, %r2};"""
    buffers = [np.zeros((256, 4), np.uint16) for _ in range(3)]
    buffers[0][:, 0], buffers[1][:, 0] = x, y
    load(body)["k"].launch(1, 256, buffers)
    total = bf16(widen(x) + widen(y))
    fused = bf16((widen(x).astype(np.float64) * widen(y) + widen(x)).astype(np.float32))
    np.testing.assert_array_equal(buffers[2], np.stack([x, total, fused, total], axis=1))


def test_halves_of_words_are_numbers_of_their_own():
    x, y = np.random.default_rng(1).standard_normal((2, 64, 2)).astype(np.float32)
    body = """
    ld.global.b64 %d5, [%d1]; ld.global.b64 %d6, [%d2];
    add.rn.f32x2 %d7, %d5, %d6; st.global.b64 [%d3], %d7; sub.f32x2 %d7, %d5, %d6; st.global.b64 [%d3+512], %d7;
    mul.f32x2 %d7, %d5, %d6; st.global.b64 [%d3+1024], %d7;
    fma.rn.f32x2 %d7, %d5, %d6, %d5; st.global.b64 [%d3+1536], %d7;
    mov.b64 {%r1, %r2}, %d5; prmt.b32 %r3, %r1, %r2, 0x7632; mov.b64 {%r4, %r5}, %d6; prmt.b32 %r6, %r4, %r5, 0x7632;
    add.bf16x2 %r7, %r3, %r6; fma.rn.bf16x2 %r8, %r3, %r6, %r3; st.global.v2.b32 [%d3+2048], {%r7, %r8};
    mov.b32 {%h1, _}, %r3; mov.b32 {%h2, _}, %r6; add.bf16 %h3, %h1, %h2; add.rn.f32.bf16 %f1, %h1, %r4;
    cvt.u32.u16 %r9, %h3; mov.b32 %r10, %f1; st.global.v2.b32 [%d3+2560], {%r9, %r10};"""
    out = np.zeros((6, 64, 2), np.float32)
    load(body)["k"].launch(1, 64, [x, y, out])
    for actual, expected in zip(out, (x + y, x - y, x * y), strict=False):
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(out[3], (x.astype(np.float64) * y + x).astype(np.float32))
    a, b = (widen((v.view(np.uint32) >> 16).astype(np.uint16)) for v in (x, y))
    np.testing.assert_array_equal(out[4, :, 0].copy().view(np.uint16).reshape(64, 2), bf16(a + b))
    fused = (a.astype(np.float64) * b + a).astype(np.float32)
    np.testing.assert_array_equal(out[4, :, 1].copy().view(np.uint16).reshape(64, 2), bf16(fused))
    np.testing.assert_array_equal(out[5, :, 0].view(np.uint32), bf16(a + b)[:, 0])
    np.testing.assert_array_equal(out[5, :, 1], a[:, 0] + y[:, 0])


@pytest.mark.parametrize(
    ("name", "compared"),
    [
        ("lt", np.less),
        ("le", np.less_equal),
        ("gt", np.greater),
        ("ge", np.greater_equal),
        ("eq", np.equal),
        ("ne", lambda a, b: (a < b) | (a > b)),
        ("ltu", lambda a, b: ~(a >= b)),
        ("neu", np.not_equal),
    ],
)
def test_bf16_is_compared_alone_and_in_pairs(name, compared):
    special = bf16(np.array([0, -0.0, 1, -1, 1.0078125, 1e-40, -1e-40, 3e38, np.inf, -np.inf, np.nan], np.float32))
    a, b = (np.ascontiguousarray(x) for x in np.broadcast_arrays(special[:, None], special))
    pairs = [x.ravel().astype(np.uint64) | x.T.ravel().astype(np.uint64) << 16 for x in (a, b)]
    body = f"""
    ld.global.b32 %r1, [%d1]; ld.global.b32 %r2, [%d2]; mov.b32 {{%h1, _}}, %r1; mov.b32 {{%h2, _}}, %r2;
    setp.{name}.bf16x2 %p1|%p2, %r1, %r2; setp.{name}.bf16 %p3, %h1, %h2;
    selp.b32 %r3, 1, 0, %p1; @%p2 or.b32 %r3, %r3, 2; @%p3 or.b32 %r3, %r3, 4; st.global.b32 [%d3], %r3;"""
    out = np.zeros(len(pairs[0]), np.uint64)
    load(body)["k"].launch(1, len(out), [*pairs, out])
    low, high = (compared(widen(a.T if turn else a), widen(b.T if turn else b)).ravel() for turn in (False, True))
    np.testing.assert_array_equal(out, low * 5 + high * 2)


@pytest.mark.parametrize(
    ("instruction", "sources"),
    [
        ("shfl.sync.bfly.b32 %r2|%p1, %r1, 5, 31, -1", lambda i: i ^ 5),
        ("shfl.sync.down.b32 %r2|%p1, %r1, 5, 31, -1", lambda i: np.where(i + 5 < 32, i + 5, i)),
        ("shfl.sync.up.b32 %r2|%p1, %r1, 5, 0, -1", lambda i: np.where(i >= 5, i - 5, i)),
        ("shfl.sync.idx.b32 %r2|%p1, %r1, 7, 31, -1", lambda i: np.full(32, 7)),
        ("shfl.sync.down.b32 %r2|%p1, %r1, 3, 6175, -1", lambda i: np.where(i % 8 + 3 < 8, i + 3, i)),
    ],
)
@pytest.mark.parametrize("order", ptx.ORDERS)
def test_shuffles(instruction, sources, order):
    body = f"mov.u32 %r3, %laneid; mul.lo.s32 %r1, %r3, 3; {instruction}; st.global.b32 [%d1], %r2;"
    out = np.zeros(64, np.uint64)
    load(body, parameters=1)["k"].launch(1, 64, [out], order=order, seed=1)
    np.testing.assert_array_equal(out, np.tile(3 * sources(np.arange(32)), 2))


def test_votes_and_atomics():
    body = """
    setp.lt.u32 %p1, %r39, 40; vote.sync.ballot.b32 %r1, %p1, -1; st.global.b32 [%d1], %r1;
    ld.param.u64 %d5, [p2]; atom.global.gpu.acq_rel.add.u32 %r2, [%d5], 2; st.global.b32 [%d3], %r2;"""
    ballots, total, old = np.zeros(64, np.uint64), np.zeros(64, np.uint64), np.zeros(64, np.uint64)
    load(body)["k"].launch(1, 64, [ballots, total, old], order="random", seed=3)
    assert set(ballots[:32]) == {0xFFFFFFFF}
    assert set(ballots[32:]) == {0xFF}
    assert total[0] == 128
    assert sorted(old) == list(range(0, 128, 2))


def test_parameters_of_every_kind_special_registers_and_local_memory():
    text = f"""{HEAD}
.visible .entry k(.param .u64 p0, .param .f32 p1, .param .align 8 .b8 p2[16], .param .s8 p3)
.maxntid 64, 1, 1
{{
.local .align 4 .b8 depot[16]; {REGISTERS}
ld.param.u64 %d1, [p0]; ld.param.f32 %f1, [p1]; ld.param.f64 %g1, [p2+8]; ld.param.s8 %h1, [p3];
mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x; mad.lo.s32 %r4, %r1, %r2, %r3;
mad.wide.u32 %d2, %r4, 8, %d1;
mov.u64 %d3, depot; cvta.local.u64 %d4, %d3; cvt.f64.f32 %g2, %f1; add.f64 %g3, %g1, %g2;
{{ .reg .b32 %r1; cvt.s32.s16 %r1, %h1; st.local.u32 [%d3+4], %r1; }}
ld.u32 %r5, [%d4+4]; add.s32 %r5, %r5, %r1; cvt.rn.f64.s32 %g4, %r5; add.f64 %g3, %g3, %g4; st.global.f64 [%d2], %g3;
ret;
}}"""
    out = np.zeros(96)
    run = ptx.load(text)["k"]
    struct = np.array([1e9, 0.25]).tobytes()
    run.launch(3, 32, [out, 1.5, struct, -7])
    np.testing.assert_array_equal(out, np.repeat([-5.25, -4.25, -3.25], 32))
    with pytest.raises(PtxError, match="allows 64 threads"):
        run.launch(3, 96, [out, 1.5, struct, -7])


def test_labels_of_blocks_in_braces_are_their_own():
    count = "{{ .reg .pred go; again: add.s32 %r1, %r1, 1; setp.lt.s32 go, %r1, {}; @go bra.uni again; @!go bra out; }}"
    body = f"mov.u32 %r1, 0; {count.format(5)} out: st.global.b32 [%d1], %r1; {count.format(9).replace('out', 'end')}"
    out = np.zeros(1, np.uint64)
    load(f"{body} end: st.global.b32 [%d1+4], %r1;", parameters=1)["k"].launch(1, 1, [out])
    np.testing.assert_array_equal(out.view(np.uint32), [5, 9])
