"""Augmentation in pixel space: crop, scale and flips of an image with its boxes and polygons.

The augmentation of a sample depends on (seed, epoch, index) alone. Geometry uses torchvision, clipping of polygons
shapely; coordinates remain floats in `norm` and are quantised afterwards, as for any record.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from coordexp.datasets.augmentation_options import Augmentation
from coordexp.datasets.images import ImageError, open_image
from coordexp.datasets.ordering import AnswerOrder, answer_order
from coordexp.datasets.samples import Sample
from coordexp.geometry import boxes, polygons
from coordexp.geometry.resize import grid_size
from coordexp.records import Object, Record
from coordexp.runtime.errors import DataError

STREAM = 1  # random stream, separate from that of the sample's order and prompt


class Plan(NamedTuple):
    """Crop, resize and flips, in this order. window: left, top, width, height; size: width, height; in pixels."""

    window: tuple[int, int, int, int]
    size: tuple[int, int]
    flip: bool
    vertical_flip: bool = False


class Augmented(NamedTuple):
    """A sample in pixel space with its new image; cropped: number of objects removed."""

    sample: Sample
    image: Image.Image
    cropped: int


def augment(
    sample: Sample, options: Augmentation, seed: tuple[int, int, int], factor: int, order: AnswerOrder
) -> Augmented:
    """The sample with an augmentation drawn from `seed` (seed, epoch, index).

    The image remains on the grid of `factor` pixels and within its budget of tiles. Its objects are sorted by
    `order` again, or keep their random order.
    """
    record, rng = sample.record, np.random.default_rng([*seed, STREAM])
    if sample.phrase is not None:  # a cut-off object can change what a phrase describes
        options = msgspec.structs.replace(options, crop=0.0)
    plan = draw_plan(record, options, rng, factor, may_flip(sample, options.flip_words))
    if rng.random() < options.vertical_flip and may_flip(sample, options.vertical_flip_words):
        plan = plan._replace(vertical_flip=True)
    objects = _transformed(record, plan, options)
    if sample.categories and not options.empty_answers and not _remaining_categories(sample, objects):
        # Without a category left, the open prompt would be used, but the sample may not list all objects in the image.
        plan = Plan((0, 0, record.width, record.height), (record.width, record.height), flip=False)
        objects = _transformed(record, plan, options)
    image = _load_image(sample, plan)
    if order != "random":
        objects = answer_order(objects, order)
    width, height = plan.size
    objects = [_in_pixels(obj, width, height) for obj in objects]
    changed = msgspec.structs.replace(record, width=width, height=height, coord_space="pixel", objects=objects)
    categories = sample.categories
    if categories and not options.empty_answers:
        categories = _remaining_categories(sample, objects)
    removed = len(record.objects) - len(objects)
    return Augmented(sample._replace(record=changed, categories=categories), image, removed)


def _transformed(record: Record, plan: Plan, options: Augmentation) -> list[Object]:
    size = (record.width, record.height)
    objects = [transform_object(obj, size, plan, options.min_visible) for obj in record.objects]
    return [obj for obj in objects if obj is not None]


def _remaining_categories(sample: Sample, objects: list[Object]) -> list[str]:
    """The categories of a prompt, without those that have lost all their objects."""
    removed = {obj.desc for obj in sample.record.objects} - {obj.desc for obj in objects}
    return [name for name in sample.categories or [] if name not in removed]


def _load_image(sample: Sample, plan: Plan) -> Image.Image:
    """The transformed image of a sample; DataError if the file does not have the size in the record."""
    record = sample.record
    path = sample.path.parent / record.images[0]
    try:
        with open_image(path) as opened:
            size, pixels = opened.size, opened.convert("RGB")
    except ImageError as error:
        raise DataError(f"{sample.source_line}: cannot read the image: {error}") from error
    if size != (record.width, record.height):
        found = "x".join(map(str, size))
        fix = "the image file does not match the record: convert the data again"
        raise DataError(
            f"{sample.source_line}: image is {found}, but the record has {record.width}x{record.height}\n  -> {fix}"
        )
    return transform_image(pixels, plan)


def may_flip(sample: Sample, words: tuple[str, ...]) -> bool:
    """Whether no text of the sample contains a word that starts with one of `words`."""
    texts = [obj.desc for obj in sample.record.objects] + (sample.categories or []) + [sample.phrase or ""]
    pattern = "|".join(map(re.escape, words))
    return not (words and any(re.search(rf"\b({pattern})", text, re.IGNORECASE) for text in texts))


def draw_plan(record: Record, options: Augmentation, rng: np.random.Generator, factor: int, may_flip: bool) -> Plan:
    """Draw a plan. All random numbers are always drawn, so that one option does not change the draws of another."""
    width, height = record.width, record.height
    crop, area, x, y, scale, flip, around, which = rng.random(8).tolist()
    window = (0, 0, width, height)
    if crop < options.crop:
        obj = record.objects[int(which * len(record.objects))] if record.objects else None
        if around >= options.crop_on_object:
            obj = None
        size = _crop_size(record, obj, options, area)
        ranges = [(0, width - size[0]), (0, height - size[1])]
        if obj is not None:
            ranges = _starts_around(obj, (width, height), size) or ranges
        (left, right), (top, bottom) = ranges
        window = (round(left + x * (right - left)), round(top + y * (bottom - top)), *size)
    low, high = options.scale
    factor_drawn = low + scale * (high - low)
    scaled = [max(round(extent * factor_drawn), 1) for extent in window[2:]]
    budget = options.max_blocks or (width // factor) * (height // factor)
    size = grid_size(*scaled, "shrink", factor=factor, max_blocks=budget, min_blocks=1)
    return Plan(window, size, may_flip and flip < options.flip)


def _crop_size(record: Record, obj: Object | None, options: Augmentation, drawn: float) -> list[int]:
    """Width and height in pixels of a crop, which is placed on `obj`, if any. drawn: random number in [0, 1)."""
    if obj is not None and options.object_side is not None:
        x1, y1, x2, y2 = obj.norm_box
        low, high = options.object_side
        side = min(max(x2 - x1, y2 - y1) / (low + drawn * (high - low)), 1.0)
    else:
        low, high = options.crop_area
        side = (low + drawn * (high - low)) ** 0.5
    return [max(round(extent * side), 1) for extent in (record.width, record.height)]


def _starts_around(obj: Object, size: tuple[int, int], window: list[int]) -> list[tuple[int, int]] | None:
    """Smallest and largest left and top of a window that contains the object; None if it is too large."""
    points = np.reshape(obj.norm, (-1, 2)) * size
    ranges = []
    for low, high, extent, side in zip(points.min(axis=0), points.max(axis=0), size, window, strict=True):
        first, last = max(int(np.ceil(high)) - side, 0), min(int(low), extent - side)
        if first > last:
            return None
        ranges.append((first, last))
    return ranges


def transform_image(image: Image.Image, plan: Plan) -> Image.Image:
    """Apply the plan to an RGB image."""
    left, top, width, height = plan.window
    image = F.crop(image, top, left, height, width)
    image = F.resize(image, plan.size[::-1], antialias=True)
    image = F.horizontal_flip(image) if plan.flip else image
    return F.vertical_flip(image) if plan.vertical_flip else image


def transform_object(obj: Object, size: tuple[int, int], plan: Plan, min_visible: float) -> Object | None:
    """The object with `norm` in the new image; None if less than `min_visible` of its area remains.

    size: (width, height) in pixels of the image before the plan.
    """
    before = np.reshape(obj.norm, (-1, 2)) * size
    points = _points(before, size, plan)
    if obj.bbox_2d is not None:
        box = np.concatenate([points.min(axis=0), points.max(axis=0)])
        kept = boxes.clip(box, *plan.size)
        visible, total = boxes.area(kept), boxes.area(box)
    else:
        kept, visible, total = _clip_polygon(points, plan.size)
    if not visible or visible < min_visible * total:
        return None
    return msgspec.structs.replace(obj, norm=(np.reshape(kept, (-1, 2)) / plan.size).clip(0, 1).ravel().tolist())


def _clip_polygon(points: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float, float]:
    """The part of a polygon inside the image as one canonical ring [N, 2], its area, and the area before clipping.

    The ring has at most as many points as the polygon, or 8: clipping a quadrilateral to a rectangle can yield 8.
    """
    polygon = polygons.from_rings([points.ravel()])
    if (points >= 0).all() and (points <= size).all():
        return polygons.canonical(points), polygon.area, polygon.area
    inside = polygons.crop(polygon, *size)
    ring, _ = polygons.to_ring(inside, max(len(points), 8), 0.0)
    return (points, 0.0, polygon.area) if ring is None else (ring, inside.area, polygon.area)


def _points(points: np.ndarray, size: tuple[int, int], plan: Plan) -> np.ndarray:
    """Points [N, 2] in pixels after the plan, not clipped.

    They are transformed as boxes of size 0: torchvision flips boxes to W - x, as it flips pixels, but key points to
    W - 1 - x.
    """
    left, top, width, height = plan.window
    canvas = {"format": "XYXY", "canvas_size": size[::-1], "clamping_mode": None}
    corners = tv_tensors.BoundingBoxes(torch.as_tensor(np.tile(points, 2), dtype=torch.float64), **canvas)
    corners = F.resize(F.crop(corners, top, left, height, width), plan.size[::-1])
    corners = F.horizontal_flip(corners) if plan.flip else corners
    corners = F.vertical_flip(corners) if plan.vertical_flip else corners
    return corners.as_subclass(torch.Tensor)[:, :2].numpy()


def _in_pixels(obj: Object, width: int, height: int) -> Object:
    pixels = (np.reshape(obj.norm, (-1, 2)) * (width, height)).ravel().tolist()
    return msgspec.structs.replace(obj, **{"bbox_2d" if obj.bbox_2d is not None else "poly": pixels})
