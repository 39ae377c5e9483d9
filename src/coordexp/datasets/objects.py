"""Annotations to objects, for many images at once: clipping, scaling, rounding and order in numpy."""

from __future__ import annotations

import itertools
from collections import Counter

import msgspec
import numpy as np
import shapely

from coordexp.datasets.annotation_index import Image, Rows, read_outlines
from coordexp.datasets.ordering import random_order, reading_order
from coordexp.geometry import polygons
from coordexp.geometry.boxes import area, xywh_to_xyxy
from coordexp.geometry.norm1000 import LAST_BIN, decode
from coordexp.records import Object

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}  # COCO's, source pixels squared
GOOD_IOU = 0.95
_Rle = msgspec.json.Decoder(dict)
_Rings = msgspec.json.Decoder(list[list[float]])


class Skip(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something left out: what, why, and the ids to find it by."""

    kind: str
    reason: str
    image_id: int | str | None = None
    annotation_id: int | str | None = None
    file: str = ""
    detail: str = ""


class Batch(msgspec.Struct):
    """Objects of each image, what was left out, and counts for the statistics.

    incomplete: of each image, the ids of the categories that an annotation was left out of.
    """

    objects: list[list[Object]]
    incomplete: list[set[int]]
    skipped: list[Skip]
    bad: list[Skip]
    counts: Counter


class Geometry(msgspec.Struct, frozen=True):
    """The options that objects depend on; names as under `data:` in the configuration."""

    geometry: str = "bbox"
    round_geometry: bool = True
    ordering: str = "sorted"
    crowd: str = "skip"
    poly_max_points: int = 20
    poly_min_iou: float = 0.8
    seed: int = 17


def build_objects(
    images: list[Image],
    rows: Rows,
    sizes: list[tuple[int, int]],
    descriptions: dict[int, str],
    options: Geometry,
    fd: int,
) -> Batch:
    """Objects in pixel space of images that are resized to `sizes` [(width, height)].

    `fd` is the open annotation file, for outlines. `skipped` are annotations without a use by rule
    (crowds, empty boxes), `bad` are broken ones: the caller decides what those mean.
    """
    counts: Counter = Counter()
    owner = rows.owner
    source = np.array([(i.width, i.height) for i in images], dtype=np.float64).reshape(-1, 2)
    kept, skipped, bad = _filter(images, rows, owner, source[owner], descriptions, options)
    incomplete = _incomplete(rows, owner, kept, images, descriptions)
    rows, owner = rows.take(kept, np.zeros(1, np.int64)), owner[kept]
    source, target = source[owner], np.array(sizes, dtype=np.float64).reshape(-1, 2)[owner]
    raw, size = xywh_to_xyxy(rows.boxes), np.tile(source, 2)
    boxes = np.clip(raw, 0, size)
    counts["clipped"] = int((boxes != raw).any(axis=1).sum())
    norm = boxes / size
    pixel = to_pixels(norm, target, options.round_geometry)
    if options.geometry == "poly":
        made = _polygon_objects(rows, norm, pixel, source, target, descriptions, options, fd, counts)
        norm = np.array([o.norm_box for o in made]).reshape(-1, 4)
    else:
        made = _box_objects(rows, norm, pixel, descriptions)
    _round_trip(norm, area(boxes), counts)
    counts["written"] = len(made)
    return Batch(_ordered(made, norm, owner, images, options), incomplete, skipped, bad, counts)


def _incomplete(rows: Rows, owner: np.ndarray, kept: np.ndarray, images: list[Image], descriptions) -> list[set[int]]:
    found: list[set[int]] = [set() for _ in images]
    for i in np.setdiff1d(np.arange(len(rows)), kept).tolist():
        category = int(rows.categories[i])
        if category in descriptions:
            found[owner[i]].add(category)
    return found


def _ordered(made: list[Object], norm: np.ndarray, owner: np.ndarray, images, options: Geometry) -> list[list[Object]]:
    """Objects of each image, in the order that the options ask for."""
    order = reading_order(norm, owner).tolist()
    bounds = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(images)))]).tolist()
    grouped = [[made[i] for i in order[a:b]] for a, b in itertools.pairwise(bounds)]
    if options.ordering == "random":
        return [
            [own[i] for i in random_order(len(own), options.seed, image.id).tolist()]
            for own, image in zip(grouped, images, strict=True)
        ]
    return grouped


def to_pixels(norm: np.ndarray, size: np.ndarray, whole: bool) -> np.ndarray:
    """Boxes [N, 4] in [0, 1] as pixels of images `size` [N, 2] (width, height).

    With `whole` they are rounded half-up to integers (int64) and keep at least one pixel of width
    and height inside the image.
    """
    limit = np.tile(size, 2)
    pixel = norm * limit
    if not whole:
        return pixel
    pixel = np.floor(pixel + 0.5).astype(np.int64)
    low, high = pixel[:, :2], pixel[:, 2:]
    closed = low >= high
    at_edge = low >= size
    pixel[:, :2] = np.where(closed & at_edge, low - 1, low)
    pixel[:, 2:] = np.where(closed & ~at_edge, low + 1, high)
    return pixel


def _filter(images, rows: Rows, owner, source, descriptions, options) -> tuple[np.ndarray, list[Skip], list[Skip]]:
    """(rows that become objects, rows without a use, bad rows)."""
    raw = xywh_to_xyxy(rows.boxes)
    known = np.isin(rows.categories, np.array(list(descriptions), dtype=np.int64))
    crowd = rows.crowd & (options.crowd == "skip")
    finite = np.isfinite(raw).all(axis=1)
    empty = (rows.boxes[:, 2:] <= 0).any(axis=1)
    outside = (np.minimum(raw[:, 2:], source) - np.maximum(raw[:, :2], 0) <= 0).any(axis=1)
    skipped, bad = [], []
    left = np.ones(len(rows), dtype=bool)
    for mask, reason, into in (
        (~known, "unknown category", bad),
        (crowd, "crowd", skipped),
        (~finite, "box not finite", bad),
        (empty, "empty box", skipped),
        (outside, "outside the image", bad),
    ):
        for i in np.flatnonzero(mask & left).tolist():
            image = images[owner[i]]
            text = f"category_id {rows.categories[i]}, bbox {rows.boxes[i].tolist()} in {image.width}x{image.height}"
            into.append(Skip("annotation", reason, image.id, rows.ids[i].item(), image.path, text))
        left &= ~mask
    return np.flatnonzero(left), skipped, bad


def _box_objects(rows: Rows, norm: np.ndarray, pixel: np.ndarray, descriptions: dict[int, str]) -> list[Object]:
    columns = (rows.categories.tolist(), norm.tolist(), pixel.tolist(), rows.crowd.tolist())
    return [Object(descriptions[c], c, n, p, None, crowd) for c, n, p, crowd in zip(*columns, strict=True)]


def _polygon_objects(rows, norm, pixel, source, target, descriptions, options, fd, counts) -> list[Object]:
    """Objects with their outline where it is good enough, with their box elsewhere."""
    made = _box_objects(rows, norm, pixel, descriptions)
    for i, outline in enumerate(read_outlines(fd, rows)):
        ring = _ring(outline, source[i], target[i], options, counts)
        if ring is not None:
            flat = (ring * target[i]).ravel()
            points = np.floor(flat + 0.5).astype(np.int64) if options.round_geometry else flat
            box = made[i]
            made[i] = Object(box.desc, box.category_id, ring.ravel().tolist(), None, points.tolist(), box.iscrowd)
    return made


def _ring(outline: bytes, source, target, options: Geometry, counts: Counter) -> np.ndarray | None:
    """Outline in [0, 1] of one annotation, or None where its box says it better."""
    shape = _shape(outline)
    if shape is None or shape.is_empty:
        counts["poly:no outline"] += 1
        return None
    shape = polygons.crop(shape, *source)
    ring, overlap = polygons.to_ring(shape, options.poly_max_points, options.poly_min_iou)
    if ring is None:
        counts["poly:box fits better"] += 1
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


def _shape(outline: bytes) -> shapely.Geometry | None:
    try:
        if outline.startswith(b"{"):
            return polygons.from_rle(_Rle.decode(outline))
        return polygons.from_rings(_Rings.decode(outline)) if outline.startswith(b"[") else None
    except (msgspec.ValidationError, msgspec.DecodeError, KeyError, TypeError, ValueError, shapely.GEOSException):
        return None


def _round_trip(norm: np.ndarray, source_area: np.ndarray, counts: Counter) -> None:
    """Counts, by size, of boxes whose IoU with their own decoded bins is at least GOOD_IOU."""
    norm = norm.reshape(-1, 4)
    back = decode(to_pixels(norm, np.full((len(norm), 2), LAST_BIN), whole=True))  # encode_box, in numpy
    inner = np.concatenate([np.maximum(norm[:, :2], back[:, :2]), np.minimum(norm[:, 2:], back[:, 2:])], axis=1)
    inter = area(inner)
    overlap = inter / (area(norm) + area(back) - inter)
    for name, (low, high) in SIZES.items():
        own = overlap[(source_area >= low) & (source_area < high)]
        counts[f"{name}:objects"] += len(own)
        counts[f"{name}:good"] += int((own >= GOOD_IOU).sum())
        counts[f"{name}:iou_sum"] += float(own.sum())
