"""Code generation: a parsed kernel becomes one C++ function, a statement an instruction, gotos for branches."""

from __future__ import annotations

import re

from .instructions import find
from .matrices import Matrices, fragments
from .operands import INTEGER, NAME, c_name, c_type
from .parser import Instruction, Kernel, Label, bits, split
from .tensor_memory import TensorMemory

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


def source(kernel: Kernel) -> tuple[str, int]:
    """Return the C++ function of a kernel, and the bytes of shared memory that it declares."""
    generator = Generator(kernel)
    return generator.source(), generator.shared_bytes


class Generator(Matrices, TensorMemory):
    def __init__(self, kernel: Kernel):
        super().__init__(kernel)
        self.fragments = {name: touch for item in kernel.body for name, touch in fragments(item).items()}

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
        if self.fragments and not fragments(i):
            used = dict.fromkeys(x for text in i.operands for x in NAME.findall(text) if x in self.fragments)
            body = " ".join([*(f"{self.fragments[x]}(t, {i.line}, &{c_name(x)});" for x in used), body])
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

    # ---- instructions with structured operands, named in `instructions.STRUCTURED`

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
        literal = INTEGER.fullmatch(size)
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
