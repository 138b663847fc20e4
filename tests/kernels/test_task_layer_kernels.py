"""The per-task layers' Triton kernels: compiled ahead of time, which needs no GPU, and on one."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import task_layer_norm_cases as norms
from metagan_fast import _triton
from metagan_fast.executors.torch.layers import task_layer_norm, task_layers
from metagan_fast.executors.torch.layers.activations import Activation
from metagan_fast.executors.torch.layers.dispatch import kernel
from metagan_fast.executors.torch.layers.layer_mode import task_layers as mode
from metagan_fast.executors.torch.layers.task_layers import Convolution, Linear, TransposedConvolution
from support import assert_close
from task_layer_cases import ACTIVATED, CASES, Case, expected, kept, operands, oracle, slopes

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
LARGE: dict[str, Case] = {
    "linear": (Linear(), (2, 64, 256), 128),
    "convolution": (Convolution((16, 16), (5, 5), padding=(2, 2)), (2, 4, 64, 16, 16), 128),
    "convolution-stride": (Convolution((32, 32), (4, 4), (2, 2), (1, 1)), (2, 4, 64, 32, 32), 64),
    "transposed": (TransposedConvolution((32, 32), (4, 4), (2, 2), (1, 1)), (2, 4, 64, 16, 16), 64),
}
LARGE |= {
    f"{name}-{activation.name}": (replace(LARGE[name][0], activation=activation), *LARGE[name][1:])
    for name, activation in (
        ("linear", Activation("gelu")),
        ("convolution", Activation("prelu")),
        ("transposed", Activation("tanh")),
        ("transposed", Activation("prelu")),
    )
}
REGISTERS = {"ieee": 128, "tf32": 160, "bf16": 176}
"""Upper bound of registers a thread; a block of 256 threads may have 255."""

THROUGH_ACTIVATION = 56
"""Further registers of a pass that reads dy through an activation: a second operand, and its derivative."""

BACKWARD_BIAS = "backward_bias"
TRANSPOSED_PASSES = (*task_layers.PASSES, BACKWARD_BIAS)
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float64: "*fp64"}


def output_shape(case: Case) -> tuple[int, ...]:
    layer, shape, outputs = case
    sides = layer.image if isinstance(layer, TransposedConvolution) else getattr(layer, "output", ())
    return shape[0], shape[1], outputs, *sides


def record(case: Case, precision: str, dtype: torch.dtype = torch.float32) -> dict[str, tuple[Any, ...]]:
    """Return each pass's launches, recorded from real calls on CPU tensors: kernel, arguments, constants, options.

    A transposed convolution launches `BACKWARD_BIAS`, too.
    """
    from metagan_fast.kernels.layers import tiles

    found: list[tuple[Any, ...]] = []
    x, weight, bias = operands(case, dtype)
    slope = slopes(case, dtype)
    dy = torch.zeros(output_shape(case), dtype=dtype)
    through = {"saved": dy.clone(), "slope": slope} if case[0].activation is not None else {}
    with mock.patch.object(tiles, "start", lambda kernel, programs, *rest: found.append((kernel, *rest))):
        kernel(case[0], "forward", precision)(x, weight, bias, slope=slope)
        kernel(case[0], "backward_data", precision)(dy, weight, **through)
        kernel(case[0], "backward_weights", precision)(dy, x, **through)
    passes = TRANSPOSED_PASSES if isinstance(case[0], TransposedConvolution) else task_layers.PASSES
    return dict(zip(passes, found, strict=True))


def compile_for(
    target: str,
    kernel: Any,
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
    options: dict[str, Any],
) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [name for name in kernel.arg_names if name not in constants]
    values = dict(zip(names, arguments, strict=True)) | constants

    def kind(name: str) -> str:
        value = values[name]
        if isinstance(value, Tensor):
            return POINTERS[value.dtype]
        if isinstance(value, float):
            return "fp64"  # as the kernels annotate numbers
        return "constexpr" if name in constants or value is None or value == 1 else "i32"

    signature = {name: kind(name) for name in kernel.arg_names}
    fixed = {name: values[name] for name, type_ in signature.items() if type_ == "constexpr"}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name] not in ("constexpr", "fp64") and (isinstance(values[name], Tensor) or values[name] % 16 == 0)
    }
    source = ASTSource(kernel, signature, fixed, aligned)
    return triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)


def cuobjdump(option: str, cubin: bytes) -> str:
    """Return cuobjdump's output for compiled code."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def resources(cubin: bytes) -> dict[str, int]:
    """Return the code's REG, STACK, LOCAL and SHARED."""
    line = next(line for line in cuobjdump("-res-usage", cubin).splitlines() if "REG:" in line)
    return {key: int(value) for key, _, value in (x.partition(":") for x in line.split()) if value.isdigit()}


