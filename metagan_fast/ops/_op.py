"""A fused op: its functions, and the route of a call."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _dispatch, reference

if TYPE_CHECKING:
    from ..flat import FlatLayout

Function = Callable[..., tuple[Tensor, ...]]

OPS: dict[str, Op] = {}
"""The ops by name; each is defined at the end of its file."""


class Op:
    """A fused op and its functions.

    Functions take checked tensors, the learning rate last, and the op's other arguments by keyword; they return a
    tuple. All but `differentiable` also take `out`: the tensors to write, inputs among them, or None for new ones.

    Attributes:
        name: of the public function, the reference, the kernels and their files.
        native: runs the compiled kernel of the CPU, or of CUDA.
        plain: runs the op in plain PyTorch.
        differentiable: runs the op as an `autograd.Function` around the kernel; None: derivatives are those of `plain`.
    """

    def __init__(
        self, name: str, native: Function, differentiable: Function | None = None, *, clip: Op | None = None
    ) -> None:
        """Define an op that `metagan_fast.ops.reference` specifies.

        Args:
            name: the op's name.
            native, differentiable: its functions.
            clip: the op that clips gradients, for a step with `max_norm` and `zero_grads`. Only Triton's kernels fuse
                the three; the other functions are given without these options.
        """
        self.name = name
        self.native: Function = native
        self.plain: Function = _plain(getattr(reference, name))
        self.differentiable = differentiable
        if clip is not None:
            self.native = _with_clipping(native, clip.native)
            self.plain = _with_clipping(self.plain, clip.plain)
            self.differentiable = differentiable and _with_clipping(differentiable, clip.run)
        OPS[name] = self

    def run(self, *tensors: Any, out: tuple[Tensor, ...] | None = None, **options: Any) -> tuple[Tensor, ...]:
        """Run a checked call by the route that it needs.

        The first tensor decides device and dtype. With `out` the op works in place: the caller has checked that no
        derivative is wanted.
        """
        way = route(*tensors, *options.values())
        if way is Route.KERNEL:
            results = _dispatch.dispatch(self, tensors[0])(*tensors, out=out, **options)
            if out is not None:  # tell autograd, which sees no kernel, that saved tensors have changed
                written = (*out, tensors[1]) if options.get("zero_grads") else out
                torch.autograd.graph.increment_version(written)
            return results
        if way is Route.DIFFERENTIABLE and self.differentiable is not None:
            return self.differentiable(*tensors, **options)
        return self.plain(*tensors, out=out, **options)


class Route(enum.Enum):
    """Route of a call; see the package's docstring."""

    KERNEL = enum.auto()
    DIFFERENTIABLE = enum.auto()
    TRACED = enum.auto()


def route(*operands: object) -> Route:
    """Return the route of a call over these operands."""
    if is_traced():
        return Route.TRACED
    wanted = in_transform()
    grad_enabled = torch.is_grad_enabled()
    for x in operands:
        if isinstance(x, Tensor):
            if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
                return Route.TRACED
            wanted = wanted or (grad_enabled and x.requires_grad)
    return Route.DIFFERENTIABLE if wanted else Route.KERNEL


def is_traced() -> bool:
    """Return whether torch.compile or another tracer is active."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def in_transform() -> bool:
    """Return whether a `torch.func` transform or a level of forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def expand_rate(lr: float | Tensor, layout: FlatLayout | None) -> float | Tensor:
    """Return a learning rate that broadcasts against the buffers."""
    return layout.expand(lr) if layout is not None and isinstance(lr, Tensor) and lr.ndim > 0 else lr


def _plain(formula: Callable[..., Any]) -> Function:
    """Return a function of `reference` with all forms of learning rates and with `out`."""

    def run(*tensors: Any, out: tuple[Tensor, ...] | None = None, layout: Any = None, **options: Any) -> tuple:
        if layout is not None:
            tensors = (*tensors[:-1], expand_rate(tensors[-1], layout))
        results = formula(*tensors, **options)
        results = results if isinstance(results, tuple) else (results,)
        if out is None:
            return results
        for destination, result in zip(out, results[: len(out)], strict=True):
            destination.copy_(result)
        return (*out, *results[len(out) :])

    return run


def _with_clipping(step: Function, clip: Function) -> Function:
    """Return a step with `max_norm` and `zero_grads`, as separate passes before and after it."""

    def run(
        params: Tensor,
        grads: Tensor,
        *others: Any,
        max_norm: float | None = None,
        zero_grads: bool = False,
        **options: Any,
    ) -> tuple[Tensor, ...]:
        direction = grads if max_norm is None else clip(grads, max_norm=max_norm, out=None)[0]
        results = step(params, direction, *others, **options)
        if zero_grads:
            grads.zero_()
        return results

    return run
