"""Code generation for tensor memory (tcgen05) and mbarriers."""

from __future__ import annotations

import re

from .operands import Operands
from .parser import Instruction


class TensorMemory(Operands):
    def elect(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 2)
        lane, _, predicate = (x.strip() for x in i.operands[0].partition("|"))
        lines = [f"const uint32_t lane = elect(t, {i.line}, {self.operand(i, i.operands[1], 'u32')});"]
        lines.append(self.assign(i, predicate, "pred", "lane == t.lane"))
        return " ".join(lines + ([self.assign(i, lane, "b32", "lane")] if lane != "_" else []))

    def start_mbarrier(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 2)
        address, count = self.address(i, i.operands[0]), self.operand(i, i.operands[1], "u32")
        return f"start_mbarrier(t, {i.line}, {address}, {count});"

    def end_mbarrier(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 1)
        return f"end_mbarrier(t, {i.line}, {self.address(i, i.operands[0])});"

    def try_wait(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 3)
        address, parity = self.address(i, i.operands[1]), self.operand(i, i.operands[2], "u32")
        return self.assign(i, i.operands[0], "pred", f"try_wait(t, {i.line}, {address}, {parity})")

    def allocate_columns(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 2)
        to, columns = self.address(i, i.operands[0]), self.operand(i, i.operands[1], "u32")
        return f"allocate_columns(t, {i.line}, {to}, {columns});"

    def return_columns(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 2)
        return f"return_columns(t, {i.line}, {', '.join(self.operand(i, x, 'u32') for x in i.operands)});"

    def end_allocations(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 0)
        return f"end_allocations(t, {i.line});"

    def load_cells(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 3)
        names = self.fragment(i, i.operands[0], match)
        where = f"{self.address(i, i.operands[1])}, {self.operand(i, i.operands[2], 'u32')}"
        return (
            f"uint32_t *const to[] = {{{self.places(i, names)}}}; load_cells(t, {i.line}, {where}, to, {len(names)});"
        )

    def store_cells(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 3)
        names = self.fragment(i, i.operands[2], match)
        where = f"{self.address(i, i.operands[0])}, {self.operand(i, i.operands[1], 'u32')}"
        values = ", ".join(self.operand(i, x, "b32") for x in names)
        return f"const uint32_t v[] = {{{values}}}; store_cells(t, {i.line}, {where}, v, {len(names)});"

    def wait_for_cells(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 0)
        return f"wait_for_{'loads' if match['what'] == 'ld' else 'stores'}(t, {i.line});"

    def multiply_in_tensor_memory(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 5)
        d, a, b, descriptor, accumulates = i.operands
        in_tensor_memory = a.startswith("[")
        fields = [
            "true" if match["kind"] == "f16" else "false",
            "true" if in_tensor_memory else "false",
            f"uint32_t({self.address(i, d)})",
            self.address(i, a) if in_tensor_memory else self.operand(i, a, "b64"),
            self.operand(i, b, "b64"),
            self.operand(i, descriptor, "b32"),
            self.operand(i, accumulates, "pred"),
        ]
        return f"start_tensor_product(t, {i.line}, {{{', '.join(fields)}}});"

    def commit_tensor_products(self, i: Instruction, match: re.Match[str]) -> str:
        self.expect(i, 1)
        return f"commit_tensor_products(t, {i.line}, {self.address(i, i.operands[0])});"
