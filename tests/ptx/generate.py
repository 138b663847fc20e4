"""A parsed kernel -> C++: one function, a statement per instruction, gotos for branches."""

from __future__ import annotations

import re

from .instructions import find
from .parser import Instruction, Kernel, Label, Variable, bits, split

_FLOAT = re.compile(r"0[fF]([0-9A-Fa-f]{8})|0[dD]([0-9A-Fa-f]{16})")
_INTEGER = re.compile(r"(-?)(0[xX][0-9A-Fa-f]+|\d+)U?")
_NAME = re.compile(r"%?[A-Za-z_$][\w$]*")
_SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid)\.([xyz])")
_LANE = {"%laneid": "t.lane", "%warpid": "t.warp", "WARP_SZ": "32u"}
_ADDRESS = re.compile(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\d+))?\s*\]")
_SPACES = {None: "kGeneric", "global": "kGlobal", "shared": "kShared", "local": "kLocal"}
_ATOMS = {
    "min": "b < a ? b : a",
    "max": "a < b ? b : a",
    "and": "a & b",
    "or": "a | b",
    "xor": "a ^ b",
    "exch": "b",
    "cas": "a == b ? c : a",
}


def c_type(kind: str) -> str:
    """Return the C++ type of a PTX type."""
    known = {"pred": "bool", "f32": "float", "f64": "double", "bf16": "Bf16"}
    return known.get(kind) or f"{'int' if kind[0] == 's' else 'uint'}{bits(kind)}_t"


def c_name(name: str) -> str:
    """Return a C++ identifier for a name of PTX."""
    return "x_" + re.sub(r"\W", "_", name.replace("$", "_d_"))


