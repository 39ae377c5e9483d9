"""Annotations to objects, for many images at once: clipping, scaling, rounding and ordering in numpy."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import shapely

from coordexp.datasets.annotation_entries import ImageEntry
from coordexp.datasets.annotation_index import AnnotationColumns, read_segmentations
from coordexp.datasets.ordering import random_order, reading_order
from coordexp.geometry import polygons
from coordexp.geometry.boxes import area, iou, looks_normalised, xywh_to_xyxy
from coordexp.geometry.norm1000 import LAST_BIN, decode
from coordexp.records import Object

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}  # COCO's, in source pixels squared
GOOD_IOU = 0.95
SAME_BOX_IOU, SAME_BOX_PIXELS = 0.5, 2  # an outline with a lower IoU, and farther from its box, contradicts it
_decode_rle = msgspec.json.Decoder(dict).decode
_decode_rings = msgspec.json.Decoder(list[list[float]]).decode


class SkippedItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image or annotation that is left out: why, and the ids or the line to find it by."""

    kind: str
    reason: str
    image_id: int | str | None = None
    annotation_id: int | str | None = None
    file: str = ""
    detail: str = ""
    line: int | None = None


class ObjectBatch(msgspec.Struct):
    """The objects of each image, and the annotations that are left out.

    ids: the annotation ids of the objects. incomplete: for each image, the ids of the categories that lost an
    annotation. skipped: annotations that a rule leaves out (crowds, empty boxes). bad: annotations that are wrong; the
    caller decides whether they are errors.
    """

    objects: list[list[Object]]
    ids: list[list[int | str]]
    incomplete: list[set[int]]
    skipped: list[SkippedItem]
    bad: list[SkippedItem]
    counts: Counter


class ObjectOptions(msgspec.Struct, frozen=True):
    """The options of the conversion that objects depend on, as in `convert.ConvertOptions`."""

    geometry: str = "bbox"
    round_geometry: bool = True
    ordering: str = "sorted"
    crowd: str = "skip"
    poly_max_points: int = 20
    poly_min_iou: float = 0.8
    seed: int = 17


def build_objects(
    images: Sequence[ImageEntry],
    annotations: AnnotationColumns,
    sizes: Sequence[tuple[int, int]],
    descriptions: Mapping[int, str],
    options: ObjectOptions,
    fd: int,
) -> ObjectBatch:
    """Objects in pixel space of images that are resized to `sizes` [(width, height)].

    `descriptions` are by category id; `fd` is the open annotation file, for segmentations.
    """
    counts: Counter = Counter()
    image_index = annotations.image_index
    source = np.array([(i.width, i.height) for i in images], dtype=np.float64).reshape(-1, 2)
    kept, skipped, bad = select_annotations(images, annotations, descriptions, options)
    incomplete = _incomplete_categories(annotations, kept, len(images), descriptions)
    annotations, image_index = annotations.take(kept, np.zeros(1, np.int64)), image_index[kept]
    source, target = source[image_index], np.array(sizes, dtype=np.float64).reshape(-1, 2)[image_index]
    raw, size = xywh_to_xyxy(annotations.boxes), np.tile(source, 2)
    boxes = np.clip(raw, 0, size)
    counts["clipped"] = int((boxes != raw).any(axis=1).sum())
    counts["under one pixel"] = int((annotations.boxes[:, 2:] < 1).all(axis=1).sum())
    norm = boxes / size
    objects = _box_objects(annotations, norm, to_pixels(norm, target, options.round_geometry), descriptions)
    if options.geometry == "poly":
        segmentations = read_segmentations(fd, annotations)
        objects = _polygon_objects(objects, segmentations, norm, source, target, options, counts)
        norm = np.array([o.norm_box for o in objects]).reshape(-1, 4)
    _count_round_trip(norm, area(boxes), counts)
    counts["written"] = len(objects)
    order = _order(norm, image_index, images, options)
    ids = annotations.ids.tolist()
    by_image = [[objects[i] for i in group] for group in order], [[ids[i] for i in group] for group in order]
    return ObjectBatch(*by_image, incomplete, skipped, bad, counts)


