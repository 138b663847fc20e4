"""Colours, sizes and axes of all plots; Matplotlib is imported with the first figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .canvas import Canvas

LINES = ("#1b6ca8", "#c2571a", "#3f7d44", "#7a4fa3", "#6b6b6b")  # tell apart in print and to the colour-blind


def canvas(width: float, height: float) -> Canvas:
    """Return an empty figure of a size in inches."""
    from .canvas import Canvas  # slow to import

    return Canvas(figsize=(width, height), layout="constrained")


def panels(rows: int, columns: int) -> Canvas:
    """Return an empty figure sized for rows and columns of plots."""
    return canvas(5.2 * columns, 3.1 * rows)


def finish(axes: Axes, label: str) -> None:
    """Set the label below a plot, and its style."""
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
