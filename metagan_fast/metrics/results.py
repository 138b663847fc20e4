"""Result of an evaluation: rows of figures with intervals, as JSON and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .._utils import coerce

METHODS = {
    "adapted": "the meta-trained GAN, adapted to the support images",
    "unadapted": "its initialisation as it is",
    "random": "a randomly initialised GAN, adapted in the same way",
    "copies": "copies of the support images",
    "augmented copies": "copies shifted, turned and scaled as lowers their KID most on validation classes",
    "nearest class": "real images of the nearest training class",
    "wrong class": "real images of another held-out class",
    "real": "other real images of the class: the floor",
}
"""Rows of an evaluation."""


class FigureKind(NamedTuple):
    """Meaning of a figure."""

    heading: str
    decimals: int
    meaning: str


FIGURES = {
    "kid": FigureKind("KID", 3, "distance to real images of the same class; lower is better"),
    "density": FigureKind("density", 2, "how densely real images surround the samples; 1 as real ones"),
    "coverage": FigureKind("coverage", 2, "share of the real images that have a sample near; higher is better"),
    "recognisability": FigureKind("recog.", 2, "share of the samples recognised as their class; higher is better"),
    "diversity": FigureKind("diversity", 2, "spread of a class's samples; as real ones is best"),
    "copy_ratio": FigureKind(
        "copy ratio", 2, "distance to the nearest support image over that of real images; near 0 means copies"
    ),
    "pixel_copy_ratio": FigureKind("in pixels", 2, "the same of pixels"),
    "accuracy": FigureKind(
        "accuracy", 3, "of a classifier of the support images and these; beside that of copies, what the samples add"
    ),
    "fid": FigureKind("FID", 1, "distance of all classes' images in one; cannot see images of a wrong class"),
}
"""Figures of a row in one feature space."""

HEADLINE = "kid"


@dataclass(frozen=True)
class Figure:
    """Mean over classes and, if known, its 95 % bootstrap interval over classes."""

    mean: float
    low: float | None = None
    high: float | None = None

    def text(self, decimals: int) -> str:
        """Format as `mean [low, high]`."""
        mean = f"{self.mean:.{decimals}f}"
        return mean if self.low is None else f"{mean} [{self.low:.{decimals}f}, {self.high:.{decimals}f}]"


@dataclass(frozen=True)
class Row:
    """Figures of one method.

    Attributes:
        method: a key of `METHODS`.
        shots: support images a class.
        steps: inner steps; None for a method without adaptation.
        figures: space -> name of `FIGURES` -> figure.
        kid_per_class: space -> KID of each class, averaged over draws.
    """

    method: str
    shots: int
    steps: int | None
    figures: Mapping[str, Mapping[str, Figure]]
    kid_per_class: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`; the first number of shots and of steps is the headline.

    Attributes:
        classes: the judged classes.
        rows: by number of shots, in the order of `METHODS`, then by steps.
        differences: space -> other method -> paired difference in KID, adapted minus other, of the headline.
        settings: what the figures depend on, plain data.
    """

    classes: tuple[str, ...]
    rows: tuple[Row, ...]
    differences: Mapping[str, Mapping[str, Figure]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spaces(self) -> tuple[str, ...]:
        """Names of the feature spaces; the first is the headline's."""
        return tuple(self.rows[0].figures)

    @property
    def shots(self) -> tuple[int, ...]:
        """Numbers of support images, the headline's first."""
        return tuple(dict.fromkeys(row.shots for row in self.rows))

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers of inner steps of the adapted GAN, the headline's first."""
        return tuple(dict.fromkeys(row.steps for row in self.rows if row.method == "adapted" and row.steps is not None))

    @property
    def headline(self) -> tuple[Row, ...]:
        """Rows of the first number of shots and of steps."""
        return tuple(row for row in self.rows if row.shots == self.shots[0] and self._is_first(row))

    def _is_first(self, row: Row) -> bool:
        return row.method != "adapted" or row.steps == self.steps[0]

    def row(self, method: str, *, shots: int | None = None, steps: int | None = None) -> Row:
        """Return a method's row, of the headline unless told otherwise; KeyError if there is none."""
        shots = self.shots[0] if shots is None else shots
        for row in self.rows:
            if (row.method, row.shots) == (method, shots) and (steps is None or row.steps in (None, steps)):
                return row
        raise KeyError(f"no row of {method} with {shots} shots" + ("" if steps is None else f" and {steps} steps"))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        return {
            "classes": list(self.classes),
            "rows": [
                {
                    "method": row.method,
                    "shots": row.shots,
                    "steps": row.steps,
                    "figures": {
                        space: {name: vars(figure) for name, figure in figures.items()}
                        for space, figures in row.figures.items()
                    },
                    "kid_per_class": {space: list(values) for space, values in row.kid_per_class.items()},
                }
                for row in self.rows
            ],
            "differences": {
                space: {name: vars(figure) for name, figure in rows.items()} for space, rows in self.differences.items()
            },
            "settings": dict(self.settings),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Evaluation:
        """Read what `to_dict` returned; ValueError for other data, such as those of earlier versions."""
        try:
            classes = tuple(map(_text, content["classes"]))
            rows = tuple(_row(row, len(classes)) for row in content["rows"])
            found = cls(classes, rows, _figures(content["differences"]), dict(content["settings"]))
            for shots in found.shots:
                for steps in found.steps:
                    found.row("adapted", shots=shots, steps=steps)
            for space in found.spaces:
                _ = found.differences[space], [(row.figures[space], row.kid_per_class[space]) for row in rows]
            found.row("adapted")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"expected the result of an evaluation, got other data ({error!r})") from error
        return found

    def table(self) -> str:
        """Return the headline's figures as text, a table a feature space, then KID by shots and steps."""
        parts = []
        for space in self.spaces:
            rows = [["", *(kind.heading for kind in FIGURES.values())]]
            rows += [
                [row.method, *(row.figures[space][name].text(kind.decimals) for name, kind in FIGURES.items())]
                for row in self.headline
            ]
            parts.append(f"In the features of the {space}:\n{columns(rows)}")
            differences = [
                [f"adapted - {name}", f"{figure.mean:+.3f}", f"[{figure.low:+.3f}, {figure.high:+.3f}]"]
                for name, figure in self.differences[space].items()
            ]
            parts.append(f"KID, paired over {len(self.classes)} classes:\n{columns(differences)}")
        if len(self.shots) > 1 or len(self.steps) > 1:
            parts += [
                f"KID by shots and inner steps, {space}:\n{columns(self.by_steps(space))}" for space in self.spaces
            ]
        return "\n\n".join(parts)

    def by_steps(self, space: str) -> list[list[str]]:
        """Return KID of the adapted GAN by shots and steps, beside the other methods, as rows of text with a head."""
        steps = sorted(self.steps)
        judged = {(row.method, row.shots) for row in self.rows}
        methods = [name for name in METHODS if name != "adapted" and all((name, n) in judged for n in self.shots)]
        rows = [["shots", *(f"{n} steps" for n in steps), *methods]]
        for shots in sorted(self.shots):
            found = [self.row("adapted", shots=shots, steps=n) for n in steps]
            found += [self.row(method, shots=shots) for method in methods]
            rows.append([str(shots), *(f"{row.figures[space][HEADLINE].mean:.3f}" for row in found)])
        return rows

    def _repr_html_(self) -> str:
        """Show all tables in a notebook."""
        from ..display.notebook import fragment  # slow to import
        from .tables import meanings, tables

        headline = f"{self.shots[0]} shots, {self.steps[0]} inner steps"
        return fragment(f"Evaluation on {len(self.classes)} classes: {headline}", *tables(self), meanings())

    def class_table(self) -> str:
        """Return the headline's KID class by class as text, in the first feature space."""
        space, rows = self.spaces[0], self.headline
        lines = [["class", *(row.method for row in rows)]]
        for index, name in enumerate(self.classes):
            lines.append([name, *(f"{row.kid_per_class[space][index]:.3f}" for row in rows)])
        return columns(lines)


def _row(content: Mapping[str, Any], classes: int) -> Row:
    figures = _figures(content["figures"])
    for named in figures.values():
        _ = [named[name] for name in FIGURES]
    kids = {space: tuple(map(float, values)) for space, values in content["kid_per_class"].items()}
    if any(len(values) != classes for values in kids.values()):
        raise ValueError(f"expected KID of {classes} classes")
    adapts = content["steps"] is not None or content["method"] == "adapted"
    steps = coerce.count("steps", content["steps"]) if adapts else None
    return Row(_text(content["method"]), coerce.count("shots", content["shots"]), steps, figures, kids)


def _figures(content: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Figure]]:
    return {space: {name: _figure(**values) for name, values in row.items()} for space, row in content.items()}


def _figure(mean: Any, low: Any = None, high: Any = None) -> Figure:
    if (low is None) != (high is None):
        raise ValueError("expected both ends of an interval")
    return Figure(float(mean)) if low is None else Figure(float(mean), float(low), float(high))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text with the first column on the left and the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(_aligned(row, widths)).rstrip() for row in rows)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for index, (text, width) in enumerate(zip(row, widths, strict=True)):
        yield text.ljust(width) if index == 0 else text.rjust(width)