def spills_in_loops(cubin: bytes) -> list[str]:
    """Return the instructions between a loop's start and its branch back that move registers to the stack or back."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);", cuobjdump("-sass", cubin))
    code = [(int(address, 16), instruction) for address, instruction in found]
    assert code, "no instructions"
    branches = [(address, re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", instruction)) for address, instruction in code]
    loops = [(int(target[1], 16), address) for address, target in branches if target and int(target[1], 16) <= address]
    assert any(first < last for first, last in loops), "no loop"
    spills = [(address, x) for address, x in code if re.search(r"\b(?:STL|LDL)\b", x)]
    return [x for address, x in spills if any(first <= address <= last for first, last in loops)]


def hardly_spills(cubin: bytes) -> bool:
    """Tell whether at most 16 bytes of a thread's registers move to the stack, and none in a loop."""
    used = resources(cubin)
    return used["LOCAL"] == 0 and used["STACK"] <= 16 and not (used["STACK"] and spills_in_loops(cubin))


@functools.cache
def recorded(name: str, precision: str) -> dict[str, tuple[Any, ...]]:
    return record(LARGE[name], precision)


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or bool(os.environ.get("TRITON_INTERPRET")),
    reason="Triton is not installed, or interprets kernels",
)

COMPILED = [
    *(("linear", precision, "sm_90", task_layers.PASSES) for precision in REGISTERS),
    *(("convolution", "ieee", target, task_layers.PASSES) for target in ("sm_90", "gfx942")),
    *(("convolution", "tf32", target, task_layers.PASSES) for target in ("sm_80", "sm_100")),
    *(("convolution", "bf16", target, task_layers.PASSES) for target in TARGETS),
    ("convolution-stride", "ieee", "sm_90", task_layers.PASSES),
    ("convolution-stride", "tf32", "sm_80", task_layers.PASSES),
    ("linear-gelu", "bf16", "sm_90", task_layers.PASSES),
    ("convolution-prelu", "ieee", "sm_90", task_layers.PASSES),
    ("convolution-prelu", "tf32", "sm_100", task_layers.PASSES),
    *(("convolution-prelu", "bf16", target, task_layers.PASSES) for target in ("sm_80", "gfx942")),
    ("transposed-tanh", "ieee", "sm_90", TRANSPOSED_PASSES),
    ("transposed-prelu", "ieee", "sm_90", TRANSPOSED_PASSES),
    ("transposed-prelu", "tf32", "sm_80", TRANSPOSED_PASSES),
    *(("transposed-prelu", "bf16", target, TRANSPOSED_PASSES) for target in ("sm_80", "gfx942")),
]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision", "target", "passes"), COMPILED)
def test_compiled_code(name: str, precision: str, target: str, passes: tuple[str, ...]) -> None:
    """Spills stay out of loops and rare elsewhere, registers few enough, and reduced operands go to matrix units."""
    for which in passes:
        compiled = compile_for(target, *recorded(name, precision)[which])
        most = REGISTERS[precision] + THROUGH_ACTIVATION * (LARGE[name][0].activation is not None)
        if target == "gfx942":
            assembly = compiled.asm["amdgcn"]
            spills = re.findall(r"\.(?:vgpr|sgpr)_spill_count:\s*(\d+)", assembly)
            assert spills and not any(map(int, spills)), (which, spills)
            (registers,) = map(int, re.findall(r"\.vgpr_count:\s*(\d+)", assembly))
            assert registers <= most, (which, registers)
            units = re.findall(r"v_mfma_f32\w*", assembly)
            assert bool(units) == (which != BACKWARD_BIAS), (which, units)
            assert not units or ("bf16" in "".join(units)) == (precision == "bf16"), (which, units)
        else:
            used = resources(compiled.asm["cubin"])
            assert hardly_spills(compiled.asm["cubin"]), (which, used)
            assert used["REG"] <= most, (which, used)
            kind = {"ieee": "no unit", "tf32": "tf32", "bf16": "bf16"}[precision]
            units = re.findall(r"(?:wgmma\.mma_async|tcgen05\.mma|mma\.sync)[\w.:]*", compiled.asm["ptx"])
            assert bool(units) == (precision != "ieee" and which != BACKWARD_BIAS), (which, units)
            assert not units or any(kind in x or x.startswith("tcgen05") for x in units), (which, units)
            assert not re.search(r"\b(?:atom|red)\.(?:\w+\.)*global", compiled.asm["ptx"])


