"""`reptile_interpolate`."""

import triton
import triton.language as tl
from metagan_fast.kernels.blocks import locate, number, read, sum_over_tasks, write
from metagan_fast.kernels.updates import _launch, formulas
from torch import Tensor

from metagan_fast._native.buffers import inputs, new_results


@triton.jit
def reptile_interpolate_kernel(
    initial,
    adapted,
    adapted_stride,
    tasks,
    weights,
    out,
    numel,
    step_size: tl.float64,
    step_sizes,
    inverse_tasks: tl.float64,
    A: tl.constexpr,
    FORM: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    _, start, lanes, mask = locate(numel, BLOCK)
    first = read(initial, start, lanes, mask, A)
    total = sum_over_tasks(
        first, adapted, adapted_stride, tasks, weights, inverse_tasks, start, lanes, mask, A, WEIGHTED, True
    )
    if FORM == "number":
        size = number(step_size, A)
    else:
        size = tl.load(step_sizes).to(A)
    write(out, start, lanes, mask, formulas.reptile_interpolate(first, total, size))


def reptile_interpolate(
    initial: Tensor,
    adapted: Tensor,
    step_size: float | Tensor,
    *,
    weights: Tensor | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    """Run `reptile_interpolate`; the kernel reads a step size on the GPU itself."""
    initial, adapted = inputs(initial, adapted)
    results = out or new_results(initial, 1)
    size = _launch.learning_rate(step_size, initial)
    _launch.launch(
        reptile_interpolate_kernel,
        _launch.blocks_of(initial),
        initial,
        initial,
        *_launch.tasks(adapted, weights),
        results[0],
        initial.shape[-1],
        size.value,
        size.rates,
        1 / adapted.shape[0],
        FORM=size.form,
        WEIGHTED=weights is not None,
    )
    return results
