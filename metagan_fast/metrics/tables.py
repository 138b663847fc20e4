"""Tables of an evaluation as HTML, for reports and notebooks."""

from __future__ import annotations

from ..display.markup import Markup, element, join, number, table
from .results import FIGURES, METHODS, Evaluation, Figure

_DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


def tables(result: Evaluation) -> list[Markup]:
    """Return, for each feature space, the headline's figures, paired differences, and KID by shots and steps."""
    parts = []
    for space in result.spaces:
        rows: list[list[str]] = [
            [
                join(row.method, element("span", METHODS.get(row.method, ""), class_="quiet under")),
                *(_interval(row.figures[space][name], kind.decimals) for name, kind in FIGURES.items()),
            ]
            for row in result.headline
        ]
        head = ["Method", *(kind.heading for kind in FIGURES.values())]
        parts.append(table(f"In the features of the {space}", head, rows, class_="numbers"))
        differences: list[list[str]] = [
            [f"adapted {_MINUS} {name}", number(figure.mean, 3), _range(figure, 3)]
            for name, figure in result.differences[space].items()
        ]
        head = ["Difference", "Mean", "95 % interval"]
        parts.append(table(f"KID, paired over the classes, {space}", head, differences, class_="numbers"))
        if len(result.steps) > 1 or len(result.shots) > 1:
            head, *lines = result.by_steps(space)
            parts.append(table(f"KID by shots and inner steps, {space}", head, lines, class_="numbers"))
    return parts


def meanings() -> Markup:
    """Return a folded list of what the figures mean."""
    kinds = [join(element("dt", kind.heading), element("dd", kind.meaning)) for kind in FIGURES.values()]
    return element("details", element("summary", "What the figures mean"), element("dl", *kinds))


def _interval(figure: Figure, decimals: int) -> str:
    """Return the mean above its interval."""
    if figure.low is None:
        return number(figure.mean, decimals)
    return join(number(figure.mean, decimals), element("span", _range(figure, decimals), class_="quiet under"))


def _range(figure: Figure, decimals: int) -> str:
    low, high = (_DASH if end is None else number(end, decimals) for end in (figure.low, figure.high))
    return f"{low} to {high}"
