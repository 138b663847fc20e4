"""PNG files of images in [-1, 1], single or in grids."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .. import checkpoint

SAMPLE_GRID = "grid.png"

_GAP = 2  # pixels between images, before enlarging
_BACKGROUND = 0.25
_SHOWN_SIDE = 64  # pixels; grids enlarge smaller images by a whole factor to about this side


Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge in pixels."""


def to_bytes(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as uint8, rounded and clamped, in the same shape."""
    return ((images.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(images: Tensor) -> Tensor:
    """Return images `[rows, columns, C, H, W]` laid out with gaps as one image `[C, height, width]`."""
    rows, columns, channels, height, width = images.shape
    padded = F.pad(images.detach().float().cpu(), (0, _GAP, 0, _GAP), value=_BACKGROUND)
    laid_out = padded.permute(2, 0, 3, 1, 4).reshape(channels, rows * (height + _GAP), columns * (width + _GAP))
    return laid_out[:, :-_GAP, :-_GAP]


def sample_grid(images: Tensor) -> Tensor:
    """Lay out `[n, C, H, W]` in a grid about as wide as high."""
    return grid(rows_of(images, _BACKGROUND))


def rows_of(images: Tensor, blank_value: float = float("nan")) -> Tensor:
    """Return `[n, C, H, W]` as `[rows, columns, C, H, W]`, about as many as columns, filled up with a value."""
    columns = int(np.ceil(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    missing = images.new_full((rows * columns - len(images), *images.shape[1:]), blank_value)
    return torch.cat([images, missing]).unflatten(0, (rows, columns))


def blank(images: Tensor, count: int) -> Tensor:
    """Return `count` images in the colour of the gaps, shaped and kept as `images` `[n, C, H, W]`."""
    return images.new_full((count, *images.shape[1:]), _BACKGROUND)


def beside(grids: list[Tensor]) -> Tensor:
    """Lay out grids `[C, height, width]` of one height side by side."""
    return _stack(grids, dim=2, gap=5 * _GAP)


def task_grid(support: Tensor, generated: Tensor, blocks: int = 4) -> Tensor:
    """Lay out one block a task: its support images in the top row, generated ones below.

    Args:
        support: `[tasks, shots, C, H, W]`.
        generated: `[tasks, n, C, H, W]`; as many whole rows of `shots` are shown as n allows.
        blocks: blocks side by side before the next line of blocks.

    Returns:
        One image `[C, height, width]`.
    """
    shots = support.shape[1]
    rows = generated.shape[1] // shots
    parts = []
    for real, fake in zip(support.cpu(), generated[:, : rows * shots].cpu(), strict=True):
        block = [grid(real[None])]
        if rows:
            block.append(grid(fake.unflatten(0, (rows, shots))))
        parts.append(_stack(block, dim=1, gap=2 * _GAP))
    parts += [torch.full_like(parts[0], _BACKGROUND)] * (-len(parts) % min(blocks, len(parts)))
    lines = [beside(parts[i : i + blocks]) for i in range(0, len(parts), blocks)]
    return _stack(lines, dim=1, gap=5 * _GAP)


def task_grid_rows(
    size: tuple[int, int], tasks: int, shots: int, rows: int, shown: int, blocks: int = 4
) -> list[list[Box]]:
    """Return where the rows of images are in the PNG file of a `task_grid`.

    Args:
        size: height and width of an image.
        tasks, shots, rows: of the grid; rows of generated images.
        shown: images of a row to include, from the left.
        blocks: as for `task_grid`.

    Returns:
        For each task the boxes of its support images and of each row of generated ones.
    """
    (height, width), factor = size, enlargement(size[1])
    block_height = height + 2 * _GAP + rows * (height + _GAP) - _GAP
    block_width = shots * (width + _GAP) - _GAP
    tops = [0, *(height + 2 * _GAP + row * (height + _GAP) for row in range(rows))]
    found = []
    for task in range(tasks):
        line, place = divmod(task, blocks)
        left, above = place * (block_width + 5 * _GAP), line * (block_height + 5 * _GAP)
        right = left + shown * (width + _GAP) - _GAP
        found.append(
            [(left * factor, (above + top) * factor, right * factor, (above + top + height) * factor) for top in tops]
        )
    return found


def png(image: Tensor) -> bytes:
    """Return one image `[C, H, W]` in [-1, 1], C 1 or 3, as a PNG file."""
    data = io.BytesIO()
    array = to_bytes(image).permute(1, 2, 0).numpy()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(data, format="PNG")
    return data.getvalue()


def enlargement(side: int) -> int:
    """Return the factor by which the PNG file of a grid of images of side `side` is enlarged."""
    return max(1, round(_SHOWN_SIDE / side))


def grid_png(laid_out: Tensor, side: int) -> bytes:
    """Return a grid of images of side `side` as a PNG file, enlarged by a whole factor if small."""
    factor = enlargement(side)
    return png(laid_out.repeat_interleave(factor, -1).repeat_interleave(factor, -2))


def strip(images: Tensor) -> bytes:
    """Return a row of images `[n, C, H, W]` as a PNG file with transparent gaps."""
    picture = Image.open(io.BytesIO(grid_png(grid(images[None]), images.shape[-1])))
    return with_transparent_gaps(picture, len(images), images.shape[-2:])


def with_transparent_gaps(picture: Image.Image, count: int, size: Sequence[int]) -> bytes:
    """Return a row of `count` images of `size` pixels, as `grid_png` enlarges it, as a PNG file."""
    filled = grid(torch.ones(1, count, 1, *size))
    mask = Image.open(io.BytesIO(grid_png(filled, size[1])))
    picture.putalpha(mask.point([0] * 255 + [255]))
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()


def save_grid(path: str | os.PathLike[str], laid_out: Tensor, side: int) -> None:
    """Write the result of `grid_png`, atomically."""
    checkpoint.write_bytes(path, grid_png(laid_out, side))


def sample_names(count: int) -> list[str]:
    """Return the file names of `count` samples, in order, and of their grid."""
    digits = len(str(count - 1))
    return [*(f"{index:0{digits}}.png" for index in range(count)), SAMPLE_GRID]


def sample_files(samples: Tensor) -> dict[str, bytes]:
    """Return PNG files of samples `[n, C, H, W]` and of their grid, by name."""
    whole = grid_png(sample_grid(samples), samples.shape[-1])
    return dict(zip(sample_names(len(samples)), [*map(png, samples), whole], strict=True))


def _stack(parts: list[Tensor], dim: int, gap: int) -> Tensor:
    """Concatenate images along a side with a gap between."""
    shape = list(parts[0].shape)
    shape[dim] = gap
    between = torch.full(shape, _BACKGROUND)
    joined = [piece for part in parts for piece in (between, part)][1:]
    return torch.cat(joined, dim)
