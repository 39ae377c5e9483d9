"""Annotations to objects, for many pictures at once: clipping, scaling, rounding and order in numpy."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
import shapely

from coordexp.contract import Object
from coordexp.data.annotations import Annotation, Broken, Image
from coordexp.data.order import random_order, reading_order
from coordexp.geometry import polygons
from coordexp.geometry.boxes import area, xywh_to_xyxy
from coordexp.geometry.norm1000 import LAST_BIN, decode

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
    """Objects of each picture, what was left out, and counts for the statistics."""

    objects: list[list[Object]]
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
    annotations: list[list[Annotation | Broken]],
    sizes: list[tuple[int, int]],
    descriptions: dict[int, str],
    options: Geometry,
) -> Batch:
    """Objects in pixel space of pictures that are resized to `sizes` [(width, height)].

    `skipped` are annotations without a use by rule (crowds, empty boxes), `bad` are broken ones:
    the caller decides what those mean.
    """
    counts: Counter = Counter()
    skipped: list[Skip] = []
    bad: list[Skip] = []
    rows, owner = _usable(images, annotations, descriptions, options, skipped, bad)
    source = np.array([(i.width, i.height) for i in images], dtype=np.float64).reshape(-1, 2)[owner]
    raw = xywh_to_xyxy(np.array([a.bbox for a in rows], dtype=np.float64).reshape(-1, 4))
    kept = _kept(raw, source, rows, owner, images, skipped, bad)
    rows, owner, source, raw = [rows[i] for i in kept], owner[kept], source[kept], raw[kept]
    size = np.tile(source, 2)
    boxes = np.clip(raw, 0, size)
    counts["clipped"] = int((boxes != raw).any(axis=1).sum())
    norm = boxes / size
    target = np.array(sizes, dtype=np.float64).reshape(-1, 2)[owner]
    pixel = to_pixels(norm, target, options.round_geometry)
    made = _objects(rows, norm, pixel, target, source, descriptions, options, counts)
    if options.geometry == "poly" and made:
        norm = np.array([o.norm_box for o in made])
    _round_trip(norm, area(boxes), counts)
    order = reading_order(norm, owner)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(images)))]).tolist()
    grouped = []
    for image, low, high in zip(images, bounds[:-1], bounds[1:], strict=True):
        own = order[low:high]
        if options.ordering == "random":
            own = own[random_order(len(own), options.seed, image.id)]
        grouped.append([made[i] for i in own.tolist()])
    counts["written"] = len(made)
    return Batch(grouped, skipped, bad, counts)


def to_pixels(norm: np.ndarray, size: np.ndarray, whole: bool) -> np.ndarray:
    """Boxes [N, 4] in [0, 1] as pixels of pictures `size` [N, 2] (width, height).

    With `whole` they are rounded half-up to integers (int64) and keep at least one pixel of width
    and height inside the picture.
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


def _usable(images, annotations, descriptions, options, skipped, bad) -> tuple[list[Annotation], np.ndarray]:
    """Annotations that decode, have a known category and are wanted, and the picture of each [N]."""
    rows, owner = [], []
    for i, (image, own) in enumerate(zip(images, annotations, strict=True)):
        for a in own:
            if isinstance(a, Broken):
                bad.append(Skip("annotation", "unreadable annotation", image.id, a.id, image.path, a.problem))
            elif a.category_id not in descriptions:
                text = f"category_id {a.category_id} has no usable category"
                bad.append(Skip("annotation", "unknown category", image.id, a.id, image.path, text))
            elif a.iscrowd and options.crowd == "skip":
                skipped.append(Skip("annotation", "crowd", image.id, a.id, image.path))
            else:
                rows.append(a)
                owner.append(i)
    return rows, np.array(owner, dtype=np.int64)


def _kept(raw, source, rows, owner, images, skipped, bad) -> np.ndarray:
    """Indices of the boxes that are finite, not empty, and touch their picture."""
    extent = raw[:, 2:] - raw[:, :2]
    finite = np.isfinite(raw).all(axis=1)
    empty = finite & (extent <= 0).any(axis=1)
    inside = np.minimum(raw[:, 2:], source) - np.maximum(raw[:, :2], 0)
    outside = finite & ~empty & (inside <= 0).any(axis=1)
    for mask, reason, into in (
        (~finite, "box not finite", bad),
        (empty, "empty box", skipped),
        (outside, "outside the picture", bad),
    ):
        for i in np.flatnonzero(mask).tolist():
            image = images[owner[i]]
            text = f"bbox {list(rows[i].bbox)} in {image.width}x{image.height}"
            into.append(Skip("annotation", reason, image.id, rows[i].id, image.path, text))
    return np.flatnonzero(finite & ~empty & ~outside)


def _objects(rows, norm, pixel, target, source, descriptions, options, counts) -> list[Object]:
    made = []
    for i, (a, n, p) in enumerate(zip(rows, norm.tolist(), pixel.tolist(), strict=True)):
        desc, crowd = descriptions[a.category_id], bool(a.iscrowd)
        ring = _ring(a, source[i], target[i], options, counts) if options.geometry == "poly" else None
        if ring is None:
            made.append(Object(desc, a.category_id, n, bbox_2d=p, iscrowd=crowd))
            continue
        flat = (ring * target[i]).ravel()
        points = np.floor(flat + 0.5).astype(np.int64) if options.round_geometry else flat
        made.append(Object(desc, a.category_id, ring.ravel().tolist(), poly=points.tolist(), iscrowd=crowd))
    return made


def _ring(a: Annotation, source, target, options, counts) -> np.ndarray | None:
    """Outline in [0, 1] of one annotation, or None where its box says it better."""
    shape = _shape(a.segmentation)
    if shape is None or shape.is_empty:
        counts["poly:no outline"] += 1
        return None
    shape = polygons.crop(shape, *source)
    ring, overlap = polygons.to_ring(shape, options.poly_max_points, options.poly_min_iou)
    if ring is None:
        counts["poly:box fits better"] += 1
        return None
    norm = np.clip(ring / source, 0, 1)
    if (np.ptp(np.floor(norm * np.minimum(target, 999) + 0.5), axis=0) < 1).any():
        counts["poly:thinner than a pixel or bin"] += 1
        return None
    counts["polygons"] += 1
    counts["poly_parts"] += len(shapely.get_parts(shape)) > 1
    counts["poly_iou_sum"] += overlap
    counts["poly_iou_95"] += overlap >= GOOD_IOU
    return norm


def _shape(segmentation: msgspec.Raw) -> shapely.Geometry | None:
    data = bytes(segmentation).lstrip()
    try:
        if data.startswith(b"{"):
            return polygons.from_rle(_Rle.decode(data))
        return polygons.from_rings(_Rings.decode(data)) if data.startswith(b"[") else None
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
