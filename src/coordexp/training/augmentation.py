"""Augmentation in pixel space: crop, scale and flip of a image, with its boxes and polygons following.

Which change a sample gets is a function of (seed, epoch, index) alone. Geometry is torchvision's, clipping of
polygons shapely's; coordinates stay floats in `norm` and are quantised after it like those of any record.
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

from coordexp.datasets.ordering import reading_order
from coordexp.datasets.samples import Sample
from coordexp.geometry import boxes, polygons
from coordexp.geometry.resize import grid_size
from coordexp.recipe import Augmentation
from coordexp.records import Object, Record
from coordexp.runtime.errors import DataError

STREAM = 1  # keeps these draws apart from those of the sample's order and prompt


class Plan(NamedTuple):
    """What happens to a image, in this order; pixels. window: left, top, width, height. size: width, height."""

    window: tuple[int, int, int, int]
    size: tuple[int, int]
    flip: bool


class Augmented(NamedTuple):
    """A sample in pixel space with its new image; cropped: how many objects were cut away."""

    sample: Sample
    image: Image.Image
    cropped: int


def augment(
    sample: Sample, options: Augmentation, seed: tuple[int, int, int], factor: int, *, keep_order: bool
) -> Augmented:
    """The sample under changes drawn from `seed` (seed, epoch, index).

    The image stays on the grid of `factor` pixels and within its budget of tiles. keep_order: leave the objects
    in their order; else they are put in reading order again.
    """
    record, rng = sample.record, np.random.default_rng([*seed, STREAM])
    plan = draw_plan(record, options, rng, factor, may_flip(sample, options))
    objects = _moved(record, plan, options)
    if sample.categories and not _still_named(sample, objects):
        # The open question would have a wrong answer: the sample's objects may not be all that the image shows.
        plan = Plan((0, 0, record.width, record.height), (record.width, record.height), flip=False)
        objects = _moved(record, plan, options)
    image = _image(sample, plan)
    if not keep_order:
        objects = [objects[i] for i in reading_order(np.array([obj.norm_box for obj in objects])).tolist()]
    width, height = plan.size
    objects = [_in_pixels(obj, width, height) for obj in objects]
    changed = msgspec.structs.replace(record, width=width, height=height, coord_space="pixel", objects=objects)
    asked = _still_named(sample, objects) if sample.categories else None
    return Augmented(sample._replace(record=changed, categories=asked), image, len(record.objects) - len(objects))


def _moved(record: Record, plan: Plan, options: Augmentation) -> list[Object]:
    moved = [move(obj, (record.width, record.height), plan, options.min_visible) for obj in record.objects]
    return [obj for obj in moved if obj is not None]


def _still_named(sample: Sample, objects: list[Object]) -> list[str]:
    """The categories of a prompt without those whose objects are all cut away."""
    gone = {obj.desc for obj in sample.record.objects} - {obj.desc for obj in objects}
    return [name for name in sample.categories or [] if name not in gone]


def _image(sample: Sample, plan: Plan) -> Image.Image:
    """The image of a sample after the plan; DataError when it is not of the size that its record says."""
    record = sample.record
    with Image.open(sample.path.parent / record.images[0]) as opened:
        if opened.size != (record.width, record.height):
            found = "x".join(map(str, opened.size))
            fix = "the image file and the record disagree: convert again"
            raise DataError(
                f"{sample.source_line}: the image is {found}, but the record {record.width}x{record.height}\n  -> {fix}"
            )
        return change_image(opened.convert("RGB"), plan)


def may_flip(sample: Sample, options: Augmentation) -> bool:
    """Whether nothing in the sample's texts depends on left and right."""
    texts = [obj.desc for obj in sample.record.objects] + (sample.categories or [])
    words = "|".join(map(re.escape, options.flip_words))
    return not (words and any(re.search(rf"\b({words})", text, re.IGNORECASE) for text in texts))


