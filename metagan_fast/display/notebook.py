"""HTML by which objects show themselves in notebooks: small, without scripts, readable on light and on dark pages.

Text inherits the page's colours, and gaps between images are transparent. Where a page strips the style sheet, tables
and images remain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor
from torch.nn import functional as F

from . import image_grids
from .markup import Markup, element, inline

LIMIT = 300_000
"""Most bytes of an object that can show fewer images."""

_LARGEST_SIDE = 64  # pixels of an image; larger ones are reduced
_STYLE = Markup(
    ".metagan-fast table{border-collapse:collapse;margin:.4em 0}"
    ".metagan-fast th,.metagan-fast td{text-align:left;vertical-align:middle;padding:.25em .6em}"
    ".metagan-fast caption{caption-side:top;text-align:left}"
    ".metagan-fast img{display:block;max-width:none;margin:0;image-rendering:pixelated;background:none}"
    ".metagan-fast .under{display:block;font-size:smaller;opacity:.75}"
    ".metagan-fast .scroller{overflow-x:auto}"
)


def fragment(title: str, *children: str | None) -> Markup:
    """Return an object's HTML: its title, then the children; None is left out."""
    heading = element("p", element("strong", title))
    return element("div", element("style", _STYLE), heading, *children, class_="metagan-fast")


Shown = TypeVar("Shown", str, bytes)


def fitting(make: Callable[[int], Shown], count: int) -> Shown:
    """Return `make(count)`, with half as many things, and half again, until it is no longer than `LIMIT`."""
    made = make(count)
    while len(made) > LIMIT and count > 1:
        count //= 2
        made = make(count)
    return made


def strip(images: Tensor, alt: str) -> Markup:
    """Return a row of images `[n, C, H, W]` in [-1, 1] as an element; values that are not finite are grey."""
    if not is_drawable(images):
        return element("span", f"{len(images)} images of {images.shape[1]} channels")
    return inline(image_grids.strip(reduced(images)), alt)


def is_drawable(images: Tensor) -> bool:
    """Return whether images `[..., C, H, W]` are grey or coloured; others have no PNG file."""
    return images.shape[-3] in (1, 3)


def reduced(images: Tensor) -> Tensor:
    """Return images `[n, C, H, W]` on the CPU in float32, finite, no side longer than 64 pixels."""
    images = images.detach().float().cpu().nan_to_num(0.0, 0.0, 0.0)
    factor = _LARGEST_SIDE / max(images.shape[-2:])
    if factor >= 1:
        return images
    size = [max(1, round(side * factor)) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)