class Selection(NamedTuple):
    """Indices of the annotations that become objects; those that a rule leaves out; those that are wrong."""

    kept: np.ndarray
    skipped: list[SkippedItem]
    bad: list[SkippedItem]


def select_annotations(
    images: Sequence[ImageEntry],
    annotations: AnnotationColumns,
    descriptions: Mapping[int, str],
    options: ObjectOptions,
) -> Selection:
    """Which annotations of these images become objects; arguments as in `build_objects`."""
    image_index = annotations.image_index
    source = np.array([(i.width, i.height) for i in images], dtype=np.float64).reshape(-1, 2)[image_index]
    raw = xywh_to_xyxy(annotations.boxes)
    known = np.isin(annotations.categories, np.array(list(descriptions), dtype=np.int64))
    crowd = annotations.crowd & (options.crowd == "skip")
    finite = np.isfinite(raw).all(axis=1)
    empty = (annotations.boxes[:, 2:] <= 0).any(axis=1)
    outside = (np.minimum(raw[:, 2:], source) - np.maximum(raw[:, :2], 0) <= 0).any(axis=1)
    skipped, bad = [], []
    remaining = np.ones(len(annotations), dtype=bool)
    for mask, reason, items in (
        (~known, "unknown category", bad),
        (crowd, "crowd", skipped),
        (~finite, "non-finite box", bad),
        (empty, "empty box", skipped),
        (outside, "box outside the image", bad),
        (looks_normalised(annotations.boxes), "box within 0..1, not in pixels", bad),
    ):
        for i in np.flatnonzero(mask & remaining).tolist():
            image = images[image_index[i]]
            category, box = annotations.categories[i], annotations.boxes[i].tolist()
            detail = f"category_id {category}, bbox {box} in {image.width}x{image.height}"
            items.append(SkippedItem("annotation", reason, image.id, annotations.ids[i].item(), image.path, detail))
        remaining &= ~mask
    return Selection(np.flatnonzero(remaining), skipped, bad)


def _incomplete_categories(
    annotations: AnnotationColumns, kept: np.ndarray, image_count: int, descriptions: Mapping[int, str]
) -> list[set[int]]:
    """For each image, the known categories of the annotations that are not in `kept`."""
    incomplete: list[set[int]] = [set() for _ in range(image_count)]
    image_index = annotations.image_index
    for i in np.setdiff1d(np.arange(len(annotations)), kept).tolist():
        category = int(annotations.categories[i])
        if category in descriptions:
            incomplete[image_index[i]].add(category)
    return incomplete


def _order(
    norm: np.ndarray, image_index: np.ndarray, images: Sequence[ImageEntry], options: ObjectOptions
) -> list[list[int]]:
    """Indices of the objects of each image, in the order that the options ask for."""
    order = reading_order(norm, image_index).tolist()
    counts = np.bincount(image_index, minlength=len(images))
    bounds = np.concatenate([[0], np.cumsum(counts)]).tolist()
    grouped = [order[a:b] for a, b in itertools.pairwise(bounds)]
    if options.ordering == "random":
        return [
            [group[i] for i in random_order(len(group), options.seed, image.id).tolist()]
            for group, image in zip(grouped, images, strict=True)
        ]
    return grouped


def to_pixels(norm: np.ndarray, size: np.ndarray, rounded: bool) -> np.ndarray:
    """Boxes [N, 4] in [0, 1] as pixels of images of `size` [N, 2] (width, height).

    With `rounded` they are int64, rounded half up, and keep a width and height of at least one pixel inside the image.
    """
    limit = np.tile(size, 2)
    pixel = norm * limit
    if not rounded:
        return pixel
    pixel = np.floor(pixel + 0.5).astype(np.int64)
    low, high = pixel[:, :2], pixel[:, 2:]
    collapsed = low >= high
    at_edge = low >= size
    pixel[:, :2] = np.where(collapsed & at_edge, low - 1, low)
    pixel[:, 2:] = np.where(collapsed & ~at_edge, low + 1, high)
    return pixel


def _box_objects(
    annotations: AnnotationColumns, norm: np.ndarray, pixel: np.ndarray, descriptions: Mapping[int, str]
) -> list[Object]:
    columns = (annotations.categories.tolist(), norm.tolist(), pixel.tolist(), annotations.crowd.tolist())
    return [Object(descriptions[c], c, n, p, None, crowd) for c, n, p, crowd in zip(*columns, strict=True)]


