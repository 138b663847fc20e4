"""HTML elements as text that is well-formed XML, too; text and attributes are escaped."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence

from PIL import Image

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML excludes
_VOID = {"img", "meta", "path", "line", "rect", "circle", "wbr"}
_REPLACEMENT = "\ufffd"


class Markup(str):
    """Text that is markup already."""


def escape(text: str) -> Markup:
    """Return text as markup; control characters and lone surrogates become U+FFFD."""
    return text if isinstance(text, Markup) else Markup(html.escape(_ILLEGAL.sub(_REPLACEMENT, text)))


def join(*children: str | None) -> Markup:
    """Return the children one after another; None is left out."""
    return Markup("".join(escape(child) for child in children if child is not None))


def element(name: str, /, *children: str | None, **attributes: str | float | None) -> Markup:
    """Return an element.

    Args:
        name: of the element.
        children: text or markup; None is left out.
        attributes: `class_` stands for `class`, `aria_label` for `aria-label`; None is left out.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opening = name + "".join(f' {key}="{escape(str(value))}"' for key, value in given.items())
    if name in _VOID:
        return Markup(f"<{opening}/>")
    return Markup(f"<{opening}>{join(*children)}</{name}>")


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, class_: str | None = None) -> Markup:
    """Return a table in a frame that scrolls by itself; the first cell of each row is its header."""
    cells = [element("th", text, scope="col") for text in head]
    lines = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in others))
        for first, *others in rows
    ]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *cells)),
        element("tbody", *lines),
        class_=class_,
    )
    return scroller(whole, caption)


def scroller(content: Markup, label: str) -> Markup:
    """Return a frame in which wide content scrolls sideways, by keyboard too."""
    return element("div", content, class_="scroller", role="region", tabindex="0", aria_label=label)


def inline(png: bytes, alt: str) -> Markup:
    """Return a PNG file as an `img` element that holds it."""
    width, height = Image.open(io.BytesIO(png)).size
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return element("img", src=source, alt=alt, width=width, height=height)


def saved(place: str) -> Markup:
    """Return a line about where the files of a section are."""
    return element("p", "In the run\N{RIGHT SINGLE QUOTATION MARK}s folder: ", element("code", place), class_="quiet")


def plural(count: int, one: str, many: str | None = None) -> str:
    """Return a count with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def number(value: float, decimals: int | None = None) -> str:
    """Format a value with four significant digits, or a number of decimals, and a true minus sign."""
    return (f"{value:.4g}" if decimals is None else f"{value:.{decimals}f}").replace("-", "\N{MINUS SIGN}")
