"""Differentiable optimizer steps over parameters in one flat buffer, shared by the drop-ins.

A parameter group is stepped in *parts*: parameters of one dtype and device that received gradients in the same steps,
usually a single part. A part's optimizer state stays flat; its parameters are tensors in the memory of the step's
result, and the next step reads them without a copy while they still lie in one buffer.

Derivatives equal a loop's over single tensors: a step depends on exactly the tensors that it was given, so
gradients by parameters of any earlier step include every path from them, the one through the update included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..flat import ALIGNMENT, FlatLayout, Slot
from ..ops._op import in_transform, is_traced

State = dict[str, Tensor]
Rule = Callable[
    ["Layout", Sequence[Tensor], Sequence[Tensor], Mapping[str, Tensor], int, Mapping[str, Any]],
    tuple[list[Tensor], State],
]
"""Update rule over lists: (layout, params, grads, flat state, step from 1, options) -> (params, state).

Parameters and gradients are lists in the layout's order; the new parameters lie in one buffer.
"""
FlatRule = Callable[[Tensor, Tensor, Mapping[str, Tensor], int, Mapping[str, Any]], tuple[Tensor, State]]
"""Update rule over buffers `[numel]`: (params, grads, flat state, step from 1, options) -> (params, state)."""


class Layout(FlatLayout):
    """Flat layout of an ordered list of tensors, with the quantities that every step needs cached."""

    @cached_property
    def geometry(self) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
        """Offset, shape and contiguous strides of each tensor."""
        return [(slot.offset, slot.shape, torch.empty(slot.shape, device="meta").stride()) for slot in self.slots]

    @cached_property
    def gaps(self) -> list[int]:
        """Elements of padding after each tensor."""
        ends = (*self.offsets, self.numel)[1:]
        return [end - slot.offset - slot.numel for slot, end in zip(self.slots, ends, strict=True)]

    def concatenate(self, tensors: Sequence[Tensor]) -> Tensor:
        """Copy tensors into a new buffer with zero padding; like `flatten`, without its checks."""
        first, parts = tensors[0], []
        for x, gap in zip(tensors, self.gaps, strict=True):
            parts.append(x.reshape(-1))
            if gap:
                parts.append(_zeros(gap, first.dtype, first.device))
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class Part:
    """Parameters of a group that are stepped together.

    Attributes:
        positions: indices of the parameters in the group.
        layout: their layout in a flat buffer.
        step: number of steps taken.
        state: the optimizer's flat buffers by name.
    """

    positions: tuple[int, ...]
    layout: Layout
    step: int
    state: State


@functools.lru_cache(maxsize=1024)
def layout_of(shapes: tuple[torch.Size, ...]) -> Layout:
    """Lay out tensors of these shapes in order; the slots are named "0", "1" and so on."""
    slots, end = [], 0
    for index, shape in enumerate(shapes):
        slots.append(Slot(str(index), (str(index),), tuple(shape), end, shape.numel()))
        end += -(-shape.numel() // ALIGNMENT) * ALIGNMENT
    return Layout(tuple(slots), end)


def split(layout: Layout, flat: Tensor) -> list[Tensor]:
    """Return the tensors of a layout in `flat [numel]`, in order, without a copy; differentiable.

    To autograd they are independent tensors, not views, so that they can be detached in place.
    """
    if in_transform() or is_traced():
        return list(layout.views(flat).values())
    if torch.is_grad_enabled() and flat.requires_grad:
        return list(_Split.apply(flat, layout))
    return aliases(layout, flat)


def join(layout: Layout, tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors as one buffer `[numel]`, without a copy if they already lie in one; differentiable."""
    flat = None if in_transform() or is_traced() else _shared_buffer(layout, tensors)
    if flat is None:
        return layout.concatenate(tensors)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return _Join.apply(flat, layout, *tensors)
    return flat


def aliases(layout: Layout, flat: Tensor) -> list[Tensor]:
    """Return graph-free tensors that share a flat buffer's memory."""
    storage, start = flat.untyped_storage(), flat.storage_offset()
    empty = flat.detach().new_empty
    return [empty(0).set_(storage, start + offset, shape, strides) for offset, shape, strides in layout.geometry]


