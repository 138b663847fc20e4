"""Table of instructions: the whole opcode, its operands' types, its value as a C++ expression.

A row of `VALUES` is (pattern of the opcode, signature, expression). The signature is "result = sources"; each is a
PTX type or the name of a group in the pattern; `wide` is twice as wide as the group `t`. The expression takes the
sources as `a`, `b`, `c`, `d`, and may call functions of `runtime.h`. A pattern matches whole opcodes only, so that a
modifier that no row has is an error. A group `ftz` flushes subnormal sources and results.

A row of `STRUCTURED` is (pattern, name of the method of `generate.Generator` that writes it).
"""

from __future__ import annotations

import re

INT = r"(?P<t>[su](?:16|32|64))"
BITS = r"(?P<t>b(?:16|32|64))"
FLOAT = r"(?P<t>f32|f64)"
COMPARED = r"(?P<t>f32|f64|(?<!ftz\.)bf16)"
ANY = r"(?P<t>[bsu](?:8|16|32|64)|f32|f64)"
FTZ = r"(?P<ftz>\.ftz)?"
TO_INT = r"(?P<t>[su](?:8|16|32|64))"
FROM_INT = r"(?P<s>[su](?:8|16|32|64))"
ROUND = {"rni": "std::nearbyint", "rzi": "std::trunc", "rmi": "std::floor", "rpi": "std::ceil"}
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
UNSIGNED_COMPARE = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}

