"""The compiled extension behind the signatures of `reference`: the only place that touches addresses.

Each function takes an op's validated tensors (`[numel]` or `[rows, numel]`, any strides) and writes to `out`,
which may hold some of the inputs, or to new tensors when `out` is None. It returns what it wrote.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from metagan_fast import reference

try:
    from metagan_fast import _core

    _import_error = ""
except ImportError as error:
    _import_error = str(error)

if TYPE_CHECKING:
    from metagan_fast.flat import FlatLayout

# The codes of _core.FLOAT32, BFLOAT16 and FLOAT64, readable without the extension.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}


def is_available() -> tuple[bool, str]:
    """Return whether the extension loaded, and if not, why."""
    if not _import_error:
        return True, ""
    if importlib.util.find_spec(f"{__package__}._core") is None:
        return (
            False,
            "this installation has no compiled extension: install it without METAGAN_FAST_NO_EXT",
        )
    return False, f"the compiled extension metagan_fast._core did not load ({_import_error})"


def cuda_is_available() -> tuple[bool, str]:
    """Return whether the extension has kernels for a GPU and there is one, and if not, why."""
    available, reason = is_available()
    if available:
        reason = _core.cuda_problem()
    return not reason, reason


@functools.cache
def can_gather() -> tuple[bool, str]:
    """Return whether the tensors of an optimizer can be read by the extension, and if not, why."""
    available, reason = is_available()
    if not available:
        return False, reason
    if not hasattr(Tensor, "__dlpack_c_exchange_api__"):
        return False, f"PyTorch {torch.__version__} has no C interface of DLPack"
    return True, ""


@functools.cache
def _tensor_reader() -> _core.TensorReader:
    return _core.TensorReader(Tensor.__dlpack_c_exchange_api__, Tensor, torch.nn.Parameter)


def gather(
    params: Sequence[Tensor], state: dict[Tensor, Any], keys: tuple[str | None, ...], counted: bool
) -> _core.OptimizerBatch:
    """Return the tensors of an optimizer's group that its native step updates; needs `can_gather`."""
    return _tensor_reader().gather(list(params), state, keys, counted)


def threads() -> int:
    """Return how many threads a call may use: METAGAN_FAST_THREADS if set, else `torch.get_num_threads()`.

    Raises:
        ValueError: METAGAN_FAST_THREADS is not a positive integer.
    """
    override = os.environ.get("METAGAN_FAST_THREADS")
    if not override:
        return torch.get_num_threads()
    if not override.isdecimal() or int(override) < 1:
        raise ValueError(f"METAGAN_FAST_THREADS must be a positive integer, got {override!r}; correct or unset it")
    return int(override)


def make_engine(
    generator: dict[str, Any],
    discriminator: dict[str, Any],
    loss: dict[str, Any],
    inner: dict[str, Any],
    precision: str,
) -> _core.Engine:
    """Return an engine for two networks.

    Raises:
        ValueError: what it cannot run, and why.
    """
    return _core.Engine(generator, discriminator, loss, inner, precision)


