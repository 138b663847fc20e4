"""Plots of a run's metrics."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, Protocol

from .style import LINES, finish, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3
_VALIDATION = "validation_"
_STEP = "step"  # key of a line's meta-step


class HasMetrics(Protocol):
    """Run whose lines of metrics can be read, such as a `RunFolder`."""

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return a mapping a line: `step` and numbers."""


def curves(run: str | os.PathLike[str] | HasMetrics) -> Figure:
    """Plot a run's metrics over meta-steps, each in a panel of its own, those of validation beside those of training.

    Args:
        run: the folder that `train` or a `Trainer` wrote, or its `RunFolder`.

    Raises:
        FileNotFoundError: the folder has no metrics.
    """
    folder: HasMetrics
    if isinstance(run, str | os.PathLike):
        from ..training.run_folder import RunFolder  # slow to import, and above this

        folder = RunFolder(run)
    else:
        folder = run
    series: dict[str, list[tuple[int, float]]] = {}
    for line in folder.read_metrics():
        for name, value in line.items():
            if name != _STEP and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(name, []).append((line[_STEP], value))
    if not series:
        place = run if isinstance(run, str | os.PathLike) else getattr(run, "path", run)
        raise FileNotFoundError(f"expected metrics of a run in {place}, got none; train writes metrics.jsonl there")
    names = list(dict.fromkeys(name.removeprefix(_VALIDATION) for name in series))
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = panels(rows, columns)
    for place, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, place + 1)
        for kind, key, colour in (("training", name, LINES[0]), ("validation", _VALIDATION + name, LINES[1])):
            if key in series:
                steps, values = zip(*series[key], strict=True)
                style = "-" if kind == "training" and len(steps) > 1 else "o-"
                axes.plot(steps, values, style, color=colour, label=kind, linewidth=1, markersize=3)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.legend(fontsize=8, frameon=False)
        finish(axes, "meta-steps")
    return figure