_values = [
    # integers
    (rf"add\.{INT}", "t = t t", "add(a, b)"),
    (rf"sub\.{INT}", "t = t t", "subtract(a, b)"),
    (rf"mul\.lo\.{INT}", "t = t t", "multiply(a, b)"),
    (rf"mad\.lo\.{INT}", "t = t t t", "add(multiply(a, b), c)"),
    (rf"mul\.hi\.{INT}", "t = t t", "multiply_high(a, b)"),
    (rf"mad\.hi\.{INT}", "t = t t t", "add(multiply_high(a, b), c)"),
    (r"mul\.wide\.(?P<t>[su](?:16|32))", "wide = t t", "multiply<Result>(a, b)"),
    (r"mad\.wide\.(?P<t>[su](?:16|32))", "wide = t t wide", "add(multiply<Result>(a, b), c)"),
    (rf"div\.{INT}", "t = t t", "divide(a, b)"),
    (rf"rem\.{INT}", "t = t t", "remainder(a, b)"),
    (r"neg\.(?P<t>s(?:16|32|64))", "t = t", "subtract(Result(0), a)"),
    (r"abs\.(?P<t>s(?:16|32|64))", "t = t", "a < 0 ? subtract(Result(0), a) : a"),
    (rf"min\.{INT}", "t = t t", "b < a ? b : a"),
    (rf"max\.{INT}", "t = t t", "a < b ? b : a"),
    (rf"and\.{BITS}", "t = t t", "a & b"),
    (rf"or\.{BITS}", "t = t t", "a | b"),
    (rf"xor\.{BITS}", "t = t t", "a ^ b"),
    (rf"not\.{BITS}", "t = t", "~a"),
    (r"add\.[su]16x2", "b32 = b32 b32", "((a & 0xFFFF0000u) + (b & 0xFFFF0000u)) | (a + b & 0xFFFFu)"),
    (r"and\.pred", "pred = pred pred", "a && b"),
    (r"or\.pred", "pred = pred pred", "a || b"),
    (r"xor\.pred", "pred = pred pred", "a != b"),
    (r"not\.pred", "pred = pred", "!a"),
    (rf"shl\.{BITS}", "t = t u32", "shift_left(a, b)"),
    (r"shr\.(?P<t>[bsu](?:16|32|64))", "t = t u32", "shift_right(a, b)"),
    (r"shf\.l\.wrap\.b32", "u32 = u32 u32 u32", "funnel(a, b) << (c & 31) >> 32"),
    (r"shf\.r\.wrap\.b32", "u32 = u32 u32 u32", "funnel(a, b) >> (c & 31)"),
    (r"bfe\.(?P<t>[su](?:32|64))", "t = t u32 u32", "extract_bits(a, b, c)"),
    (r"bfi\.(?P<t>b32|b64)", "t = t t u32 u32", "insert_bits(a, b, c, d)"),
    (r"lop3\.b32", "b32 = b32 b32 b32 u32", "lookup3(a, b, c, d)"),
    (r"prmt\.b32", "b32 = b32 b32 b32", "permute_bytes(a, b, c)"),
    (r"popc\.b32", "u32 = b32", "__builtin_popcount(a)"),
    (r"popc\.b64", "u32 = b64", "__builtin_popcountll(a)"),
    (r"clz\.b32", "u32 = b32", "a ? __builtin_clz(a) : 32"),
    (r"clz\.b64", "u32 = b64", "a ? __builtin_clzll(a) : 64"),
    (rf"selp\.{ANY}", "t = t t pred", "c ? a : b"),
    # floating point
    (rf"add(?:\.rn)?{FTZ}\.{FLOAT}", "t = t t", "a + b"),
    (rf"sub(?:\.rn)?{FTZ}\.{FLOAT}", "t = t t", "a - b"),
    (rf"mul(?:\.rn)?{FTZ}\.{FLOAT}", "t = t t", "a * b"),
    (rf"fma\.rn{FTZ}\.{FLOAT}", "t = t t t", "std::fma(a, b, c)"),
    (r"add\.rn\.f32\.bf16", "f32 = bf16 f32", "a + b"),
    (r"add(?:\.rn)?\.bf16", "bf16 = bf16 bf16", "add_bf16(a, b)"),
    (r"fma\.rn\.bf16", "bf16 = bf16 bf16 bf16", "fma_bf16(a, b, c)"),
    (r"add(?:\.rn)?\.bf16x2", "b32 = b32 b32", "by_halves<Bf16>(add_bf16, a, b)"),
    (r"fma\.rn\.bf16x2", "b32 = b32 b32 b32", "by_halves<Bf16>(fma_bf16, a, b, c)"),
    (r"add(?:\.rn)?\.f32x2", "b64 = b64 b64", "by_halves<float>(std::plus<float>(), a, b)"),
    (r"sub(?:\.rn)?\.f32x2", "b64 = b64 b64", "by_halves<float>(std::minus<float>(), a, b)"),
    (r"mul(?:\.rn)?\.f32x2", "b64 = b64 b64", "by_halves<float>(std::multiplies<float>(), a, b)"),
    (r"fma\.rn\.f32x2", "b64 = b64 b64 b64", "by_halves<float>(fmaf, a, b, c)"),
    (rf"div\.(?:rn|full|approx){FTZ}\.f32", "f32 = f32 f32", "a / b"),
    (r"div\.rn\.f64", "f64 = f64 f64", "a / b"),
    (rf"rcp\.(?:rn|approx){FTZ}\.f32", "f32 = f32", "1 / a"),
    (r"rcp\.rn\.f64", "f64 = f64", "1 / a"),
    (rf"sqrt\.(?:rn|approx){FTZ}\.f32", "f32 = f32", "std::sqrt(a)"),
    (r"sqrt\.rn\.f64", "f64 = f64", "std::sqrt(a)"),
    (rf"rsqrt\.approx{FTZ}\.f32", "f32 = f32", "1 / std::sqrt(double(a))"),
    (rf"ex2\.approx{FTZ}\.f32", "f32 = f32", "std::exp2(double(a))"),
    (rf"lg2\.approx{FTZ}\.f32", "f32 = f32", "std::log2(double(a))"),
    (r"tanh\.approx\.f32", "f32 = f32", "std::tanh(double(a))"),
    (rf"min{FTZ}\.{FLOAT}", "t = t t", "minimum(a, b)"),
    (rf"max{FTZ}\.{FLOAT}", "t = t t", "maximum(a, b)"),
    (rf"min{FTZ}\.NaN\.f32", "f32 = f32 f32", "unordered(a, b) ? NAN : minimum(a, b)"),
    (rf"max{FTZ}\.NaN\.f32", "f32 = f32 f32", "unordered(a, b) ? NAN : maximum(a, b)"),
    (rf"neg{FTZ}\.{FLOAT}", "t = t", "-a"),
    (rf"abs{FTZ}\.{FLOAT}", "t = t", "std::fabs(a)"),
    (rf"copysign\.{FLOAT}", "t = t t", "std::copysign(b, a)"),
    # conversions
    (rf"cvt\.{TO_INT}\.{FROM_INT}", "t = s", "a"),
    (rf"cvt\.rn\.{FLOAT}\.{FROM_INT}", "t = s", "a"),
    (rf"cvt{FTZ}\.f64\.f32", "f64 = f32", "a"),
    (rf"cvt\.rn{FTZ}\.f32\.f64", "f32 = f64", "a"),
    (r"cvt\.(?P<t>f32|f64)\.bf16", "t = bf16", "a"),
    (r"cvt\.rn\.bf16\.f32", "bf16 = f32", "round_bf16(a)"),
    (r"cvt\.rn\.bf16x2\.f32", "b32 = f32 f32", "uint32_t(round_bf16(a).bits) << 16 | round_bf16(b).bits"),
    (r"cvt\.rna\.tf32\.f32", "b32 = b32", "round_tf32(a)"),
    # memory spaces: `generic` and its inverse are in the runtime's table of windows
    (r"cvta(?:\.to)?\.(?:global|const)\.(?P<t>u64)", "t = t", "a"),
    (r"cvta\.shared\.u64", "u64 = u64", "a + kSharedWindow"),
    (r"cvta\.to\.shared\.u64", "u64 = u64", "a - kSharedWindow"),
    (r"cvta\.local\.u64", "u64 = u64", "a + kLocalWindow"),
    (r"cvta\.to\.local\.u64", "u64 = u64", "a - kLocalWindow"),
]
_values += [
    (rf"cvt\.{mode}{FTZ}\.{TO_INT}\.(?P<s>f32|f64)", "t = s", f"saturate<Result>({function}(a))")
    for mode, function in ROUND.items()
]
_values += [
    (rf"cvt\.{mode}{FTZ}\.(?P<t>f32\.f32|f64\.f64)", "t = t", f"{function}(a)") for mode, function in ROUND.items()
]
for _name in COMPARE:
    _values += [
        (rf"setp\.{_name}\.(?P<t>[bsu](?:16|32|64))", "pred = t t", f"{_name}(a, b)"),
        (rf"setp\.{_name}{FTZ}\.{COMPARED}", "pred = t t", f"!unordered(a, b) && {_name}(a, b)"),
        (rf"setp\.{_name}u{FTZ}\.{COMPARED}", "pred = t t", f"unordered(a, b) || {_name}(a, b)"),
        (rf"setp\.{_name}\.and\.(?P<t>[bsu](?:16|32|64))", "pred = t t pred", f"{_name}(a, b) && c"),
        (rf"setp\.{_name}\.or\.(?P<t>[bsu](?:16|32|64))", "pred = t t pred", f"{_name}(a, b) || c"),
        (rf"setp\.{_name}\.and{FTZ}\.{COMPARED}", "pred = t t pred", f"!unordered(a, b) && {_name}(a, b) && c"),
        (rf"setp\.{_name}\.or{FTZ}\.{COMPARED}", "pred = t t pred", f"(!unordered(a, b) && {_name}(a, b)) || c"),
    ]
