"""Reports on plans: a table of operations, and the arithmetic of an inner step."""

from __future__ import annotations

from collections.abc import Sequence

from ....flat import FlatLayout
from .types import Plan

_HEADER = ("layer", "operation", "output", "parameters", "multiply-adds")


def describe_plan(plan: Plan, layout: FlatLayout) -> str:
    """Return a table of a plan's operations: layer, kind, output shape, parameters and multiply-adds an image."""
    sizes = {slot.offset: slot.numel for slot in layout.slots}
    rows: list[tuple[str, ...]] = [_HEADER]
    for operation in plan.operations:
        count = sum(sizes[offset] for offset in operation.settings.parameters if offset is not None)
        numbers = (f"{number:,}" if number else "" for number in (count, plan.multiply_adds(operation)))
        rows.append((operation.name, operation.settings.title, _shape(plan.values[operation.output]), *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def inner_step_multiply_adds(
    generator: Plan,
    discriminator: Plan,
    real: int,
    generated: int,
    points: int,
    *,
    critic_steps: int = 1,
    generator_steps: int = 1,
    at_images: bool = False,
    relativistic: bool = False,
) -> int:
    """Return the multiply-adds of one inner step of one task, on so many images and penalty points an update.

    Discriminator update: generator forward; forward of real and fake images; their weight gradients and, except in
    the first layer, data gradients. A gradient penalty adds, at its own points: forward, the gradient by the image, the
    tangent along it and one reverse pass (two weight gradients and a data gradient). At the loss's images themselves
    (`at_images`) it shares their forward and data gradients, and adds the others and one weight gradient. Generator
    update: forward through both networks, of real images too in a `relativistic` loss, data gradients back through the
    discriminator, weight and data gradients of the generator.
    """
    (g, g_first), (d, d_first) = _costs(generator), _costs(discriminator)
    update_d = generated * g + (real + generated) * (2 * d + (d - d_first))
    update_d += points * (3 * d if at_images else 5 * d + (d - d_first))
    update_g = generated * (2 * g + (g - g_first) + 2 * d) + (real * d if relativistic else 0)
    return critic_steps * update_d + generator_steps * update_g


def _costs(plan: Plan) -> tuple[int, int]:
    """Return the multiply-adds of all operations, and of the operations that read the input."""
    costs = [(plan.multiply_adds(op), plan.input in op.inputs) for op in plan.operations]
    return sum(cost for cost, _ in costs), sum(cost for cost, reads_input in costs if reads_input)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    texts = [text.ljust(width) for text, width in zip(row[:2], widths[:2], strict=True)]
    return "  ".join([*texts, *(text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True))]).rstrip()
