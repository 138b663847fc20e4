"""One flat buffer for all parameters of a module, and its named views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ._utils.modules import copy_module

ALIGNMENT = 32
"""Offsets and sizes are multiples of this many elements, whatever the dtype."""


@dataclass(frozen=True)
class Slot:
    """Position of one parameter in the buffer: `numel` elements from `offset`, zero-padded to ALIGNMENT.

    `names` holds every name of the parameter (several when it is tied), `name` is the first of them.
    """

    name: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    offset: int
    numel: int


@dataclass(frozen=True)
class FlatLayout:
    """Layout of a module's parameters in one buffer, `[numel]`, or in one row a task, `[tasks, numel]`.

    Parameters lie in the order of `named_parameters()`, each in logical (row-major) order whatever its
    strides in the module. Offsets and `numel` are multiples of 32 elements, the same for every dtype; the
    padding is zero. A parameter that the module holds under several names (tied weights) has one slot.
    Buffers have none.

    Example:
        >>> from torch import nn
        >>> from metagan_fast import FlatLayout
        >>> model = nn.Linear(3, 2)
        >>> layout = FlatLayout.from_module(model)
        >>> [(slot.name, slot.offset, slot.numel) for slot in layout.slots], layout.numel
        ([('weight', 0, 6), ('bias', 32, 2)], 64)
        >>> flat = layout.flatten(model)
        >>> layout.bind(model, flat)  # from here on the parameters are views of the buffer
        >>> _ = flat.zero_()
        >>> model.bias.tolist()
        [0.0, 0.0]
        >>> adapted = flat.repeat(5, 1)  # one row a task
        >>> layout.views(adapted)["weight"].shape
        torch.Size([5, 2, 3])
    """

    slots: tuple[Slot, ...]
    numel: int

    @classmethod
    def from_module(cls, module: nn.Module) -> FlatLayout:
        """Lay out the parameters of `module`.

        Two names are tied when they hold the same `nn.Parameter` object, as everywhere in torch.nn.

        Raises:
            ValueError: parameters of several dtypes or devices, complex, integer or frozen ones
                (`requires_grad=False`; they would be trained), or lazy ones without a shape.
        """
        slots = []
        end = 0
        for parameter, names in _named_parameters(module):
            shape, numel = tuple(parameter.shape), parameter.numel()
            slots.append(Slot(names[0], tuple(names), shape, end, numel))
            end += -(-numel // ALIGNMENT) * ALIGNMENT
        return cls(tuple(slots), end)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Offset of each slot."""
        return tuple(slot.offset for slot in self.slots)

    @cached_property
    def _split(self) -> tuple[list[int], list[int]]:
        """Split sizes that cover the buffer, padding included, and the index of each slot among them."""
        sizes: list[int] = []
        chunks: list[int] = []
        ends = (*self.offsets, self.numel)[1:]
        for slot, end in zip(self.slots, ends, strict=True):
            chunks.append(len(sizes))
            sizes.append(slot.numel)
            if padding := end - slot.offset - slot.numel:
                sizes.append(padding)
        return sizes, chunks

    @cached_property
    def segment_ends(self) -> Tensor:
        """End of each slot, its padding included, int64 `[slots]` on the CPU."""
        return torch.tensor([*self.offsets[1:], self.numel], dtype=torch.int64)

    def segment_ends_on(self, device: torch.device) -> Tensor:
        """Return `segment_ends` on a device; the copy is kept, since a captured graph may read it at any time."""
        if device.type == "cpu":
            return self.segment_ends
        if device not in self._segment_ends:
            self._segment_ends[device] = self.segment_ends.to(device)
        return self._segment_ends[device]

    @cached_property
    def _segment_ends(self) -> dict[torch.device, Tensor]:
        return {}

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """View a flat buffer as the parameters, without a copy.

        Differentiable to any order and under torch.func: one split, so that the backward is one
        concatenation.

        Args:
            flat: `[numel]` or `[tasks, numel]`.

        Returns:
            `{slot.name: [*shape]}` or `{slot.name: [tasks, *shape]}`. For a tied parameter the key is its
            first name, which `torch.func.functional_call` ties again.

        Raises:
            ValueError: `flat` has another shape.
        """
        self._check(flat)
        if not self.slots:
            return {}
        sizes, chunks = self._split
        parts = flat.split_with_sizes(sizes, dim=-1)
        rows = flat.shape[:-1]
        return {slot.name: parts[i].view((*rows, *slot.shape)) for slot, i in zip(self.slots, chunks, strict=True)}

    def flatten(
        self,
        source: nn.Module | Mapping[str, Tensor],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Copy parameters into a new flat buffer, padding zero.

        Args:
            source: a module with this layout (its values are copied, no gradient flows), or a mapping from
                the name of each slot to a tensor `[*shape]` or, all of them, `[tasks, *shape]`
                (differentiable).
            dtype: of the result; by default the parameters' own.
            device: of the result; by default the parameters' own.

        Returns:
            `[numel]` or `[tasks, numel]`, contiguous.

        Raises:
            ValueError: names, shapes or dtypes do not fit the layout.
        """
        if isinstance(source, nn.Module):
            source = {slot.name: parameter.detach() for slot, parameter in self._parameters(source)}
        names = {slot.name for slot in self.slots}
        if names != source.keys():
            missing, unknown = sorted(names - source.keys()), sorted(source.keys() - names)
            raise ValueError(f"expected one tensor for each slot of the layout; missing {missing}, unknown {unknown}")
        if not self.slots:
            return torch.zeros(0, dtype=dtype, device=device)

        first = source[self.slots[0].name]
        rows = tuple(first.shape[: first.ndim - len(self.slots[0].shape)])
        kind = dtype or first.dtype
        padding = first.new_zeros((*rows, ALIGNMENT), dtype=kind)
        parts = []
        for slot in self.slots:
            value = source[slot.name]
            if len(rows) > 1 or tuple(value.shape) != rows + slot.shape:
                raise ValueError(
                    f"expected shape {list(slot.shape)} for {slot.name!r}, or [tasks, ...] for all; "
                    f"got {list(value.shape)}"
                )
            if dtype is None and value.dtype != kind:
                raise ValueError(f"expected {kind} for {slot.name!r} as for the others, got {value.dtype}; pass dtype=")
            parts.append(value.to(kind).reshape((*rows, slot.numel)))
            if slot.numel % ALIGNMENT:
                parts.append(padding[..., slot.numel % ALIGNMENT :])
        return torch.cat(parts, dim=-1).to(device=device)

    def expand(self, per_tensor: Tensor) -> Tensor:
        """Repeat one value a slot over the slot's elements; differentiable; zero in the padding.

        Args:
            per_tensor: `[slots]` or `[tasks, slots]`, in the order of `slots`.

        Returns:
            `[numel]` or `[tasks, numel]`.
        """
        if per_tensor.ndim not in (1, 2) or per_tensor.shape[-1] != len(self.slots):
            raise ValueError(
                f"expected [slots] or [tasks, slots] with {len(self.slots)} slots, got {list(per_tensor.shape)}"
            )
        rows = per_tensor.shape[:-1]
        if not self.slots:
            return per_tensor.new_zeros((*rows, 0))
        values = {
            slot.name: value.reshape((*rows, *[1] * len(slot.shape))).expand((*rows, *slot.shape))
            for slot, value in zip(self.slots, per_tensor.unbind(-1), strict=True)
        }
        return self.flatten(values)

    def bind(self, module: nn.Module, flat: Tensor) -> None:
        """Make the parameters of `module` contiguous views of `flat`: a write to either shows in both.

        The module takes the values of `flat` and drops its own (`bind(module, flatten(module))` keeps
        them). The `nn.Parameter` objects stay, so optimizers and ties that hold them stay valid. A binding
        survives `load_state_dict`; `.to()`, `.double()` and `load_state_dict(assign=True)` may end it: ask
        `is_bound`.

        Args:
            module: a module with this layout, of the dtype and on the device of `flat`.
            flat: `[numel]`, contiguous.

        Raises:
            ValueError: layout, shape, dtype or device differ.
        """
        if tuple(flat.shape) != (self.numel,) or not flat.is_contiguous():
            raise ValueError(
                f"expected a contiguous buffer [{self.numel}], got {list(flat.shape)} with strides {flat.stride()}"
            )
        parameters = self._parameters(module)
        for slot, parameter in parameters:
            if (parameter.dtype, parameter.device) != (flat.dtype, flat.device):
                raise ValueError(
                    f"expected {slot.name!r} to be {flat.dtype} on {flat.device} as the buffer, "
                    f"got {parameter.dtype} on {parameter.device}; flatten the module again"
                )
        views = self.views(flat.detach())
        for slot, parameter in parameters:
            parameter.data = views[slot.name]

    def instantiate(self, module: nn.Module, flat: Tensor) -> nn.Module:
        """Return a copy of `module` with the values of `flat`, whose parameters own their memory.

        The copy is saved and sent in its own size. Tied parameters stay tied; buffers are copied, gradients are not.

        Args:
            module: a module with this layout.
            flat: `[numel]`.

        Raises:
            ValueError: layout or shape differ.
        """
        views = self.views(flat.detach())
        pairs = self._parameters(module)
        values = {id(parameter): views[slot.name].clone() for slot, parameter in pairs}
        return copy_module(module, lambda parameter: values[id(parameter)])

    def is_bound(self, module: nn.Module, flat: Tensor) -> bool:
        """Return whether every parameter of `module` is still the view of `flat` that `bind` made; cheap."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        if sum(len(slot.names) for slot in self.slots) != len(parameters):
            return False
        start, size, dtype, device = flat.data_ptr(), flat.element_size(), flat.dtype, flat.device
        for slot in self.slots:
            for name in slot.names:
                parameter = parameters.get(name)
                if (
                    parameter is None
                    or parameter.shape != slot.shape
                    or parameter.dtype != dtype
                    or parameter.device != device
                    or not parameter.is_contiguous()
                    or (slot.numel > 0 and parameter.data_ptr() != start + slot.offset * size)
                ):
                    return False
        return True

    def _check(self, flat: Tensor) -> None:
        if flat.ndim not in (1, 2) or flat.shape[-1] != self.numel:
            raise ValueError(
                f"expected a flat buffer [{self.numel}] or [tasks, {self.numel}], got {list(flat.shape)}; "
                "is it another module's?"
            )

    def _parameters(self, module: nn.Module) -> list[tuple[Slot, nn.Parameter]]:
        """Pair each slot with its parameter in `module`, which must have this layout."""
        parameters = _named_parameters(module)
        theirs = [(tuple(names), tuple(parameter.shape)) for parameter, names in parameters]
        ours = [(slot.names, slot.shape) for slot in self.slots]
        if ours != theirs:
            different = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), None)
            detail = f"{different[0]} against {different[1]}" if different else f"{len(ours)} against {len(theirs)}"
            raise ValueError(f"expected a module with the parameters of this layout; they differ: {detail}")
        return [(slot, parameter) for slot, (parameter, _) in zip(self.slots, parameters, strict=True)]