def _polygon_objects(
    boxes: list[Object],
    segmentations: list[bytes],
    norm: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    options: ObjectOptions,
    counts: Counter,
) -> list[Object]:
    """Each object of `boxes` with a polygon instead of its box, where the polygon is good enough."""
    objects = list(boxes)
    for i, segmentation in enumerate(segmentations):
        ring = _ring(segmentation, norm[i] * np.tile(source[i], 2), source[i], target[i], options, counts)
        if ring is not None:
            flat = (ring * target[i]).ravel()
            points = np.floor(flat + 0.5).astype(np.int64) if options.round_geometry else flat
            box = boxes[i]
            objects[i] = Object(box.desc, box.category_id, ring.ravel().tolist(), None, points.tolist(), box.iscrowd)
    return objects


def _ring(
    segmentation: bytes,
    box: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    options: ObjectOptions,
    counts: Counter,
) -> np.ndarray | None:
    """The outline [N, 2] in [0, 1] of a segmentation; None if the `box` of the annotation is the better choice."""
    shape = _decode_segmentation(segmentation, (int(source[0]), int(source[1])))
    if shape == "invalid":
        counts["poly:invalid segmentation"] += 1
        return None
    if shape is None or shape.is_empty:
        counts["poly:no segmentation"] += 1
        return None
    shape = polygons.crop(shape, *source)
    if _contradicts(shape, box):
        counts["poly:contradicts the box"] += 1
        return None
    ring, overlap = polygons.to_ring(shape, options.poly_max_points, options.poly_min_iou)
    if ring is None:
        counts["poly:low IoU with the mask"] += 1
        return None
    norm = np.clip(ring / source, 0, 1)
    if (np.ptp(np.floor(norm * np.minimum(target, LAST_BIN) + 0.5), axis=0) < 1).any():
        counts["poly:thinner than a pixel or bin"] += 1
        return None
    counts["polygons"] += 1
    counts["poly_parts"] += len(shapely.get_parts(shape)) > 1
    counts["poly_iou_sum"] += overlap
    counts["poly_iou_95"] += overlap >= GOOD_IOU
    return norm


def _contradicts(shape: shapely.Geometry, box: np.ndarray) -> bool:
    """Whether the bounds of an outline are elsewhere than `box` [x1, y1, x2, y2], both in source pixels."""
    if shape.is_empty:
        return False
    bounds = np.array(shape.bounds)
    differs = np.abs(bounds - box).max() > SAME_BOX_PIXELS
    return bool(differs and iou(bounds[None], box[None])[0, 0] < SAME_BOX_IOU)


def _decode_segmentation(text: bytes, size: tuple[int, int]) -> shapely.Geometry | Literal["invalid"] | None:
    """The area of a `segmentation` (JSON text of rings or a run-length mask) in an image of `size`; None if missing."""
    try:
        if text.startswith(b"{"):
            return polygons.from_rle(_decode_rle(text), size)
        return polygons.from_rings(_decode_rings(text)) if text.startswith(b"[") else None
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, OverflowError, shapely.GEOSException):
        return "invalid"


def _count_round_trip(norm: np.ndarray, source_area: np.ndarray, counts: Counter) -> None:
    """Count, by size, the boxes whose IoU with their decoded bins is at least GOOD_IOU."""
    norm = norm.reshape(-1, 4)
    bins = to_pixels(norm, np.full((len(norm), 2), LAST_BIN), rounded=True)  # as norm1000.encode_box, for all boxes
    back = decode(bins)
    inner = np.concatenate([np.maximum(norm[:, :2], back[:, :2]), np.minimum(norm[:, 2:], back[:, 2:])], axis=1)
    inter = area(inner)
    overlap = inter / (area(norm) + area(back) - inter)
    for name, (low, high) in SIZES.items():
        of_size = overlap[(source_area >= low) & (source_area < high)]
        counts[f"{name}:objects"] += len(of_size)
        counts[f"{name}:good"] += int((of_size >= GOOD_IOU).sum())
        counts[f"{name}:iou_sum"] += float(of_size.sum())
