"""A new op, proximal_step, as insertions into the source tree by the steps of CONTRIBUTING.md, "Adding an op".

The op is a gradient step that a quadratic penalty pulls towards an anchor: `params - lr * (grads + strength * (params -
anchor))`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STEM = "proximal_step"


@dataclass(frozen=True)
class Insertion:
    """Text that a step of CONTRIBUTING.md puts into a file: `before` or `after` a text that it has once, or alone."""

    step: int
    file: str
    text: str
    before: str = ""
    after: str = ""

    def apply(self, tree: Path) -> None:
        """Insert the text into the file of a source tree.

        Raises:
            AssertionError: the file is not as the step says.
        """
        path, anchor = tree / self.file, self.before + self.after
        text = self.text.removeprefix("\n")
        out_of_date = f"step {self.step} of CONTRIBUTING.md, 'Adding an op', is out of date:"
        if not anchor:
            assert path.parent.is_dir() and not path.exists(), f"{out_of_date} {self.file} cannot be made"
            path.write_text(text)
            return
        assert path.exists(), f"{out_of_date} there is no {self.file}"
        source = path.read_text()
        found = source.count(anchor)
        assert found == 1, f"{out_of_date} {self.file} has this {found} times:\n{anchor}"
        path.write_text(source.replace(anchor, text + anchor if self.before else anchor + text))


REFERENCE = '''
def proximal_step(params: Tensor, grads: Tensor, anchor: Tensor, lr: float | Tensor, *, strength: float) -> Tensor:
    """Return `params` after a step along `grads` and towards `anchor`."""
    p = widen(params)
    rate = widen(lr, like=p)
    return narrow(p - rate * (widen(grads) + strength * (p - widen(anchor))), params)


'''

PYTHON = '''
"""`proximal_step`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .._native import buffers
from . import _check
from ._op import Op

if TYPE_CHECKING:
    from ..flat import FlatLayout


def proximal_step(
    params: Tensor,
    grads: Tensor,
    anchor: Tensor,
    lr: float | Tensor,
    *,
    strength: float,
    layout: FlatLayout | None = None,
) -> Tensor:
    """Return `params - lr * (grads + strength * (params - anchor))`.

    Args:
        params: `[numel]` or `[tasks, numel]`.
        grads, anchor: like `params`.
        lr: learning rate (see the module).
        strength: finite, at least 0.
        layout: with a learning rate for each parameter tensor.

    Raises:
        ValueError: shapes, dtypes, devices or numbers do not fit.

    Example:
        >>> import torch
        >>> from metagan_fast import functional
        >>> functional.proximal_step(torch.ones(2), torch.zeros(2), torch.tensor([1.0, 3.0]), lr=0.5, strength=0.5)
        tensor([1.0000, 1.5000])
    """
    return _proximal_step("proximal_step", params, grads, anchor, lr, strength, layout)


def proximal_step_(
    params: Tensor,
    grads: Tensor,
    anchor: Tensor,
    lr: float | Tensor,
    *,
    strength: float,
    layout: FlatLayout | None = None,
) -> Tensor:
    """Overwrite `params` with the result of `proximal_step`."""
    return _proximal_step("proximal_step_", params, grads, anchor, lr, strength, layout)


def _proximal_step(
    op: str,
    params: Tensor,
    grads: Tensor,
    anchor: Tensor,
    lr: float | Tensor,
    strength: float,
    layout: FlatLayout | None,
) -> Tensor:
    """Check the arguments and run `op`, the function or its twin."""
    _check.buffers(op, params=params, grads=grads, anchor=anchor)
    lr = _check.learning_rate(op, lr, params, layout)
    options = {"strength": strength}
    _check.non_negative(op, options, "strength")
    out = _check.targets(op, {"params": params}, grads=grads, anchor=anchor, lr=lr)
    return PROXIMAL_STEP.run(params, grads, anchor, lr, **options, layout=layout, out=out)[0]


