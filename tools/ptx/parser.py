"""Parser of a PTX module: kernels with parameters, registers, memory, and instructions with their lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

IGNORED_LINES = ("version", "target", "address_size", "file", "loc")  # up to the end of the line
IGNORED_STATEMENTS = ("pragma",)  # up to the semicolon
BOUNDS = ("maxntid", "reqntid")  # checked at launch
IGNORED_BOUNDS = ("minnctapersm", "maxnreg")

_TYPE = r"\.(?P<type>pred|[busf]\d+)"
_VARIABLE = re.compile(
    rf"(?:\.(?:extern|visible|weak)\s+)*\.(?P<space>shared|local)\s+(?:\.align\s+(?P<align>\d+)\s+)?{_TYPE}\s+"
    r"(?P<name>[\w$]+)\s*(?:\[(?P<count>\d*)\])?$"
)
_PARAMETER = re.compile(
    rf"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?{_TYPE}\s+(?:\.ptr\s+(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?)?"
    r"(?P<name>[\w$]+)\s*(?:\[(?P<count>\d+)\])?$"
)
_REGISTERS = re.compile(rf"\.reg\s+{_TYPE}\s+(?P<names>.+)$")
_INSTRUCTION = re.compile(r"(?:@(?P<not>!?)(?P<guard>%?[\w$]+)\s+)?(?P<opcode>[a-z][\w.:]*)(?:\s+(?P<operands>.+))?$")
_ENTRY = re.compile(r"(?:\.(?:visible|weak)\s+)?\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?([^{]*)\{")


class PtxError(Exception):
    """Unsupported PTX, or a kernel's invalid access or synchronisation."""


@dataclass(frozen=True)
class Variable:
    """A parameter or an array in shared or local memory; `size` is None if given at launch."""

    name: str
    type: str
    align: int
    size: int | None


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Instruction:
    line: int
    opcode: str
    operands: tuple[str, ...]
    guard: str | None = None
    negated: bool = False
    text: str = ""

    def error(self, what: str) -> PtxError:
        return PtxError(f"line {self.line}: {what}: {self.text}")


@dataclass
class Kernel:
    name: str
    parameters: tuple[Variable, ...]
    bounds: dict[str, tuple[int, ...]]
    shared: list[Variable] = field(default_factory=list)
    local: list[Variable] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    body: list[Label | Instruction] = field(default_factory=list)


def bits(kind: str) -> int:
    """Return the width of a PTX type."""
    return 1 if kind == "pred" else 32 if kind.endswith("x2") else int(re.sub(r"\D", "", kind.removeprefix("bf")))


def split(text: str) -> tuple[str, ...]:
    """Split operands at the commas outside of brackets and braces."""
    return tuple(part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text))


def parse(text: str) -> dict[str, Kernel]:
    """Return the kernels of a module by name; unknown syntax is an error."""
    text = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment[0].count("\n"), text, flags=re.S)
    return _Parser(re.sub(r"//[^\n]*", "", text)).module()


