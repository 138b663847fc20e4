"""Curves of metrics over meta-steps, as inline SVG."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from ...display.markup import Markup, element, number

_POINTS = 120  # of a curve; longer ones are averaged in bins
_MARKED = 40  # most validations with a marker each
_LAST_STEP = 2**53  # beyond, float64 cannot tell steps apart
_LARGEST = sys.float_info.max
_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 8, 24
_TICKS = 5


@dataclass(frozen=True)
class Series:
    """Values of a metric; those that are not finite are left out."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


class Bin(NamedTuple):
    """Consecutive values: mean meta-step, mean, and the range of the middle 90 % or a few more."""

    step: float
    mean: float
    low: float
    high: float


def read_series(lines: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """Return the series of each metric in the lines of `metrics.jsonl`; other lines and values are ignored."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in lines:
        step = line.get("step") if isinstance(line, Mapping) else None
        if not isinstance(step, int) or not 0 <= step <= _LAST_STEP:
            continue
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float) and abs(value) <= _LARGEST:  # NaN is not
                steps, values = found.setdefault(name, ([], []))
                steps.append(step)
                values.append(float(value))
    return {name: Series(tuple(steps), tuple(values)) for name, (steps, values) in found.items()}


def binned(series: Series, most: int = _POINTS) -> list[Bin]:
    """Return the series in at most `most` bins of equally many values."""
    count = len(series.values)
    bins = min(count, most)
    edges = [index * count // bins for index in range(bins + 1)] if bins else []
    found = []
    for start, stop in pairwise(edges):
        steps, values = series.steps[start:stop], sorted(series.values[start:stop])
        cut = len(values) // 20
        found.append(Bin(sum(steps) / len(steps), sum(values) / len(values), values[cut], values[-1 - cut]))
    return found


def ticks(low: float, high: float, about: int = _TICKS) -> list[float]:
    """Return round numbers, 1, 2 or 5 times a power of ten apart, from `low` to `high`."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def chart(title: str, training: Series | None, validation: Series | None, last_step: int) -> Markup:
    """Return a figure of one metric: training as a line in its band, validation as a marked line.

    Args:
        title: of the metric.
        training, validation: at least one of them.
        last_step: right end of the axis.
    """
    series = {name: s for name, s in (("training", training), ("validation", validation)) if s is not None}
    lines = {name: binned(s) for name, s in series.items()}
    low, high = _limits(lines.values())
    axes = _Axes(max(last_step, 1), low, high)
    parts = [axes.grid()]
    for name, bins in lines.items():
        if any(bin.low < bin.high for bin in bins):
            parts.append(element("path", d=axes.band(bins), class_=f"band {name}"))
        parts.append(element("path", d=axes.line(bins), class_=f"line {name}"))
        if name == "validation" and len(bins) <= _MARKED:
            parts += [axes.marker(bin, name) for bin in bins]
    ends = [element("span", f"{name} {number(s.values[-1])}", class_=name) for name, s in series.items()]
    described = [
        f"{name} from {number(s.values[0])} to {number(s.values[-1])}, between {number(min(s.values))} and "
        f"{number(max(s.values))}"
        for name, s in series.items()
    ]
    return element(
        "figure",
        element(
            "figcaption",
            element("strong", title),
            element("span", *ends, class_="ends"),
        ),
        element(
            "svg",
            *parts,
            viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
            role="img",
            aria_label=f"{title} over meta-steps; {'; '.join(described)}",
        ),
        class_="chart",
    )


def _limits(lines: Iterable[Sequence[Bin]]) -> tuple[float, float]:
    """Return limits with a margin around all means and nine in ten ends of the bands."""
    low, high = math.inf, -math.inf
    for bins in lines:
        cut = len(bins) // 10
        low = min(low, *(bin.mean for bin in bins), sorted(bin.low for bin in bins)[cut])
        high = max(high, *(bin.mean for bin in bins), sorted(bin.high for bin in bins)[-1 - cut])
    margin = 0.06 * (high - low) or 0.1 * abs(low) or 1.0
    return low - margin, high + margin


@dataclass(frozen=True)
class _Axes:
    """Map of meta-steps and values to the drawing."""

    last: int
    low: float
    high: float

    def x(self, step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / self.last

    def y(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)  # outliers leave the curve its height
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (self.high - inside) / (self.high - self.low)

    def line(self, bins: Sequence[Bin]) -> str:
        return _path((self.x(bin.step), self.y(bin.mean)) for bin in bins)

    def band(self, bins: Sequence[Bin]) -> str:
        there = [(self.x(bin.step), self.y(bin.high)) for bin in bins]
        back = [(self.x(bin.step), self.y(bin.low)) for bin in reversed(bins)]
        return _path([*there, *back]) + "Z"

    def marker(self, bin: Bin, name: str) -> Markup:
        return element("circle", cx=f"{self.x(bin.step):.1f}", cy=f"{self.y(bin.mean):.1f}", r=2.8, class_=name)

    def grid(self) -> Markup:
        """Return hairlines and numbers of both axes."""
        parts = []
        for value in ticks(self.low, self.high):
            y = f"{self.y(value):.1f}"
            parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y))
            parts.append(element("text", number(value), x=_LEFT - 6, y=y, dy="0.32em", text_anchor="end"))
        for step in ticks(0, self.last):
            if step == int(step):
                x = f"{self.x(step):.1f}"
                parts.append(element("text", _thousands(int(step)), x=x, y=_HEIGHT - 6, text_anchor="middle"))
        return element("g", *parts, class_="axes", aria_hidden="true")


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _thousands(step: int) -> str:
    return f"{step // 1000}k" if step >= 10_000 and step % 1000 == 0 else str(step)