@needs_compiler
def test_offsets_have_64_bits() -> None:
    """Products with strides of tasks, images and rows have 64 bits."""
    convolutions = [(name, x) for name in ("convolution", "transposed-prelu") for x in recorded(name, "ieee")]
    for name, which in (("linear", "forward"), *convolutions):
        code = compile_for("sm_90", *recorded(name, "ieee")[which]).asm["ttir"]
        scalars = [x for x in code.splitlines() if "tt.addptr" in x and not x.split(" : ")[1].startswith("tensor")]
        assert scalars and all("i64" in x.split(" : ")[1] for x in scalars), scalars


def record_norm(case: norms.Case, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Return the launches of every pass of a layer norm: kernel, arguments, constants, options."""
    from metagan_fast.kernels.layers import tiles

    found: list[tuple[Any, ...]] = []
    layer = task_layer_norm.LayerNorm()
    u, dy, x, weight, bias = norms.operands(case, dtype)
    statistics = norms.statistics(x)
    with mock.patch.object(tiles, "start", lambda kernel, programs, *rest: found.append((kernel, *rest))):
        kernel(layer, "forward")(x, weight, bias)
        kernel(layer, "backward_data")(dy, x, weight, statistics)
        kernel(layer, "backward_weights")(dy, x, statistics)
        kernel(layer, "backward_twice")(u, dy, x, weight, statistics)
    return found


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "dtype"),
    [*((target, torch.float32) for target in TARGETS), ("sm_90", torch.bfloat16), ("sm_80", torch.float64)],
    ids=str,
)
def test_compiled_layer_norm(target: str, dtype: torch.dtype) -> None:
    """Spills stay out of loops and rare elsewhere; accesses are wide, atomics absent, registers enough for a block."""
    for launch in record_norm(norms.Case(2, 4, 65536), dtype):
        compiled = compile_for(target, *launch)
        name = launch[0].__name__
        if target == "gfx942":
            assembly = compiled.asm["amdgcn"]
            assert not any(map(int, re.findall(r"\.(?:vgpr|sgpr)_spill_count:\s*(\d+)", assembly))), name
            assert re.search(r"(?:global|buffer)_load_dwordx4", assembly) and "atomic" not in assembly, name
            continue
        used = resources(compiled.asm["cubin"])
        assert hardly_spills(compiled.asm["cubin"]), (name, used)
        threads = 32 * launch[3]["num_warps"]
        assert used["REG"] * threads <= 2**16, (name, used)
        assert re.search(r"ld\.global[\w.:]*\.v[24]\.b(?:32|64)", compiled.asm["ptx"]), name
        assert not re.search(r"\b(?:atom|red)\.(?:\w+\.)*global", compiled.asm["ptx"]), name


@needs_compiler
@pytest.mark.parametrize("case", [norms.Case(2, 1, 1), norms.Case(1, 3, 77)], ids=["one-element", "odd"])
def test_layer_norm_compiles_for_odd_extents(case: norms.Case) -> None:
    """Triton turns arguments that are 1 into constants."""
    for launch in record_norm(case, torch.float32):
        assert resources(compile_for("sm_90", *launch).asm["cubin"])["LOCAL"] == 0


AVAILABLE, WHY_NOT = _triton.is_available()
if AVAILABLE and not torch.cuda.is_available():
    AVAILABLE, WHY_NOT = False, "this PyTorch sees no GPU"


@pytest.mark.gpu
@pytest.mark.skipif(not AVAILABLE, reason=WHY_NOT)
@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
@pytest.mark.parametrize(
    "case",
    [*CASES.values(), *ACTIVATED.values(), *LARGE.values()],
    ids=[*CASES, *ACTIVATED, *(f"large-{x}" for x in LARGE)],
)
def test_parity_on_a_gpu(case: Case, precision: str) -> None:
    tolerance = "task-layer" if precision == "ieee" else "task-layer-reduced"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x, weight, bias = operands(case, dtype, "cuda")
    slope = slopes(case, dtype, "cuda")
    dy = torch.randn(output_shape(case), dtype=dtype, device="cuda")
    wanted = expected(case, x, weight, bias, dy, slope)
    found = kept(case, *(None if v is None else v.cpu() for v in (x, weight, bias, slope)))
    through = {} if found is None else {"saved": found.cuda(), "slope": slope}

    def passes() -> tuple[Tensor, ...]:
        forward, data, weights = (kernel(case[0], name, precision) for name in task_layers.PASSES)
        y = forward(x, weight, bias, slope=slope)
        return *(y[:1] if isinstance(y, tuple) else (y,)), data(dy, weight, **through), *weights(dy, x, **through)

    for actual, again, exact in zip(passes(), passes(), wanted, strict=True):
        assert_close(actual.cpu(), exact, tolerance)
        assert torch.equal(actual, again)


@pytest.mark.gpu
@pytest.mark.skipif(not AVAILABLE, reason=WHY_NOT)
@pytest.mark.parametrize("dtype", POINTERS, ids=str)
@pytest.mark.parametrize("case", [*norms.CASES.values(), norms.Case(2, 4, 65536)], ids=[*norms.CASES, "large"])
def test_layer_norm_on_a_gpu(case: norms.Case, dtype: torch.dtype) -> None:
    tolerances = {torch.float32: "layer-norm-twice", torch.bfloat16: "task-layer-reduced"}
    layer = task_layer_norm.LayerNorm(norms.EPS)
    given = norms.operands(case, dtype, "cuda")
    u, dy, x, weight, bias = given

    def passes() -> tuple[Tensor, ...]:
        y, statistics = kernel(layer, "forward")(x, weight, bias)
        dx = kernel(layer, "backward_data")(dy, x, weight, statistics)
        of_weights = kernel(layer, "backward_weights")(dy, x, statistics)
        return y, dx, *of_weights, *kernel(layer, "backward_twice")(u, dy, x, weight, statistics)

    for actual, again, exact in zip(passes(), passes(), norms.expected(given), strict=True):
        assert_close(actual.cpu(), exact, tolerances.get(dtype, "float64-rounding"))
        assert torch.equal(actual, again)


@pytest.mark.gpu
@pytest.mark.skipif(not AVAILABLE, reason=WHY_NOT)
def test_vmap_on_a_gpu_takes_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels run on a GPU by default, with second derivatives."""
    monkeypatch.delenv("METAGAN_FAST_TASK_LAYERS", raising=False)
    case = CASES["convolution-stride"]
    layer = case[0]
    assert isinstance(layer, Convolution)
    started: list[Any] = []
    from metagan_fast.kernels.layers import tiles

    start = tiles.start
    monkeypatch.setattr(tiles, "start", lambda *x: started.append(x[0].__name__) or start(*x))

    def second(run: Any, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        leaves = [v.detach().clone().requires_grad_() for v in (x, weight, bias)]
        gradients = torch.autograd.grad(run(*leaves).tanh().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in gradients), leaves)

    def batched(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with mode(x.device):
            return torch.vmap(lambda *v: F.conv2d(*v, layer.stride, layer.padding))(x, weight, bias)

    drawn = operands(case, device="cuda")
    actual = second(batched, *drawn)
    assert set(started) == {f"task_convolution_{x}_kernel" for x in task_layers.PASSES}
    wanted = second(lambda *v: oracle(layer, *v), *(v.double().cpu() for v in drawn))
    for a, b in zip(actual, wanted, strict=True):
        assert_close(a.cpu(), b, "engine-pass")