def flat_copies(tensors: Iterable[Tensor], *, device: torch.device | str | None, detach: bool) -> list[Tensor]:
    """Copy tensors into flat buffers, one for each dtype and device.

    Copies of tensors that require grad are leaves with `detach`, otherwise functions of the originals. Tensors that do
    not require grad are copied one by one, and neither do their copies.
    """
    tensors = list(tensors)
    copies: list[Tensor | None] = [None if x.requires_grad else x.detach().clone().to(device=device) for x in tensors]
    for positions in _by_kind(tensors, [i for i, x in enumerate(tensors) if x.requires_grad]):
        layout = layout_of(tuple(tensors[i].shape for i in positions))
        originals = [tensors[i] for i in positions]
        if detach:
            flat = layout.concatenate([x.detach() for x in originals]).to(device=device)
            members = [x.requires_grad_() for x in aliases(layout, flat)]
        else:
            members = list(_FlatCopies.apply(layout, device, *originals))
        for i, x in zip(positions, members, strict=True):
            copies[i] = x
    return cast("list[Tensor]", copies)


def advance(
    rule: Rule,
    options: Mapping[str, Any],
    parts: Sequence[Part],
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
) -> tuple[list[Tensor], list[Part]]:
    """Step a parameter group; parameters without a gradient, and their state, are unchanged.

    Args:
        rule: the update rule.
        options: the rule's hyper-parameters.
        parts: the parts returned by the previous step; empty at first.
        params: parameters of any shapes.
        grads: gradients of the same shapes, or None.

    Returns:
        The new parameters, in the memory of flat buffers, and the new parts.
    """
    results = list(params)
    new_parts = []
    for part in _regroup(parts, params, grads):
        present = [g for i in part.positions if (g := grads[i]) is not None]
        if present:
            given = [params[i] for i in part.positions]
            stepped, state = rule(part.layout, given, present, part.state, part.step + 1, options)
            for i, x in zip(part.positions, stepped, strict=True):
                results[i] = x
            part = replace(part, step=part.step + 1, state=state)
        new_parts.append(part)
    return results, new_parts


def over_buffers(rule: FlatRule) -> Rule:
    """Turn a rule over buffers into a rule over lists."""
    return functools.partial(_step_buffers, rule)


def parts_of(states: Mapping[int, Mapping[str, Any]], params: Sequence[Tensor]) -> list[Part]:
    """Gather per-parameter optimizer states, as `torch.optim` keeps them, into parts.

    Args:
        states: tensors by name and, optionally, "step", by position in `params`. A tensor of one element holds for
            every element of its parameter.
        params: the parameters; only dtype, shape and device are read.
    """
    alike: dict[Any, list[int]] = {}
    for position, state in states.items():
        buffers = tuple(name for name, x in state.items() if isinstance(x, Tensor) and name != "step")
        alike.setdefault((int(state.get("step", 1)), buffers), []).append(position)
    parts = []
    for (step, names), members in alike.items():
        for positions in _by_kind(params, members):
            layout = layout_of(tuple(params[i].shape for i in positions))
            state = {name: join(layout, [_filled(states[i][name], params[i]) for i in positions]) for name in names}
            parts.append(Part(positions, layout, step, state))
    return parts


def states_of(parts: Iterable[Part]) -> dict[int, dict[str, Any]]:
    """Return per-parameter states by position: "step", and tensors in the memory of the flat buffers."""
    states: dict[int, dict[str, Any]] = {}
    for part in parts:
        buffers = {name: split(part.layout, flat) for name, flat in part.state.items()}
        for n, position in enumerate(part.positions):
            states[position] = {"step": part.step, **{name: tensors[n] for name, tensors in buffers.items()}}
    return states


def _filled(state: Tensor, param: Tensor) -> Tensor:
    """Expand a state to its parameter's shape."""
    return state if state.shape == param.shape else state.to(param).expand_as(param)


