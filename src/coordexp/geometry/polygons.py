"""Polygons: masks and multi-part polygons to one simple ring of few points, clockwise from the top-left vertex.

Rings are float64 [N, 2] of (x, y) and not closed. y grows downwards, and "clockwise" is as seen on the screen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from pycocotools import mask as coco_mask

BRIDGE = 0.5  # pixels: half the width of the strip that joins the parts of one instance
STEPS = 24  # bisections of the simplification tolerance


def from_rings(rings: Sequence[Sequence[float]]) -> shapely.Geometry:
    """The union of flat rings [x1, y1, x2, y2, ...] as a valid (multi)polygon; empty if they enclose no area.

    Overlapping parts are merged, as in pycocotools; self-intersecting rings are repaired.
    """
    points = [np.reshape(ring, (-1, 2)) for ring in rings if len(ring) >= 6 and len(ring) % 2 == 0]
    polygons = [shapely.Polygon(p) for p in points]
    return _only_areas(shapely.union_all([shapely.make_valid(p) for p in polygons]))


def from_rle(rle: dict, size: tuple[int, int]) -> shapely.Geometry:
    """The exact pixel outline (with holes) of a COCO run-length mask, compressed or not.

    ValueError if the mask's size is not `size` (width, height), or if its runs are negative or do not fill it exactly:
    pycocotools would read or write other memory.
    """
    width, height = size
    if list(rle["size"]) != [height, width]:
        raise ValueError(f"run-length mask of size {rle['size']} in an image of {[height, width]}")
    counts = rle["counts"]
    runs = counts if isinstance(counts, list) else _runs(counts.encode() if isinstance(counts, str) else counts)
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != width * height:
        raise ValueError("the runs of a mask are negative or do not fill it")
    return from_mask(coco_mask.decode(coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)))


def _runs(text: bytes) -> list[int]:
    """The run lengths in COCO's compressed form: 5 bits per character, from the third run on as differences."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("invalid character in the runs of a mask")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the runs of a mask are truncated")
    return runs


def from_mask(mask: np.ndarray) -> shapely.Geometry:
    """The exact pixel outline (with holes) of a mask [H, W], non-zero inside, as the union of its vertical runs."""
    edges = np.diff(np.pad((np.asarray(mask) != 0).astype(np.int8), ((1, 1), (0, 0))), axis=0)
    column, top = np.nonzero(edges.T == 1)
    _, bottom = np.nonzero(edges.T == -1)
    return _only_areas(shapely.union_all(shapely.box(column, top, column + 1, bottom)))


def crop(geometry: shapely.Geometry, width: float, height: float) -> shapely.Geometry:
    """The part of a geometry inside the image [0, width] x [0, height]; empty if it is outside."""
    return _only_areas(shapely.intersection(geometry, shapely.box(0, 0, width, height)))


def to_ring(geometry: shapely.Geometry, max_points: int, min_iou: float) -> tuple[np.ndarray | None, float]:
    """(ring, its IoU with `geometry`); the ring is None if the IoU is below `min_iou`.

    Holes are filled, parts are joined by thin strips along the shortest line, and the outline is simplified to at most
    `max_points` points; it is never replaced by its convex hull.
    """
    if max_points < 3:
        raise ValueError(f"a polygon needs at least 3 points, found max_points={max_points}")
    if geometry.is_empty:
        return None, 0.0
    ring = simplify(join_parts(geometry), max_points)
    if ring is None:
        return None, 0.0
    overlap = iou(ring, geometry)
    return (canonical(shapely.get_coordinates(ring)[:-1]), overlap) if overlap >= min_iou else (None, overlap)


def join_parts(geometry: shapely.Geometry) -> shapely.Polygon:
    """One polygon without holes: each part is joined to its nearest neighbour by a strip one pixel wide."""
    parts = sorted((shapely.Polygon(p.exterior) for p in shapely.get_parts(geometry)), key=lambda p: -p.area)
    joined = shapely.union_all(parts)
    while joined.geom_type == "MultiPolygon":
        pieces = sorted(joined.geoms, key=lambda p: -p.area)
        near = min(pieces[1:], key=lambda p: shapely.distance(pieces[0], p))
        strip = shapely.shortest_line(pieces[0], near)
        joined = shapely.union_all([joined, strip.buffer(BRIDGE, cap_style="square")])
    return shapely.Polygon(joined.exterior)


def simplify(polygon: shapely.Polygon, max_points: int) -> shapely.Polygon | None:
    """`polygon` with at most `max_points` points, by the better of Visvalingam and Douglas-Peucker; None if both fail.

    Each method uses the smallest tolerance that reaches the budget. The result does not intersect itself.
    """
    if _points(polygon) <= max_points:
        return polygon
    methods = (lambda p, t: shapely.coverage_simplify([p], t)[0], shapely.simplify)
    found = [s for s in (_within_budget(polygon, max_points, method) for method in methods) if s is not None]
    return max(found, key=lambda s: iou(s, polygon), default=None)


def iou(a: shapely.Geometry, b: shapely.Geometry) -> float:
    """Intersection over union of two geometries by exact area."""
    inter = shapely.intersection(a, b).area
    union = a.area + b.area - inter
    return float(inter / union) if union > 0 else 0.0


def canonical(ring: np.ndarray) -> np.ndarray:
    """The same ring [N, 2], clockwise, starting at the topmost vertex (the leftmost one of several)."""
    ring = np.asarray(ring, dtype=np.float64).reshape(-1, 2)
    if signed_area(ring) < 0:
        ring = ring[::-1]
    return np.roll(ring, -int(np.lexsort((ring[:, 0], ring[:, 1]))[0]), axis=0)


def signed_area(ring: np.ndarray) -> float:
    """Shoelace area of a ring [N, 2]; positive if it is clockwise."""
    x, y = np.asarray(ring, dtype=np.float64).reshape(-1, 2).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def _within_budget(polygon: shapely.Polygon, max_points: int, method) -> shapely.Polygon | None:
    low, high = 1e-3, max(polygon.bounds[2] - polygon.bounds[0], polygon.bounds[3] - polygon.bounds[1], 1e-2)
    best = None
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        tried = method(polygon, middle)
        if tried.geom_type == "Polygon" and not tried.is_empty and tried.is_valid and _points(tried) <= max_points:
            best, high = tried, middle
            if _points(tried) == max_points:
                break
        else:
            low = middle
    return best


def _points(polygon: shapely.Polygon) -> int:
    return shapely.get_num_coordinates(polygon) - 1


def _only_areas(geometry: shapely.Geometry) -> shapely.Geometry:
    parts = [p for p in shapely.get_parts(geometry) if p.geom_type.endswith("Polygon") and p.area > 0]
    return shapely.union_all(parts) if geometry.geom_type == "GeometryCollection" else shapely.MultiPolygon(parts)
