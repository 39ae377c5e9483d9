"""Overlapping slices of an image: a grid that covers it, in pixels."""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]


class Slice(NamedTuple):
    """A part of an image, in pixels of the image."""

    left: int
    top: int
    width: int
    height: int


class SliceOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an image is divided into overlapping slices, and how the detections in them are merged."""

    grids: Annotated[
        tuple[tuple[Count, Count], ...],
        Meta(description="grids as [columns, rows]; the slices of all grids are predicted"),
    ] = ()
    sizes: Annotated[
        tuple[Count, ...],
        Meta(
            description="sides of square slices in pixels of the source image; each gives the smallest grid that "
            "covers the image"
        ),
    ] = ()
    category_grids: Annotated[
        dict[str, tuple[tuple[Count, Count], ...]],
        Meta(description="grids for prompts that name only this category, instead of all other grids"),
    ] = {}
    whole_image: Annotated[
        bool, Meta(description="predict the whole image as well, for objects larger than a slice")
    ] = False
    overlap: Annotated[
        float,
        Meta(
            ge=0,
            le=0.9,
            description="fraction of a slice's width and height that it shares with its neighbour; with `sizes`, the "
            "smallest one. An object that fits into the shared part is entirely inside at least one slice",
        ),
    ] = 0.25
    max_blocks: Annotated[
        Count | None,
        Meta(description="maximum number of tiles of a slice; null: as many as the whole image may have"),
    ] = None
    border: Annotated[
        float,
        Meta(
            ge=0,
            lt=0.5,
            description="a box within this fraction of the slice's width or height from a border inside the image "
            "counts as cut off",
        ),
    ] = 0.01
    iou: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="minimum IoU at which boxes with the same description in different slices are merged",
        ),
    ] = 0.5
    containment: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="minimum intersection over the smaller area at which a box that is cut off is merged with a "
            "box with the same description in another slice",
        ),
    ] = 0.5
    score: Annotated[
        Literal["best", "mean"],
        Meta(
            description="score of merged boxes: `best`: the best one; `mean`: the mean over the slices that contain "
            "the box entirely, 0 for those without a matching box"
        ),
    ] = "best"

    def __post_init__(self) -> None:
        if not (self.grids or self.sizes):
            raise ValueError("grids, sizes: expected at least one of the two, for example grids: [[2, 2]]")
        for name, grids in self.category_grids.items():
            if not grids:
                raise ValueError(f"category_grids.{name}: expected at least one grid, for example [[1, 1]]")


def slices_of(
    size: tuple[int, int], source_width: int, options: SliceOptions, category: str | None = None
) -> list[Slice]:
    """The slices of an image of `size` (width, height), grid by grid and row by row, the whole image last.

    source_width: width in pixels of the source image, to which `options.sizes` refers. category: the only one that the
    prompt names, if any. No slice is listed twice.
    """
    own = options.category_grids.get(category or "")
    if own is not None:
        options = msgspec.structs.replace(options, grids=own, sizes=(), whole_image=False)
    grids = [
        [_by_count(extent, count, options.overlap) for extent, count in zip(size, grid, strict=True)]
        for grid in options.grids
    ]
    for side in options.sizes:
        scaled = max(round(side * size[0] / source_width), 1)
        grids.append([_by_side(extent, min(scaled, extent), options.overlap) for extent in size])
    if options.whole_image:
        grids.append([[(0, extent)] for extent in size])
    found = [
        Slice(left, top, width, height) for columns, rows in grids for top, height in rows for left, width in columns
    ]
    return list(dict.fromkeys(found))


def _by_count(extent: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """(start, side) of `count` intervals that cover `extent`; fewer if it has fewer pixels."""
    return _spread(extent, ceil(extent / (1 + (count - 1) * (1 - overlap))), count)


def _by_side(extent: int, side: int, overlap: float) -> list[tuple[int, int]]:
    """(start, side) of the fewest intervals of `side` that cover `extent` and share at least `overlap` of it."""
    step = max(int(side * (1 - overlap)), 1)
    return _spread(extent, side, 1 + ceil((extent - side) / step))


def _spread(extent: int, side: int, count: int) -> list[tuple[int, int]]:
    starts = [round(n * (extent - side) / max(count - 1, 1)) for n in range(count)]
    return [(start, side) for start in dict.fromkeys(starts)]