class _Parser:
    def __init__(self, text: str):
        self.text = text
        self.position = 0
        self.shared: list[Variable] = []

    def module(self) -> dict[str, Kernel]:
        kernels = {}
        while self._skip():
            if self._take(_IGNORED_LINE) or self._take(_SECTION) or self._take(_CONSTANTS):
                continue
            if entry := self._take(_ENTRY):
                kernels[entry[1]] = self._kernel(entry)
            elif (statement := self._take(_STATEMENT)) and (variable := _VARIABLE.match(_clean(statement[1]))):
                self.shared.append(_variable(variable))
            else:
                raise self._error("unknown directive", statement[0] if statement else self.text[self.position :])
        for kernel in kernels.values():
            kernel.shared = [*self.shared, *kernel.shared]
        return kernels

    def _kernel(self, entry: re.Match[str]) -> Kernel:
        parameters = []
        for text in split(_clean(entry[2] or "")):
            match = _PARAMETER.match(text)
            if match is None:
                raise self._error("unknown parameter", text)
            parameters.append(_variable(match))
        kernel = Kernel(entry[1], tuple(parameters), self._bounds(entry[3]))
        scopes: list[dict[str, str]] = [{}]
        starts: list[int] = []
        opened = 0
        while scopes:
            if not self._skip():
                raise self._error("the body does not end", kernel.name)
            if self._take(_IGNORED_LINE):
                continue
            if self._take(_OPEN):
                opened += 1
                scopes.append({})
                starts.append(len(kernel.body))
            elif self._take(_CLOSE):
                scopes.pop()
                if starts:
                    start = starts.pop()
                    kernel.body[start:] = _with_own_labels(kernel.body[start:], f"_block{start}")
            elif label := self._take(_LABEL):
                kernel.body.append(Label(label[1]))
            else:
                line = self._line()
                statement = self._take(_STATEMENT)
                if statement is None:
                    raise self._error("no semicolon", self.text[self.position :])
                self._statement(kernel, _clean(statement[1]), line, scopes, opened)
        return kernel

    def _bounds(self, text: str) -> dict[str, tuple[int, ...]]:
        found = {}
        for name, numbers in re.findall(r"\.(\w+)\s+([\d,\s]*)", text):
            if name in BOUNDS:
                found[name] = tuple(map(int, numbers.split(",")))
            elif name not in IGNORED_BOUNDS:
                raise self._error("unknown directive of a kernel", name)
        return found

    def _statement(self, kernel: Kernel, text: str, line: int, scopes: list[dict[str, str]], opened: int) -> None:
        if text.startswith("."):
            if registers := _REGISTERS.match(text):
                for name in _names(registers["names"]):
                    inner = f"{name}_scope{opened}" if len(scopes) > 1 else name  # registers are local to a block
                    scopes[-1][name] = inner
                    kernel.registers[inner] = registers["type"]
            elif variable := _VARIABLE.match(text):
                (kernel.shared if variable["space"] == "shared" else kernel.local).append(_variable(variable))
            elif text.split()[0].lstrip(".") not in IGNORED_STATEMENTS:
                raise PtxError(f"line {line}: unknown directive: {text}")
            return
        match = _INSTRUCTION.match(text)
        if match is None:
            raise PtxError(f"line {line}: not an instruction: {text}")

        def rename(name: str) -> str:
            return next((scope[name] for scope in reversed(scopes) if name in scope), name)

        def renamed(operand: str) -> str:
            return re.sub(r"(?<![\w$.])%?[A-Za-z_$][\w$]*", lambda name: rename(name[0]), operand)

        operands = tuple(map(renamed, split(match["operands"] or "")))
        guard = rename(match["guard"]) if match["guard"] else None
        kernel.body.append(Instruction(line, match["opcode"], operands, guard, bool(match["not"]), text))

    def _skip(self) -> bool:
        while self.position < len(self.text) and self.text[self.position].isspace():
            self.position += 1
        return self.position < len(self.text)

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.position)
        if match:
            self.position = match.end()
        return match

    def _line(self) -> int:
        return self.text.count("\n", 0, self.position) + 1

    def _error(self, what: str, text: str) -> PtxError:
        return PtxError(f"line {self._line()}: {what}: {_clean(text)[:80]}")


_IGNORED_LINE = re.compile(rf"\.(?:{'|'.join(IGNORED_LINES)})\b[^\n]*")
_SECTION = re.compile(r"\.section\s+[\w.]+\s*\{[^}]*\}")
_CONSTANTS = re.compile(r"\.global\s+\.align\s+\d+\s+\.b8\s+[\w$]+\[\d+\]\s*=\s*\{[\d,\s]*\};")  # unused ones
_STATEMENT = re.compile(r"([^;]*);")
_OPEN = re.compile(r"\{")
_CLOSE = re.compile(r"\}")
_LABEL = re.compile(r"([$\w]+):")


def _with_own_labels(body: list[Label | Instruction], suffix: str) -> list[Label | Instruction]:
    """Return the body of a block in braces, with its labels renamed."""
    names = {item.name: item.name + suffix for item in body if isinstance(item, Label)}

    def renamed(item: Label | Instruction) -> Label | Instruction:
        if isinstance(item, Label):
            return Label(names[item.name])
        if not item.opcode.startswith("bra"):
            return item
        return replace(item, operands=tuple(names.get(x, x) for x in item.operands))

    return [renamed(item) for item in body]


def _clean(text: str) -> str:
    return " ".join(text.split())


def _variable(match: re.Match[str]) -> Variable:
    element = max(bits(match["type"]) // 8, 1)
    count = match["count"]
    size = None if count == "" else element * int(count or 1)
    return Variable(match["name"], match["type"], int(match["align"] or element), size)


def _names(text: str) -> Iterator[str]:
    for name in split(text):
        many = re.match(r"(.+)<(\d+)>$", name)
        if many:
            yield from (f"{many[1]}{i}" for i in range(int(many[2])))
        else:
            yield name
