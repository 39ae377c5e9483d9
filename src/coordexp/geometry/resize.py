"""Image sizes on the model's grid: multiples of `factor`, at most `max_blocks` tiles of factor x factor.

Two rules. `shrink` is Qwen's own smart resize: round to the grid, shrink what is over the budget,
enlarge only what is under the minimum. `fill` also enlarges up to the budget: small images give
the model more tokens to look with.
"""

from __future__ import annotations

from math import ceil, floor, isqrt, sqrt
from typing import Literal

MAX_ASPECT = 200
Rule = Literal["fill", "shrink"]


def grid_size(width: int, height: int, rule: Rule, *, factor: int, max_blocks: int, min_blocks: int) -> tuple[int, int]:
    """(width, height) in pixels that a image of `width` x `height` pixels is resized to.

    Raises ValueError for an empty image or one whose aspect is over 200.
    """
    if min(width, height) < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(
            f"expected a image with sides of at least 1 and aspect at most {MAX_ASPECT}, found {width}x{height}"
        )
    if not 1 <= min_blocks <= max_blocks:
        raise ValueError(f"expected 1 <= min_blocks <= max_blocks, found {min_blocks} and {max_blocks}")
    columns, rows = (
        _fill(width, height, max_blocks) if rule == "fill" else _shrink(width, height, factor, max_blocks, min_blocks)
    )
    return columns * factor, rows * factor


def _fill(width: int, height: int, max_blocks: int) -> tuple[int, int]:
    """Largest grid of the image's shape within the budget, in exact integers: isqrt of blocks * aspect."""
    columns = isqrt(width * max_blocks // height)
    rows = isqrt(height * max_blocks // width)
    return min(max(1, columns), max_blocks), min(max(1, rows), max_blocks)


def _shrink(width: int, height: int, factor: int, max_blocks: int, min_blocks: int) -> tuple[int, int]:
    """Qwen's smart resize in tiles, with its own float arithmetic and half-to-even rounding.

    Where that rule leaves its own budget (very thin images) the budget wins.
    """
    columns, rows = round(width / factor), round(height / factor)
    if columns * rows > max_blocks:
        beta = sqrt(width * height / (max_blocks * factor**2))
        columns, rows = max(1, floor(width / beta / factor)), max(1, floor(height / beta / factor))
    elif columns * rows < min_blocks:
        beta = sqrt(min_blocks * factor**2 / (width * height))
        columns, rows = ceil(width * beta / factor), ceil(height * beta / factor)
    return (columns, rows) if columns * rows <= max_blocks else _fill(width, height, max_blocks)