def _regroup(parts: Sequence[Part], params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Part]:
    """Split parts until all or none of each part's parameters have gradients; add parts for new parameters."""
    regrouped = []
    known: set[int] = set()
    for part in parts:
        known.update(part.positions)
        present = [grads[i] is not None for i in part.positions]
        if all(present) or not any(present):
            regrouped.append(part)
        else:
            regrouped += _split(part, present)
    new = [i for i, g in enumerate(grads) if g is not None and i not in known]
    for positions in _by_kind(params, new):
        regrouped.append(Part(positions, layout_of(tuple(params[i].shape for i in positions)), 0, {}))
    return regrouped


def _split(part: Part, present: Sequence[bool]) -> list[Part]:
    """Split a part into its parameters with and without a gradient."""
    buffers = {name: split(part.layout, flat) for name, flat in part.state.items()}
    halves = []
    for wanted in (True, False):
        chosen = [n for n, here in enumerate(present) if here is wanted]
        layout = layout_of(tuple(torch.Size(part.layout.slots[n].shape) for n in chosen))
        state = {name: join(layout, [tensors[n] for n in chosen]) for name, tensors in buffers.items()}
        halves.append(Part(tuple(part.positions[n] for n in chosen), layout, part.step, state))
    return halves


def _step_buffers(
    rule: FlatRule,
    layout: Layout,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: Mapping[str, Tensor],
    step: int,
    options: Mapping[str, Any],
) -> tuple[list[Tensor], State]:
    flat, new_state = rule(join(layout, params), join(layout, grads), state, step, options)
    return split(layout, flat), {name: _detachable(x) for name, x in new_state.items()}


def _detachable(flat: Tensor) -> Tensor:
    """Return the buffer as a non-view, so that it can be detached in place."""
    if in_transform() or is_traced() or not flat._is_view():
        return flat
    return split(layout_of((flat.shape,)), flat)[0]


def _by_kind(tensors: Sequence[Tensor], positions: Iterable[int]) -> list[tuple[int, ...]]:
    """Group positions by the dtype and device of their tensors."""
    kinds: dict[Any, list[int]] = {}
    for i in positions:
        kinds.setdefault((tensors[i].dtype, tensors[i].device), []).append(i)
    return [tuple(members) for members in kinds.values()]


@functools.lru_cache(maxsize=1024)
def _zeros(numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.zeros(numel, dtype=dtype, device=device)


def _shared_buffer(layout: Layout, tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the buffer whose memory holds the tensors at the layout's offsets, or None."""
    first = tensors[0]
    if type(first) not in (Tensor, nn.Parameter) or len(tensors) == 1:
        return None
    storage, start = first.untyped_storage(), first.storage_offset()
    for slot, x in zip(layout.slots, tensors, strict=True):
        if (
            x.storage_offset() != start + slot.offset
            or x.dtype != first.dtype
            or not x.is_contiguous()
            or x.untyped_storage()._cdata != storage._cdata
        ):
            return None
    if (start + layout.numel) * first.element_size() > storage.nbytes():
        return None
    return first.detach().as_strided((layout.numel,), (1,), start)


class _Join(torch.autograd.Function):
    """Flat buffer as a function of the tensors in its memory."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, layout: Layout, *tensors: Tensor) -> Tensor:
        ctx.layout = layout
        return flat.view_as(flat)

    @staticmethod
    def backward(ctx: Any, d_flat: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *split(ctx.layout, d_flat)


class _Split(torch.autograd.Function):
    """Tensors in a flat buffer's memory as functions of the buffer."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        ctx.layout = layout
        return tuple(aliases(layout, flat))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return join(ctx.layout, grads), None


class _FlatCopies(torch.autograd.Function):
    """Copies of tensors in one buffer. Tensors whose copy is unused get grad None."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, device: torch.device | str | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.devices = [x.device for x in tensors]
        return tuple(aliases(layout, layout.concatenate(tensors).to(device=device)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, *(None if g is None else g.to(d) for g, d in zip(grads, ctx.devices, strict=True))