_values += [
    (rf"setp\.{name}\.(?P<t>u(?:16|32|64))", "pred = t t", f"{function}(a, b)")
    for name, function in UNSIGNED_COMPARE.items()
]
_values += [
    (rf"setp\.nan{FTZ}\.{COMPARED}", "pred = t t", "unordered(a, b)"),
    (rf"setp\.num{FTZ}\.{COMPARED}", "pred = t t", "!unordered(a, b)"),
]

VALUES = [(re.compile(pattern), signature, value) for pattern, signature, value in _values]

_ORDER = r"(?:\.(?:weak|volatile|(?:relaxed|acquire|release|acq_rel)(?:\.(?:cta|gpu|sys))?))?"
_L2 = r"(?:\.L2::(?:64|128|256)B)?"
_CACHE = rf"(?:\.nc)?(?:\.(?:ca|cg|cs|lu|cv|wb|wt))?(?:\.L1::\w+)?{_L2}"
_SPACE = r"(?:\.(?P<space>global|shared|local)(?:::cta)?)?"
_VECTOR = r"(?:\.v(?P<vector>[248]))?"
_ATOMIC = r"(?P<op>add|min|max|exch|and|or|xor|cas)"
_CELLS = r"x(?P<count>1|2|4|8|16|32|64|128)"
_SCOPED = r"(?:\.(?:cta|gpu|sys))?(?:\.(?:relaxed|acquire|release|acq_rel))?"