def layout(kernel: Kernel) -> tuple[dict[str, int], int]:
    """Return the parameters' offsets and their size in all."""
    offsets, end = {}, 0
    for parameter in kernel.parameters:
        assert parameter.size is not None
        end = -(-end // parameter.align) * parameter.align
        offsets[parameter.name] = end
        end += parameter.size
    return offsets, end


def source(kernel: Kernel) -> tuple[str, int]:
    """Return the C++ function of a kernel, and the bytes of shared memory that it declares."""
    generator = Generator(kernel)
    return generator.source(), generator.shared_bytes


class Generator:
    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.offsets, self.parameter_bytes = layout(kernel)
        self.shared, self.shared_bytes = _place(kernel.shared)
        self.local, self.local_bytes = _place(kernel.local)
        self.fragments = {name for item in kernel.body for name in _fragments(item)}
        self.labels = {item.name for item in kernel.body if isinstance(item, Label)}

    def source(self) -> str:
        lines = [f'extern "C" void {c_name(self.kernel.name)}(Thread &t) {{']
        for name, kind in self.kernel.registers.items():
            poison = "false" if kind == "pred" else f"{c_type('b' + str(bits(kind)))}(0xA5A5A5A5A5A5A5A5ull)"
            lines.append(f"auto {c_name(name)} = {poison};")
        if self.local_bytes:
            lines.append(f"alignas(16) uint8_t local[{self.local_bytes}];")
            lines.append(f"t.local = local, t.local_bytes = {self.local_bytes};")
        for item in self.kernel.body:
            lines.append(f"{c_name(item.name)}:;" if isinstance(item, Label) else self._instruction(item))
        return "\n".join([*lines, "}"])

    def _instruction(self, i: Instruction) -> str:
        found = find(i.opcode)
        if found is None:
            raise i.error(f"unknown instruction {i.opcode}")
        form, match, value = found
        body = getattr(self, form)(i, match) if value is None else self._value(i, form, match, value)
        if self.fragments and not _fragments(i):
            used = dict.fromkeys(x for text in i.operands for x in _NAME.findall(text) if x in self.fragments)
            body = " ".join([*(f"touch(t, {i.line}, &{c_name(x)});" for x in used), body])
        if i.guard is None:
            return f"{{ {body} }}"
        return f"if ({'!' * i.negated}{self.register(i, i.guard)}) {{ {body} }}"

    def _value(self, i: Instruction, signature: str, match: re.Match[str], value: str) -> str:
        groups = match.groupdict()

        def kind(name: str) -> str:
            if name == "wide":
                return f"{groups['t'][0]}{2 * bits(groups['t'])}"
            return groups.get(name, name).split(".")[0]

        result, _, sources = signature.partition(" = ")
        kinds = [kind(name) for name in sources.split()]
        self.expect(i, 1 + len(kinds))
        flush = "flush" if groups.get("ftz") else ""
        inputs = [
            f"const {c_type(k)} {letter} = {flush if k in ('f32', 'f64') else ''}({self.operand(i, operand, k)});"
            for letter, operand, k in zip("abcd", i.operands[1:], kinds, strict=False)
        ]
        target = c_type(kind(result))
        if flush and kind(result) not in ("f32", "f64"):
            flush = ""
        output = self.assign(i, i.operands[0], kind(result), f"{flush}(Result({value}))")
        return " ".join([f"using Result = {target};", *inputs, output])

    # ---- operands

    def expect(self, i: Instruction, *counts: int) -> None:
        if len(i.operands) not in counts:
            raise i.error(f"{i.opcode} with {len(i.operands)} operands")

    def register(self, i: Instruction, name: str) -> str:
        if name not in self.kernel.registers:
            raise i.error(f"unknown register {name}")
        return c_name(name)

    def operand(self, i: Instruction, text: str, kind: str) -> str:
        """Return the C++ of a source as a value of a PTX type."""
        c = c_type(kind)
        if text.startswith("!") and kind == "pred":
            return f"!{self.register(i, text[1:])}"
        if text in self.kernel.registers:
            if (kind == "pred") != (self.kernel.registers[text] == "pred"):
                raise i.error(f"{text} as {kind}")
            if bits(self.kernel.registers[text]) < bits(kind):
                raise i.error(f"{text} is narrower than {kind}")
            return f"get<{c}>({c_name(text)})"
        if literal := _FLOAT.fullmatch(text):
            single, double = literal.groups()
            if bits(kind) != (32 if single else 64):
                raise i.error(f"{text} as {kind}")
            return f"reinterpret<{c}>({f'uint32_t(0x{single}u)' if single else f'uint64_t(0x{double}ull)'})"
        if literal := _INTEGER.fullmatch(text):
            number = -int(literal[2], 0) if literal[1] else int(literal[2], 0)
            if kind == "pred":
                return "true" if number else "false"
            if kind[0] == "f" or kind == "bf16":
                raise i.error(f"the integer {text} as {kind}")
            return f"{c}(0x{number & (2**64 - 1):x}ull)"
        if special := _SPECIAL.fullmatch(text):
            return f"{c}(t.{special[1]}.{special[2]})"
        if text in _LANE:
            return f"{c}({_LANE[text]})"
        for places in (self.shared, self.local, self.offsets):
            if text in places:
                return f"{c}({places[text]}ull)"
        raise i.error(f"unknown operand {text}")

    def assign(self, i: Instruction, register: str, kind: str, value: str) -> str:
        """Return the C++ that sets a register."""
        name = self.register(i, register)
        if bits(self.kernel.registers[register]) < bits(kind):
            raise i.error(f"{register} is narrower than {kind}")
        return f"set<{c_type(kind)}>({name}, {value});"

    def address(self, i: Instruction, text: str) -> str:
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise i.error(f"not an address: {text}")
        base, offset = match[1], int(match[2] or 0)
        register = self.kernel.registers.get(base)
        kind = "u64" if register is None or bits(register) == 64 else "u32"
        return f"uint64_t({self.operand(i, base, kind)} + ({offset}ll))"

    def elements(self, i: Instruction, text: str, match: re.Match[str]) -> list[str]:
        names = split(text[1:-1]) if text.startswith("{") else (text,)
        if len(names) != int(match["vector"] or 1):
            raise i.error(f"{len(names)} elements")
        return list(names)

    # ---- instructions whose operands are not plain values, by their names in `instructions.STRUCTURED`

    def move(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 2)
        target, value = i.operands
        kind = match["t"]
        if value.startswith("{"):
            parts = split(value[1:-1])
            width = bits(kind) // len(parts)
            terms = (f"uint64_t({self.operand(i, part, f'b{width}')}) << {n * width}" for n, part in enumerate(parts))
            return self.assign(i, target, f"b{bits(kind)}", " | ".join(terms))
        if target.startswith("{"):
            parts = split(target[1:-1])
            width = bits(kind) // len(parts)
            whole = f"const uint64_t whole = {self.operand(i, value, f'b{bits(kind)}')};"
            pieces = [
                self.assign(i, part, f"b{width}", f"uint{width}_t(whole >> {n * width})")
                for n, part in enumerate(parts)
                if part != "_"
            ]
            return " ".join([whole, *pieces])
        return self.assign(i, target, kind, self.operand(i, value, kind))

    def compare_halves(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 3)
        targets = i.operands[0].split("|")
        if len(targets) != 2:
            raise i.error("a comparison of pairs has a predicate for each half")
        test = f"{'unordered(a, b) ||' if match['unordered'] else '!unordered(a, b) &&'} {match['compare']}(a, b)"
        lines = []
        for n, target in enumerate(targets):
            halves = (
                f"const Bf16 {letter} = reinterpret<Bf16>({self.operand(i, x, 'b32')} >> {16 * n});"
                for letter, x in zip("ab", i.operands[1:], strict=True)
            )
            lines.append(f"{{ {' '.join(halves)} {self.assign(i, target.strip(), 'pred', test)} }}")
        return " ".join(lines)

    def load_parameter(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 2)
        kind, lines = match["t"], []
        size = bits(kind) // 8
        for n, name in enumerate(self.elements(i, i.operands[0], match)):
            place = f"{self.address(i, i.operands[1])} + {n * size}"
            value = f"load_parameter<{c_type(kind)}>(t, {i.line}, {place}, {size})"
            lines.append(self.assign(i, name, kind, value))
        return " ".join(lines)

    def load(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 2)
        kind = match["t"]
        names = self.elements(i, i.operands[0], match)
        where = f"Space::{_SPACES[match['space']]}, {self.address(i, i.operands[1])}"
        lines = [f"{c_type(kind)} v[{len(names)}]; load(t, {i.line}, {where}, v, sizeof v);"]
        return " ".join(lines + [self.assign(i, name, kind, f"v[{n}]") for n, name in enumerate(names)])

    def store(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 2)
        kind = match["t"]
        names = self.elements(i, i.operands[1], match)
        where = f"Space::{_SPACES[match['space']]}, {self.address(i, i.operands[0])}"
        values = ", ".join(self.operand(i, name, kind) for name in names)
        return f"const {c_type(kind)} v[] = {{{values}}}; store(t, {i.line}, {where}, v, sizeof v);"

    def atomic(self, i: Instruction, match: re.Match[str]) -> str:
        returns = i.opcode.startswith("atom")
        kind, op = match["t"], match["op"]
        self.expect(i, returns + 2 + (op == "cas"))
        place, *values = i.operands[returns:]
        c = c_type(kind)
        inputs = [f"const {c} {letter} = {self.operand(i, x, kind)};" for letter, x in zip("bc", values, strict=False)]
        where = f"Space::{_SPACES[match['space']]}, {self.address(i, place)}"
        result = ("a + b" if kind[0] == "f" else "add(a, b)") if op == "add" else _ATOMS[op]
        lines = [
            *inputs,
            f"{c} a; update(t, {i.line}, {where}, a, [&] {{ return {c}({result}); }});",
        ]
        return " ".join(lines + ([self.assign(i, i.operands[0], kind, "a")] if returns else []))

    def copy(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 3, 4)
        to, source, size, *present = i.operands
        literal = _INTEGER.fullmatch(size)
        if literal is None or int(literal[2], 0) not in ((16,) if match["cache"] == "cg" else (4, 8, 16)):
            raise i.error(f"a copy of {size} bytes")
        sizes = (self.operand(i, x, "u32") for x in (size, *(present or [size])))
        addresses = (self.address(i, x) for x in (to, source))
        return f"start_copy(t, {i.line}, {', '.join((*addresses, *sizes))});"

    def commit_copies(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 0)
        return "commit_copies(t);"

    def wait_for_copies(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 1)
        return f"wait_for_copies(t, {i.line}, {self.operand(i, i.operands[0], 'u32')});"

    def wait_for_all_copies(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 0)
        return f"commit_copies(t); wait_for_copies(t, {i.line}, 0);"

    def branch(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 1)
        if i.operands[0] not in self.labels:
            raise i.error(f"unknown label {i.operands[0]}")
        return f"count_branch(t, {i.line}); goto {c_name(i.operands[0])};"

    def leave(self, i: Instruction, match: re.Match[str]) -> str:
        return "return;"

    def trap(self, i: Instruction, match: re.Match[str]) -> str:
        return f'fail(t, {i.line}, "trap");'

    def barrier(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 1)
        return f"barrier(t, {i.line}, {self.operand(i, i.operands[0], 'u32')});"

    def warp_barrier(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 1)
        return f"exchange(t, {i.line}, {self.operand(i, i.operands[0], 'u32')}, true);"

    def nothing(self, i: Instruction, match: re.Match[str]) -> str:
        return ""

    def shuffle(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 5)
        target, _, predicate = i.operands[0].partition("|")
        arguments = ", ".join(self.operand(i, x, "u32") for x in i.operands[1:])
        call = f"shuffle(t, {i.line}, Shuffle::{match['mode']}, {arguments}, in_range)"
        lines = ["bool in_range;", self.assign(i, target.strip(), "b32", call)]
        return " ".join(lines + ([self.assign(i, predicate.strip(), "pred", "in_range")] if predicate else []))

    def vote(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 3)
        value, mask = self.operand(i, i.operands[1], "pred"), self.operand(i, i.operands[2], "u32")
        mode = match["mode"]
        asked = f"!{value}" if mode == "all" else value
        call = f"ballot(t, {i.line}, {asked}, {mask})"
        result = {"all": f"{call} == 0", "any": f"{call} != 0", "ballot": call}[mode]
        return self.assign(i, i.operands[0], "b32" if mode == "ballot" else "pred", result)

    def load_matrix(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 2)
        names = split(i.operands[0].strip("{}"))
        if len(names) != int(match["count"]):
            raise i.error(f"{len(names)} elements")
        transposed = "true" if match["trans"] else "false"
        call = f"load_matrix<{match['count']}, {transposed}>(t, {i.line}, {self.address(i, i.operands[1])}, v);"
        lines = [f"uint32_t v[{match['count']}]; {call}"]
        return " ".join(lines + [self.assign(i, name, "b32", f"v[{n}]") for n, name in enumerate(names)])

    def store_matrix(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 2)
        names = split(i.operands[1].strip("{}"))
        if len(names) != int(match["count"]):
            raise i.error(f"{len(names)} elements")
        values = ", ".join(self.operand(i, name, "b32") for name in names)
        transposed = "true" if match["trans"] else "false"
        call = f"store_matrix<{match['count']}, {transposed}>(t, {i.line}, {self.address(i, i.operands[0])}, v);"
        return f"const uint32_t v[] = {{{values}}}; {call}"

    def matrix_multiply(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 4)
        if (match["t"], match["k"]) not in (("tf32", "8"), ("bf16", "16")):
            raise i.error(f"unknown instruction {i.opcode}")
        d, a, b, c = (split(x.strip("{}")) for x in i.operands)
        if [len(x) for x in (d, a, b, c)] != [4, 4, 2, 4]:
            raise i.error("fragments of another size")
        lines = [
            f"const {kind} {name}[] = {{{', '.join(self.operand(i, x, of) for x in names)}}};"
            for name, kind, of, names in (
                ("a", "uint32_t", "b32", a),
                ("b", "uint32_t", "b32", b),
                ("c", "float", "f32", c),
            )
        ]
        operand = "Bf16" if match["t"] == "bf16" else "float"
        lines.append(f"float d[4]; multiply_matrices<{operand}>(t, {i.line}, a, b, c, d);")
        return " ".join(lines + [self.assign(i, name, "f32", f"d[{n}]") for n, name in enumerate(d)])

    def fence_products(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 0)
        return f"fence_products(t, {i.line});"

    def commit_products(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 0)
        return f"commit_products(t, {i.line});"

    def wait_for_products(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 1)
        return f"wait_for_products(t, {i.line}, {self.operand(i, i.operands[0], 'u32')});"

    def fence_proxy(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 0)
        return "fence_proxy(t);"

    def multiply_asynchronously(self, i: Instruction, match: re.Match[str]) -> str:
        n, is_bf16 = int(match["n"]), match["t"] == "bf16"
        if match["k"] != ("16" if is_bf16 else "8") or n % 8 or not 8 <= n <= 256:
            raise i.error(f"unknown instruction {i.opcode}")
        in_registers = len(i.operands) > 1 and i.operands[1].startswith("{")
        layouts = (1 if in_registers else 2) if is_bf16 else 0
        self.expect(i, 6 + layouts)
        d, a, b, accumulates, *flags = i.operands
        fragments = {"d": split(d.strip("{}"))} | ({"a": split(a.strip("{}"))} if in_registers else {})
        if len(fragments["d"]) != n // 2 or len(fragments.get("a", "four")) != 4:
            raise i.error("fragments of another size")
        if any(x not in ("1", "-1") for x in flags[:2]) or any(x not in ("0", "1") for x in flags[2:]):
            raise i.error("other signs or layouts than there are")
        lines = []
        for name, registers in fragments.items():
            if any(bits(self.kernel.registers.get(x, "b64")) != 32 for x in registers):
                raise i.error("fragments that are not registers of 32 bits")
            lines.append(f"uint32_t *{name}[] = {{{', '.join(f'&{self.register(i, x)}' for x in registers)}}};")
        of_a = ("a", "0") if in_registers else ("nullptr", self.operand(i, a, "b64"))
        transposed = ["false", "false", *("true" if x == "1" else "false" for x in flags[2:])][-2:]
        fields = [
            *("true" if is_bf16 else "false", f"{n}", "d", *of_a, self.operand(i, b, "b64")),
            *(self.operand(i, accumulates, "pred"), str(int(flags[0]) * int(flags[1])), *transposed),
        ]
        lines.append(f"const Product product{{{', '.join(fields)}}}; start_product(t, {i.line}, product);")
        return " ".join(lines)


def _fragments(item: Instruction | Label) -> tuple[str, ...]:
    """Return the registers of the matrices that an asynchronous product has in registers."""
    if isinstance(item, Label) or not item.opcode.startswith("wgmma.mma_async"):
        return ()
    return tuple(x for text in item.operands[:2] if text.startswith("{") for x in split(text[1:-1]))


def _place(variables: list[Variable]) -> tuple[dict[str, int], int]:
    """Return offsets and total; arrays whose size the launch says lie behind all others."""
    offsets, end = {}, 0
    for variable in sorted(variables, key=lambda v: v.size is None):
        end = -(-end // variable.align) * variable.align
        offsets[variable.name] = end
        end += variable.size or 0
    return offsets, end