def _named_parameters(module: nn.Module) -> list[tuple[nn.Parameter, list[str]]]:
    """Return the distinct parameters of `module`, each with all its names, checked for a buffer."""
    found: dict[int, tuple[nn.Parameter, list[str]]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), (parameter, []))[1].append(name)
    parameters = list(found.values())
    for parameter, (name, *_) in parameters:
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"parameter {name!r} has no shape yet; run the lazy module once on example data")
        if not parameter.is_floating_point():
            raise ValueError(f"expected real floating-point parameters, {name!r} is {parameter.dtype}")
        if parameter.is_inference():
            raise ValueError(
                f"parameter {name!r} was made under torch.inference_mode(), so it cannot be trained; build the module "
                "outside it"
            )
        if not parameter.requires_grad:
            raise ValueError(
                f"parameter {name!r} has requires_grad=False; a flat buffer trains every parameter: "
                "make it a buffer of the module, or requires_grad_(True)"
            )
        first = parameters[0][0]
        if (parameter.dtype, parameter.device) != (first.dtype, first.device):
            raise ValueError(
                f"expected parameters of one dtype on one device; {parameters[0][1][0]!r} is {first.dtype} "
                f"on {first.device}, {name!r} is {parameter.dtype} on {parameter.device}; call module.to()"
            )
    return parameters
