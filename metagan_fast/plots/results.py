"""Plots of an evaluation and of the benchmark of quality, as PNG files."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..metrics.results import HEADLINE, Evaluation, Figure, Row
from .style import LINES, finish, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SERIES = "#1b6ca8"
_QUIET = "#8a8a8a"


def evaluation(result: Evaluation) -> bytes:
    """Plot KID per class of each method, and of the adapted GAN by inner steps and shots; return a PNG.

    Bars and bands are 95 % bootstrap intervals over classes; a row of panels shows one feature space.
    """
    by_steps = len(result.steps) > 1 or len(result.shots) > 1
    figure = panels(len(result.spaces), 1 + by_steps)
    for space, row in zip(result.spaces, figure.subplots(len(result.spaces), 1 + by_steps, squeeze=False), strict=True):
        _methods(row[0], result, space)
        if by_steps:
            _steps(row[1], result, space)
    return figure.png()


class QualityPoint(Protocol):
    """KID of one run at one moment, such as a record of the quality benchmark."""

    @property
    def contender(self) -> str: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def space(self) -> str | None: ...
    @property
    def minutes(self) -> float | None: ...
    @property
    def kid(self) -> float | None: ...


def quality(points: Sequence[QualityPoint]) -> bytes:
    """Plot KID against minutes, both logarithmic: the median of seeds in a band from the least to the most; a PNG."""
    judged = [point for point in points if point.kid is not None and point.minutes is not None]
    spaces = list(dict.fromkeys(point.space for point in judged))
    figure = panels(1, max(1, len(spaces)))
    for axes, space in zip(figure.subplots(1, max(1, len(spaces)), squeeze=False)[0], spaces, strict=False):
        names = dict.fromkeys(point.contender for point in judged)
        for colour, name in zip(LINES, names, strict=False):
            runs: dict[int | None, list[tuple[float, float]]] = {}
            for point in judged:
                if (point.contender, point.space) == (name, space):
                    assert point.minutes is not None and point.kid is not None
                    runs.setdefault(point.seed, []).append((point.minutes, point.kid))
            moments = [list(zip(*at, strict=True)) for at in zip(*runs.values(), strict=False)]
            minutes = [statistics.median(times) for times, _ in moments]
            axes.plot(minutes, [statistics.median(kids) for _, kids in moments], "o-", color=colour, label=name)
            low, high = ([end(kids) for _, kids in moments] for end in (min, max))
            axes.fill_between(minutes, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylabel("KID per class")
        axes.set_title(str(space), fontsize=10)
        axes.legend(fontsize=8, frameon=False)
        finish(axes, "minutes")
    return figure.png()


def _methods(axes: Axes, result: Evaluation, space: str) -> None:
    """Draw the headline's KID of each method as a point with its interval."""
    rows = result.headline
    for index, row in enumerate(rows):
        figure = _kid(row, space)
        colour = _SERIES if row.method == "adapted" else _QUIET
        axes.errorbar(figure.mean, index, xerr=_bars(figure), fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(rows)), [row.method for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_title(f"{space}: {result.shots[0]} shots, {result.steps[0]} inner steps", fontsize=10)
    finish(axes, "KID per class")


def _steps(axes: Axes, result: Evaluation, space: str) -> None:
    """Draw KID of the adapted GAN over inner steps, a line a number of shots, and the copies as dashes."""
    steps = sorted(result.steps)
    for colour, shots in zip(LINES, sorted(result.shots), strict=False):
        figures = [_kid(result.row("adapted", shots=shots, steps=n), space) for n in steps]
        axes.plot(steps, [figure.mean for figure in figures], "o-", color=colour, label=f"{shots} shots")
        low, high = ([getattr(figure, end) for figure in figures] for end in ("low", "high"))
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        copies = _kid(result.row("copies", shots=shots), space)
        axes.axhline(copies.mean, color=colour, linestyle="--", linewidth=1, label=f"copies of {shots}")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("KID per class")
    axes.legend(fontsize=8, frameon=False, ncols=2)
    axes.set_title(f"{space}: by inner steps", fontsize=10)
    finish(axes, "inner steps")


def _kid(row: Row, space: str) -> Figure:
    return row.figures[space][HEADLINE]


def _bars(figure: Figure) -> list[list[float]]:
    """Return the distances from the mean to both ends of the interval, as Matplotlib takes them."""
    low, high = (figure.mean if end is None else end for end in (figure.low, figure.high))
    return [[max(0.0, figure.mean - low)], [max(0.0, high - figure.mean)]]
