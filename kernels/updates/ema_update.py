"""`ema_update`."""

import triton
import triton.language as tl
from metagan_fast.kernels.blocks import locate, number, read, write
from metagan_fast.kernels.updates import _launch, formulas
from torch import Tensor

from metagan_fast._native.buffers import inputs, new_results


@triton.jit
def ema_update_kernel(
    average,
    average_stride,
    params,
    params_stride,
    average_out,
    average_out_stride,
    numel,
    one_minus_decay: tl.float64,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, start, lanes, mask = locate(numel, BLOCK)
    before = read(average, row * average_stride + start, lanes, mask, A)
    param = read(params, row * params_stride + start, lanes, mask, A)
    after = formulas.ema_update(before, param, number(one_minus_decay, A))
    write(average_out, row * average_out_stride + start, lanes, mask, after)


def ema_update(average: Tensor, params: Tensor, decay: float, *, out: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """Run `ema_update`."""
    average, params = inputs(average, params)
    results = out or new_results(average, 1)
    _launch.launch(
        ema_update_kernel,
        _launch.blocks_of(average),
        average,
        *_launch.matrices(average, params, *results),
        average.shape[-1],
        float(1 - decay),
    )
    return results