def draw_plan(record: Record, options: Augmentation, rng: np.random.Generator, factor: int, may_flip: bool) -> Plan:
    """Draw a plan; every draw is made whatever the options, so that one option does not move another's."""
    width, height = record.width, record.height
    crop, area, x, y, scale, flip = rng.random(6).tolist()
    window = (0, 0, width, height)
    if crop < options.crop:
        low, high = options.crop_area
        side = (low + area * (high - low)) ** 0.5
        size = [max(round(extent * side), 1) for extent in (width, height)]
        window = (round(x * (width - size[0])), round(y * (height - size[1])), *size)
    low, high = options.scale
    drawn = low + scale * (high - low)
    wanted = [max(round(extent * drawn), 1) for extent in window[2:]]
    budget = options.max_blocks or (width // factor) * (height // factor)
    size = grid_size(*wanted, "shrink", factor=factor, max_blocks=budget, min_blocks=1)
    return Plan(window, size, may_flip and flip < options.flip)


def change_image(image: Image.Image, plan: Plan) -> Image.Image:
    """The plan on an RGB image."""
    left, top, width, height = plan.window
    image = F.crop(image, top, left, height, width)
    image = F.resize(image, plan.size[::-1], antialias=True)
    return F.horizontal_flip(image) if plan.flip else image


def move(obj: Object, size: tuple[int, int], plan: Plan, min_visible: float) -> Object | None:
    """The object in the new image, `norm` alone; None when less than `min_visible` of its area is left.

    size: (width, height) in pixels of the image before.
    """
    before = np.reshape(obj.norm, (-1, 2)) * size
    points = _points(before, size, plan)
    if obj.bbox_2d is not None:
        box = np.concatenate([points.min(axis=0), points.max(axis=0)])
        kept = boxes.clip(box, *plan.size)
        visible, whole = boxes.area(kept), boxes.area(box)
    else:
        kept, visible, whole = _clipped(points, plan.size)
    if not visible or visible < min_visible * whole:
        return None
    return msgspec.structs.replace(obj, norm=(np.reshape(kept, (-1, 2)) / plan.size).clip(0, 1).ravel().tolist())


def _clipped(points: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float, float]:
    """A polygon's part inside the image as one canonical ring [N, 2], its area, and the area before.

    The ring has at most as many points as the polygon, or the eight that a rectangle cuts out of four corners.
    """
    whole = polygons.from_rings([points.ravel()])
    if (points >= 0).all() and (points <= size).all():
        return polygons.canonical(points), whole.area, whole.area
    inside = polygons.crop(whole, *size)
    ring, _ = polygons.to_ring(inside, max(len(points), 8), 0.0)
    return (points, 0.0, whole.area) if ring is None else (ring, inside.area, whole.area)


def _points(points: np.ndarray, size: tuple[int, int], plan: Plan) -> np.ndarray:
    """Points [N, 2] in pixels after the plan, not clipped.

    They travel as boxes without extent: torchvision flips boxes about the image's edges (W - x), as pixels
    are flipped, but key points about the centres of its pixels (W - 1 - x).
    """
    left, top, width, height = plan.window
    canvas = {"format": "XYXY", "canvas_size": size[::-1], "clamping_mode": None}
    marks = tv_tensors.BoundingBoxes(torch.as_tensor(np.tile(points, 2), dtype=torch.float64), **canvas)
    marks = F.resize(F.crop(marks, top, left, height, width), plan.size[::-1])
    marks = F.horizontal_flip(marks) if plan.flip else marks
    return marks.as_subclass(torch.Tensor)[:, :2].numpy()


def _in_pixels(obj: Object, width: int, height: int) -> Object:
    pixels = (np.reshape(obj.norm, (-1, 2)) * (width, height)).ravel().tolist()
    return msgspec.structs.replace(obj, **{"bbox_2d" if obj.bbox_2d is not None else "poly": pixels})