class EngineCall:
    """The arguments of one call of the engine: numbers, addresses, and the tensors that must outlive it."""

    def __init__(self, **numbers: Any) -> None:
        self.arguments: dict[str, Any] = dict(numbers)
        self._alive: list[Tensor] = []

    def read(self, name: str, tensor: Tensor | None, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        """Pass a tensor that is read, or that there is none.

        Raises:
            ValueError: its shape, dtype or device is another.
        """
        self.arguments[name] = 0
        if tensor is None:
            return
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or not tensor.is_cpu:
            raise ValueError(
                f"expected {name} to be {dtype} {list(shape)} on a CPU, got {tensor.dtype} {list(tensor.shape)} on "
                f"{tensor.device}"
            )
        self.arguments[name] = self._address(tensor.detach().contiguous())

    def write(self, name: str, *shape: int) -> Tensor:
        """Pass a new float32 tensor that is written, and return it."""
        tensor = torch.empty(shape)
        self.arguments[name] = self._address(tensor)
        return tensor

    def update(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Pass contiguous float32 tensors that are read and written."""
        self.arguments[name] = tuple(self._address(tensor) for tensor in tensors)

    def _address(self, tensor: Tensor) -> int:
        self._alive.append(tensor)
        return tensor.data_ptr()


def find_overlap(written: dict[str, Tensor], read: dict[str, Tensor]) -> tuple[str, str] | None:
    """Return the names of two tensors that cannot take part in one in-place call, if there are any.

    Written memory may be shared only with an input that is the very same view; rows may interleave.
    """
    spans = [(_Span.of(x), name, name in written) for name, x in (*read.items(), *written.items()) if x.numel()]
    spans.sort(key=lambda item: item[0].begin)
    if all(a[0].end <= b[0].begin for a, b in itertools.pairwise(spans)):
        return None
    for (a, name, a_written), (b, other, b_written) in itertools.combinations(spans, 2):
        harmless = not (a_written or b_written) or (a == b and not (a_written and b_written))
        if not harmless and a.meets(b):
            return name, other
    return None


class _Span(NamedTuple):
    """The bytes of a matrix: `rows` rows of `width` bytes, `pitch` bytes apart."""

    begin: int
    end: int
    rows: int
    width: int
    pitch: int

    @classmethod
    def of(cls, x: Tensor) -> _Span:
        size = x.element_size()
        rows, pitch = (x.shape[0], x.stride(0) * size) if x.ndim == 2 else (1, 0)
        width = ((x.shape[-1] - 1) * x.stride(-1) + 1) * size if x.ndim else size
        begin = x.data_ptr()
        return cls(begin, begin + (rows - 1) * pitch + width, rows, width, pitch)

    def meets(self, other: _Span) -> bool:
        """Tell whether two spans share a byte; where that is hard to say, say yes."""
        if self.end <= other.begin or other.end <= self.begin:
            return False
        pitch = max(self.pitch, other.pitch)
        if any(span.rows > 1 and span.pitch != pitch for span in (self, other)) or pitch == 0:
            return True
        distance = (other.begin - self.begin) % pitch
        return not (self.width <= distance <= pitch - other.width)


def sgd_step(
    params: Tensor,
    grads: Tensor,
    lr: float | Tensor,
    *,
    momentum_buffer: Tensor | None,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    layout: FlatLayout | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    params, grads, momentum_buffer = _inputs(params, grads, momentum_buffer if momentum != 0 else None)
    results = out or _new(params, 1 if momentum == 0 else 2)
    rate, _keep = _learning_rate(lr, params, layout)
    _run(
        "sgd_step",
        params,
        _matrix(params),
        _matrix(grads),
        _optional_matrix(momentum_buffer),
        _matrix(results[0]),
        _optional_matrix(results[1] if momentum != 0 else None),
        rate,
        momentum,
        dampening,
        weight_decay,
        nesterov,
    )
    return results


def adam_step(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float | Tensor,
    *,
    step: int | Tensor,
    betas: tuple[float, float],
    eps: float,
    eps_root: float,
    weight_decay: float,
    decoupled: bool,
    layout: FlatLayout | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    params, grads, exp_avg, exp_avg_sq = _inputs(params, grads, exp_avg, exp_avg_sq)
    results = out or _new(params, 3)
    rate, _keep = _learning_rate(lr, params, layout)
    corrections = [_number(x, params) for x in reference.inverse_bias_corrections(step, betas)]
    _run(
        "adam_step",
        params,
        _matrix(params),
        _matrix(grads),
        _matrix(exp_avg),
        _matrix(exp_avg_sq),
        _matrix(results[0]),
        _matrix(results[1]),
        _matrix(results[2]),
        rate,
        *betas,
        *(number for number, _ in corrections),
        eps,
        eps_root,
        weight_decay,
        decoupled,
    )
    return results


def rmsprop_step(
    params: Tensor,
    grads: Tensor,
    square_avg: Tensor,
    lr: float | Tensor,
    *,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    momentum_buffer: Tensor | None,
    centered: bool,
    grad_avg: Tensor | None,
    layout: FlatLayout | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    params, grads, square_avg, momentum_buffer, grad_avg = _inputs(
        params, grads, square_avg, momentum_buffer if momentum != 0 else None, grad_avg if centered else None
    )
    state = [x for x in (momentum_buffer, grad_avg) if x is not None]
    results = out or _new(params, 2 + len(state))
    rate, _keep = _learning_rate(lr, params, layout)
    _run(
        "rmsprop_step",
        params,
        _matrix(params),
        _matrix(grads),
        _matrix(square_avg),
        _optional_matrix(momentum_buffer),
        _optional_matrix(grad_avg),
        _matrix(results[0]),
        _matrix(results[1]),
        _optional_matrix(results[2] if momentum != 0 else None),
        _optional_matrix(results[-1] if centered else None),
        rate,
        alpha,
        eps,
        weight_decay,
        momentum,
    )
    return results


def reptile_interpolate(
    initial: Tensor,
    adapted: Tensor,
    step_size: float | Tensor,
    *,
    weights: Tensor | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    initial, adapted = _inputs(initial, adapted)
    results = out or _new(initial, 1)
    combine = _weights(weights, initial)
    size, _keep = _number(step_size, initial)
    _run(
        "reptile_interpolate",
        adapted,
        initial.data_ptr(),
        _matrix(adapted),
        combine.data_ptr() if combine is not None else 0,
        results[0].data_ptr(),
        size,
    )
    return results


def reptile_gradient(
    initial: Tensor, adapted: Tensor, *, weights: Tensor | None, out: tuple[Tensor, ...] | None
) -> tuple[Tensor, ...]:
    initial, adapted = _inputs(initial, adapted)
    results = out or _new(initial, 1)
    combine = _weights(weights, initial)
    _run(
        "reptile_gradient",
        adapted,
        initial.data_ptr(),
        _matrix(adapted),
        combine.data_ptr() if combine is not None else 0,
        results[0].data_ptr(),
    )
    return results


def meta_adam_step(
    params: Tensor,
    adapted: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float | Tensor,
    *,
    step: int,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    weights: Tensor | None,
    layout: FlatLayout | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    params, adapted, exp_avg, exp_avg_sq = _inputs(params, adapted, exp_avg, exp_avg_sq)
    results = out or _new(params, 3)
    combine = _weights(weights, params)
    rate, _keep = _learning_rate(lr, params, layout)
    _run(
        "meta_adam_step",
        adapted,
        params.data_ptr(),
        _matrix(adapted),
        combine.data_ptr() if combine is not None else 0,
        exp_avg.data_ptr(),
        exp_avg_sq.data_ptr(),
        results[0].data_ptr(),
        results[1].data_ptr(),
        results[2].data_ptr(),
        rate,
        *betas,
        *reference.inverse_bias_corrections(step, betas),
        eps,
        weight_decay,
        decoupled,
    )
    return results


def clip_grad_norm(grads: Tensor, max_norm: float, *, out: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    (grads,) = _inputs(grads)
    (clipped,) = out or _new(grads, 1)
    norms = torch.empty(grads.shape[:-1], dtype=_arithmetic(grads.dtype), device=grads.device)
    arguments = _matrix(grads), _matrix(clipped), norms.data_ptr(), max_norm
    if grads.is_cuda:
        rows, columns = _sizes(grads)
        parts = _core.cuda_clip_grad_norm_parts(columns)
        sums = torch.empty(rows * parts, dtype=torch.float64, device=grads.device)
        _run("clip_grad_norm", grads, *arguments, sums.data_ptr())
    else:
        _run("clip_grad_norm", grads, *arguments)
    return clipped, norms


def ema_update(average: Tensor, params: Tensor, decay: float, *, out: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    average, params = _inputs(average, params)
    results = out or _new(average, 1)
    _run("ema_update", average, _matrix(average), _matrix(params), _matrix(results[0]), decay)
    return results


def _run(op: str, like: Tensor, *arguments: Any) -> None:
    """Run an op over buffers like `like`: on a GPU in the current stream, else in the threads of this call."""
    if not like.is_cuda:
        getattr(_core, op)(DTYPES[like.dtype], *_sizes(like), threads(), *arguments)
        return
    device = like.device
    with torch.cuda.device(device):
        queue = (device.index, torch.cuda.current_stream(device).cuda_stream)
        getattr(_core, f"cuda_{op}")(DTYPES[like.dtype], *_sizes(like), queue, *arguments)


def _sizes(x: Tensor) -> tuple[int, int]:
    """Return rows and columns."""
    shape = x.shape
    return (shape[0] if len(shape) == 2 else 1), shape[-1]


def _matrix(x: Tensor) -> tuple[int, int]:
    """Return address and row stride."""
    return x.data_ptr(), x.stride(0) if x.ndim == 2 else 0


def _optional_matrix(x: Tensor | None) -> tuple[int, int] | None:
    return None if x is None else _matrix(x)


def _inputs(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Return the tensors with adjacent elements in each row; autograd hands out expanded gradients."""
    return tuple(x if x is None or x.stride(-1) == 1 or x.shape[-1] < 2 else x.contiguous() for x in tensors)


def _new(like: Tensor, count: int) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(like, memory_format=torch.contiguous_format) for _ in range(count))


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _weights(weights: Tensor | None, like: Tensor) -> Tensor | None:
    return None if weights is None else weights.to(_arithmetic(like.dtype)).contiguous()


def _number(x: float | Tensor, like: Tensor) -> tuple[float | tuple[int], Tensor | None]:
    """Return a number as the kernels take it, and what must outlive the call: a tensor is read when they run."""
    if not isinstance(x, Tensor):
        return float(x), None
    if x.device != like.device:
        return x.item(), None
    x = x.double()
    return (x.data_ptr(),), x


def _learning_rate(
    lr: float | Tensor, params: Tensor, layout: FlatLayout | None
) -> tuple[float | tuple[int, int, int, int, int, int], object]:
    """Return the learning rate as the kernels take it, and what must outlive the call."""
    if not isinstance(lr, Tensor):
        return lr, None
    if lr.device != params.device:  # 0-dim, on a CPU
        return lr.item(), None
    rate = lr.to(_arithmetic(params.dtype))
    if rate.ndim == 0:
        return (rate.data_ptr(), 0, 0, 0, 0, 1), rate
    row_stride = rate.stride(0) if rate.ndim == 2 and rate.shape[0] > 1 else 0
    if layout is not None:
        ends = layout.segment_ends_on(rate.device)
        return (rate.data_ptr(), row_stride, rate.stride(-1), 0, ends.data_ptr(), ends.numel()), (rate, ends)
    if rate.shape[-1] == 1:
        return (rate.data_ptr(), row_stride, 0, 0, 0, 1), rate
    if rate.stride(-1) != 1:
        rate = rate.contiguous()
        row_stride = rate.stride(0) if row_stride else 0
    return (rate.data_ptr(), row_stride, 0, 1, 0, 1), rate


OPS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    function.__name__: function
    for function in (
        sgd_step,
        adam_step,
        rmsprop_step,
        reptile_interpolate,
        reptile_gradient,
        meta_adam_step,
        clip_grad_norm,
        ema_update,
    )
}
