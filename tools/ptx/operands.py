"""Operands of an instruction as C++: registers, constants, addresses."""

from __future__ import annotations

import re

from .parser import Instruction, Kernel, Label, Variable, bits, split

_FLOAT = re.compile(r"0[fF]([0-9A-Fa-f]{8})|0[dD]([0-9A-Fa-f]{16})")
INTEGER = re.compile(r"(-?)(0[xX][0-9A-Fa-f]+|\d+)U?")
NAME = re.compile(r"%?[A-Za-z_$][\w$]*")
_SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid)\.([xyz])")
_LANE = {"%laneid": "t.lane", "%warpid": "t.warp", "WARP_SZ": "32u"}
_ADDRESS = re.compile(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\d+))?\s*\]")


def c_type(kind: str) -> str:
    """Return the C++ type of a PTX type."""
    known = {"pred": "bool", "f32": "float", "f64": "double", "bf16": "Bf16"}
    return known.get(kind) or f"{'int' if kind[0] == 's' else 'uint'}{bits(kind)}_t"


def c_name(name: str) -> str:
    """Return a C++ identifier for a PTX name."""
    return "x_" + re.sub(r"\W", "_", name.replace("$", "_d_"))


def layout(kernel: Kernel) -> tuple[dict[str, int], int]:
    """Return the parameters' offsets and their total size."""
    offsets, end = {}, 0
    for parameter in kernel.parameters:
        assert parameter.size is not None
        end = -(-end // parameter.align) * parameter.align
        offsets[parameter.name] = end
        end += parameter.size
    return offsets, end


class Operands:
    """Base of `generate.Generator`: methods that instructions share."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.offsets, self.parameter_bytes = layout(kernel)
        self.shared, self.shared_bytes = _place(kernel.shared)
        self.local, self.local_bytes = _place(kernel.local)
        self.labels = {item.name for item in kernel.body if isinstance(item, Label)}

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
        if literal := INTEGER.fullmatch(text):
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

    def fragment(self, i: Instruction, text: str, match: re.Match[str]) -> tuple[str, ...]:
        """Return the names between braces, as many as the opcode states."""
        names = split(text.strip("{}"))
        if len(names) != int(match["count"]):
            raise i.error(f"{len(names)} elements")
        return names

    def places(self, i: Instruction, names: tuple[str, ...]) -> str:
        """Return the C++ of the addresses of registers that an asynchronous instruction sets."""
        if any(bits(self.kernel.registers.get(x, "b64")) != 32 for x in names):
            raise i.error("fragments that are not registers of 32 bits")
        return ", ".join(f"&{self.register(i, x)}" for x in names)


def _place(variables: list[Variable]) -> tuple[dict[str, int], int]:
    """Return offsets and the total size; arrays sized at launch come last."""
    offsets, end = {}, 0
    for variable in sorted(variables, key=lambda v: v.size is None):
        end = -(-end // variable.align) * variable.align
        offsets[variable.name] = end
        end += variable.size or 0
    return offsets, end