STRUCTURED = [
    (re.compile(pattern), method)
    for pattern, method in [
        (r"setp\.(?P<compare>eq|ne|lt|le|gt|ge)(?P<unordered>u?)\.bf16x2", "compare_halves"),
        (r"mov\.(?P<t>pred|[bsu](?:16|32|64)|f32|f64)", "move"),
        (rf"ld\.param{_VECTOR}\.{ANY}", "load_parameter"),
        (rf"ld{_ORDER}{_SPACE}{_CACHE}{_VECTOR}\.{ANY}", "load"),
        (rf"st{_ORDER}{_SPACE}{_CACHE}{_VECTOR}\.{ANY}", "store"),
        (rf"(?:atom|red){_ORDER}(?:\.(?P<space>global|shared))?{_SCOPED}\.{_ATOMIC}\.{ANY}", "atomic"),
        (rf"cp\.async\.(?P<cache>ca|cg)\.shared(?:::cta)?\.global{_L2}", "copy"),
        (r"cp\.async\.commit_group", "commit_copies"),
        (r"cp\.async\.wait_group", "wait_for_copies"),
        (r"cp\.async\.wait_all", "wait_for_all_copies"),
        (r"bra(?:\.uni)?", "branch"),
        (r"ret(?:\.uni)?|exit", "leave"),
        (r"trap", "trap"),
        (r"(?:bar|barrier)(?:\.cta)?\.sync(?:\.aligned)?", "barrier"),
        (r"bar\.warp\.sync", "warp_barrier"),
        (r"membar\.(?:cta|gl|sys)|fence(?:\.(?:sc|acq_rel))?\.(?:cta|gpu|sys)", "nothing"),  # one thread runs at a time
        (r"shfl\.sync\.(?P<mode>up|down|bfly|idx)\.b32", "shuffle"),
        (r"vote\.sync\.(?P<mode>all|any|ballot)\.(?:pred|b32)", "vote"),
        (r"ldmatrix\.sync\.aligned\.m8n8\.x(?P<count>[124])(?P<trans>\.trans)?\.shared\.b16", "load_matrix"),
        (r"stmatrix\.sync\.aligned\.m8n8\.x(?P<count>[124])(?P<trans>\.trans)?\.shared\.b16", "store_matrix"),
        (r"mma\.sync\.aligned\.m16n8k(?P<k>8|16)\.row\.col\.f32\.(?P<t>tf32|bf16)\.(?P=t)\.f32", "matrix_multiply"),
        (r"wgmma\.fence\.sync\.aligned", "fence_products"),
        (
            r"wgmma\.mma_async\.sync\.aligned\.m64n(?P<n>\d+)k(?P<k>8|16)\.f32\.(?P<t>tf32|bf16)\.(?P=t)",
            "multiply_asynchronously",
        ),
        (r"wgmma\.commit_group\.sync\.aligned", "commit_products"),
        (r"wgmma\.wait_group\.sync\.aligned", "wait_for_products"),
        (r"fence\.proxy\.async(?:\.shared::(?:cta|cluster))?", "fence_proxy"),
        (r"elect\.sync", "elect"),
        (r"mbarrier\.init\.shared::cta\.b64", "start_mbarrier"),
        (r"mbarrier\.inval\.shared::cta\.b64", "end_mbarrier"),
        (r"mbarrier\.try_wait\.parity\.shared::cta\.b64", "try_wait"),
        (r"tcgen05\.alloc\.cta_group::1\.sync\.aligned\.shared::cta\.b32", "allocate_columns"),
        (r"tcgen05\.dealloc\.cta_group::1\.sync\.aligned\.b32", "return_columns"),
        (r"tcgen05\.relinquish_alloc_permit\.cta_group::1\.sync\.aligned", "end_allocations"),
        (rf"tcgen05\.ld\.sync\.aligned\.16x32bx2\.{_CELLS}\.b32", "load_cells"),
        (rf"tcgen05\.st\.sync\.aligned\.16x32bx2\.{_CELLS}\.b32", "store_cells"),
        (r"tcgen05\.wait::(?P<what>ld|st)\.sync\.aligned", "wait_for_cells"),
        (r"tcgen05\.mma\.cta_group::1\.kind::(?P<kind>f16|tf32)", "multiply_in_tensor_memory"),
        (
            r"tcgen05\.commit\.cta_group::1\.mbarrier::arrive::one\.shared::cluster\.b64",
            "commit_tensor_products",
        ),
    ]
]


def find(opcode: str) -> tuple[str, re.Match[str], str | None] | None:
    """Return (signature or method, match, expression or None) of an opcode, or None for an unknown one."""
    for pattern, signature, value in VALUES:
        if match := pattern.fullmatch(opcode):
            return signature, match, value
    for pattern, method in STRUCTURED:
        if match := pattern.fullmatch(opcode):
            return method, match, None
    return None