def _compiled(
    params: Tensor,
    grads: Tensor,
    anchor: Tensor,
    lr: float | Tensor,
    *,
    strength: float,
    layout: Any,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    """Run the compiled kernel."""
    params, grads, anchor = buffers.inputs(params, grads, anchor)
    results = out or buffers.new_results(params, 1)
    rate, _keep = buffers.learning_rate(lr, params, layout)
    buffers.run("proximal_step", params, *map(buffers.matrix, (params, grads, anchor, results[0])), rate, strength)
    return results


PROXIMAL_STEP = Op("proximal_step", _compiled)
'''

FORMULA = """
template <class V, class R, class A>
METAGAN_INLINE V proximal_step(V param, V grad, V anchor, R lr, A strength) {
    return param - lr * (grad + strength * (param - anchor));
}

"""

CPU_LOOP = """
void proximal_step(DType dtype, int64_t size, Buffer params, const void* grads, const void* anchor, Rate rate,
                   double strength) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        using A = Arithmetic<T>;
        const Elements<T> p(params), g(grads), from(anchor);
        const A pull = static_cast<A>(strength);
        for_each<A>(0, size, rate, [=](int64_t i, auto kind, auto lr) {
            const auto at = from.load(i, kind);
            p.store(i, metagan::proximal_step(p.load(i, kind), g.load(i, kind), at, lr, pull));
        });
    });
}

"""

CPU_LAUNCHER = """
void proximal_step(const Launch& launch, Matrix params, Matrix grads, Matrix anchor, Matrix params_out,
                   const LearningRate& lr, double strength) {
    const auto kernel = update_kernels().proximal_step;
    for_each_block(launch, lr, [&](const Block& at, Rate rate) {
        kernel(at.dtype, at.size, at(params, params_out), at(grads), at(anchor), rate, strength);
    });
}

"""

CUDA_KERNEL = """
template <class T>
struct ProximalStep {
    using Element = T;
    using A = Arithmetic<T>;
    Buffer<T> params;
    Input<T> grads, anchor;
    Rate<A> lr;
    A strength;

    template <int kWidth>
    METAGAN_DEVICE void apply(int64_t row, int64_t column) const {
        auto param = params.template load<kWidth>(row, column);
        const auto grad = grads.template load<kWidth>(row, column);
        const auto from = anchor.template load<kWidth>(row, column);
        const auto rate = lr.template load<kWidth>(row, column);
#pragma unroll
        for (int i = 0; i < kWidth; ++i)
            param.at[i] = metagan::proximal_step(param.at[i], grad.at[i], from.at[i], rate.at[i], strength);
        params.template store<kWidth>(row, column, param);
    }
};

"""

CUDA_LAUNCHER = """
void proximal_step(const DeviceLaunch& launch, Matrix params, Matrix grads, Matrix anchor, Matrix params_out,
                   const LearningRate& lr, double strength) {
    run<ProximalStep>(launch, launch.rows, InOut(params, params_out), grads, anchor, lr, strength);
}

"""

TRITON_FORMULA = """
@triton.jit
def proximal_step(param, grad, anchor, lr, strength):
    return param - lr * (grad + strength * (param - anchor))


"""

TRITON = '''
"""`proximal_step`."""

from typing import Any

import triton
import triton.language as tl
from metagan_fast.kernels.blocks import locate, number, rate_at, read, write
from metagan_fast.kernels.updates import _launch, formulas
from torch import Tensor

from metagan_fast._native.buffers import inputs, new_results
from metagan_fast.flat import ALIGNMENT


@triton.jit
def proximal_step_kernel(
    params,
    params_stride,
    grads,
    grads_stride,
    anchor,
    anchor_stride,
    params_out,
    params_out_stride,
    numel,
    lr: tl.float64,
    rates,
    rates_stride,
    segments,
    segment_stride,
    strength: tl.float64,
    A: tl.constexpr,
    FORM: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, start, lanes, mask = locate(numel, BLOCK)
    rate = rate_at(lr, rates, rates_stride, segments, segment_stride, row, start, lanes, mask, A, FORM, RUN)
    param = read(params, row * params_stride + start, lanes, mask, A)
    grad = read(grads, row * grads_stride + start, lanes, mask, A)
    origin = read(anchor, row * anchor_stride + start, lanes, mask, A)
    param = formulas.proximal_step(param, grad, origin, rate, number(strength, A))
    write(params_out, row * params_out_stride + start, lanes, mask, param)


def proximal_step(
    params: Tensor,
    grads: Tensor,
    anchor: Tensor,
    lr: float | Tensor,
    *,
    strength: float,
    layout: Any,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    """Run `proximal_step`."""
    params, grads, anchor = inputs(params, grads, anchor)
    results = out or new_results(params, 1)
    rate = _launch.learning_rate(lr, params, layout)
    _launch.launch(
        proximal_step_kernel,
        _launch.blocks_of(params),
        params,
        *_launch.matrices(params, grads, anchor, *results),
        params.shape[-1],
        *rate.operands,
        strength,
        FORM=rate.form,
        RUN=ALIGNMENT,
    )
    return results
'''

BENCHMARK = """
def _proximal_plain(b: Buffers) -> Run:
    return lambda: b["params"].sub_(LR * (b["grads"] + 0.5 * (b["params"] - b["anchor"])))


def _proximal_ours(b: Buffers) -> Run:
    return lambda: functional.proximal_step_(b["params"], b["grads"], b["anchor"], LR, strength=0.5)


"""

SIGNATURE = """
    using proximal_step = void(const To&, Matrix params, Matrix grads, Matrix anchor, Matrix params_out,
                               const LearningRate&, double strength);
"""

TABLE_ENTRY = """
    void (*proximal_step)(DType, int64_t size, Buffer params, const void* grads, const void* anchor, Rate,
                          double strength);
"""

BENCHMARK_CASE = """
    OpCase(
        "proximal_step",
        ("params", "grads", "anchor"),
        (4, 0),
        ("params",),
        _pair(_proximal_ours, _proximal_plain),
    ),
"""

CASE = """
    Case("proximal_step", ("params", "grads", "anchor"), ("params",), {"strength": 0.5}, has_lr=True),
"""

END, CPU_END, CUDA_END = (f"\n}}  // namespace metagan{inner}\n" for inner in ("", "::cpu", "::cuda"))
IMPORT = f"from .ops.{STEM} import {STEM}, {STEM}_\n"

INSERTIONS = (
    Insertion(1, "metagan_fast/ops/reference.py", REFERENCE, before="def inverse_bias_corrections("),
    Insertion(2, f"metagan_fast/ops/{STEM}.py", PYTHON),
    Insertion(2, "metagan_fast/functional.py", IMPORT, before="\n__all__ = [\n"),
    Insertion(2, "metagan_fast/functional.py", f'    "{STEM}",\n    "{STEM}_",\n', after="\n__all__ = [\n"),
    Insertion(2, "README.md", f"`{STEM}`, ", before="`sgd_step`, `adam_step`, `rmsprop_step`,"),
    Insertion(3, "csrc/ops/formulas.h", FORMULA, before=END.removeprefix("\n")),
    Insertion(3, "csrc/ops/launch.h", SIGNATURE, before="};\n\n// Applies a macro"),
    Insertion(3, "csrc/ops/launch.h", f" apply({STEM})", after="#define METAGAN_OPS(apply)"),
    Insertion(
        3, "csrc/cpu/updates/update_kernels.h", TABLE_ENTRY, before="};\n\nMETAGAN_DECLARE_TABLES(UpdateKernels,"
    ),
    Insertion(3, "csrc/cpu/updates/update_kernels.cpp", CPU_LOOP, before="}  // namespace\n"),
    Insertion(3, "csrc/cpu/updates/update_kernels.cpp", f"    {STEM},\n", before=f"}};\n{CPU_END}"),
    Insertion(3, "csrc/cpu/updates/updates.cpp", CPU_LAUNCHER, before=END.removeprefix("\n")),
    Insertion(4, "csrc/cuda/updates.cuh", CUDA_KERNEL, before=CUDA_END.removeprefix("\n")),
    Insertion(4, "csrc/cuda/updates.cu", CUDA_LAUNCHER, before="std::string cuda_problem() {"),
    Insertion(5, "kernels/updates/formulas.py", TRITON_FORMULA, before="@triton.jit\ndef clip_scale("),
    Insertion(5, f"kernels/updates/{STEM}.py", TRITON),
    Insertion(6, "tests/ops/ops_cases.py", CASE, after="\nCASES = (\n"),
    Insertion(6, "benchmarks/ops.py", BENCHMARK, before="SLOW = ("),
    Insertion(6, "benchmarks/ops.py", BENCHMARK_CASE, after="\nCASES = (\n"),
)
