"""Image sizes on the model's grid: multiples of `factor`, at most `max_blocks` tiles of factor x factor pixels.

There are two rules. `shrink` is Qwen's smart resize: round to the grid, shrink images over the budget, and enlarge only
those under the minimum. `fill` also enlarges images up to the budget, which gives a small image more visual tokens.
"""

from __future__ import annotations

from math import ceil, floor, isqrt, sqrt
from typing import Literal

MAX_ASPECT = 200
ResizeRule = Literal["fill", "shrink"]


def grid_size(
    width: int, height: int, rule: ResizeRule, *, factor: int, max_blocks: int, min_blocks: int
) -> tuple[int, int]:
    """(width, height) in pixels that an image of `width` x `height` pixels is resized to.

    ValueError for an empty image, or one whose aspect ratio exceeds 200.
    """
    if min(width, height) < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(
            f"expected sides of at least 1 pixel and an aspect ratio of at most {MAX_ASPECT}, found {width}x{height}"
        )
    if not 1 <= min_blocks <= max_blocks:
        raise ValueError(f"expected 1 <= min_blocks <= max_blocks, found {min_blocks} and {max_blocks}")
    columns, rows = (
        _fill(width, height, max_blocks) if rule == "fill" else _shrink(width, height, factor, max_blocks, min_blocks)
    )
    return columns * factor, rows * factor


def _fill(width: int, height: int, max_blocks: int) -> tuple[int, int]:
    """The largest grid with the image's aspect ratio within the budget: isqrt(blocks * aspect), in exact integers."""
    columns = isqrt(width * max_blocks // height)
    rows = isqrt(height * max_blocks // width)
    return min(max(1, columns), max_blocks), min(max(1, rows), max_blocks)


def _shrink(width: int, height: int, factor: int, max_blocks: int, min_blocks: int) -> tuple[int, int]:
    """Qwen's smart resize in tiles, with its float arithmetic and half-to-even rounding.

    For very thin images that rule exceeds its own budget; then the budget is enforced by `_fill`.
    """
    columns, rows = round(width / factor), round(height / factor)
    if columns * rows > max_blocks:
        beta = sqrt(width * height / (max_blocks * factor**2))
        columns, rows = max(1, floor(width / beta / factor)), max(1, floor(height / beta / factor))
    elif columns * rows < min_blocks:
        beta = sqrt(min_blocks * factor**2 / (width * height))
        columns, rows = ceil(width * beta / factor), ceil(height * beta / factor)
    return (columns, rows) if columns * rows <= max_blocks else _fill(width, height, max_blocks)
