"""Code generation for instructions on matrices and their products."""

from __future__ import annotations

import re

from .operands import Operands
from .parser import Instruction, Label, split


class Matrices(Operands):
    def load_matrix(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 2)
        names = self.fragment(i, i.operands[0], match)
        transposed = "true" if match["trans"] else "false"
        call = f"load_matrix<{match['count']}, {transposed}>(t, {i.line}, {self.address(i, i.operands[1])}, v);"
        lines = [f"uint32_t v[{match['count']}]; {call}"]
        return " ".join(lines + [self.assign(i, name, "b32", f"v[{n}]") for n, name in enumerate(names)])

    def store_matrix(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 2)
        names = self.fragment(i, i.operands[1], match)
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
            lines.append(f"uint32_t *{name}[] = {{{self.places(i, registers)}}};")
        of_a = ("a", "0") if in_registers else ("nullptr", self.operand(i, a, "b64"))
        transposed = ["false", "false", *("true" if x == "1" else "false" for x in flags[2:])][-2:]
        fields = [
            *("true" if is_bf16 else "false", f"{n}", "d", *of_a, self.operand(i, b, "b64")),
            *(self.operand(i, accumulates, "pred"), str(int(flags[0]) * int(flags[1])), *transposed),
        ]
        lines.append(f"const Product product{{{', '.join(fields)}}}; start_product(t, {i.line}, product);")
        return " ".join(lines)


def fragments(item: Instruction | Label) -> dict[str, str]:
    """Return the registers that an asynchronous instruction holds until a wait, and the C++ that checks their use."""
    if isinstance(item, Instruction):
        if item.opcode.startswith("wgmma.mma_async"):
            return {x: "touch" for text in item.operands[:2] if text.startswith("{") for x in split(text[1:-1])}
        if item.opcode.startswith("tcgen05.ld."):
            return dict.fromkeys(split(item.operands[0].strip("{}")), "touch_loaded")
    return {}
