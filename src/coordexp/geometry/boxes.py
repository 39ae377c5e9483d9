"""Box arithmetic on numpy arrays [N, 4] of (x1, y1, x2, y2), all in the same space."""

from __future__ import annotations

import numpy as np


def xywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """COCO's [x, y, w, h] as [x1, y1, x2, y2]; float64 [..., 4]."""
    boxes = np.asarray(boxes, dtype=np.float64)
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """[x1, y1, x2, y2] as COCO's [x, y, w, h]; float64 [..., 4]."""
    boxes = np.asarray(boxes, dtype=np.float64)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def looks_normalised(boxes: np.ndarray) -> np.ndarray:
    """Whether each COCO box [x, y, w, h] lies within 0..1 and has a fraction: in pixels it is implausible; bool [N]."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    corners = xywh_to_xyxy(boxes)
    within = (corners >= 0).all(axis=1) & (corners <= 1).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    return within & (corners % 1 != 0).any(axis=1)


def clip(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """Boxes clipped to the image [0, width] x [0, height]."""
    return np.clip(boxes, 0, [width, height, width, height])


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas [N] in squared units of the boxes; 0 for boxes with x2 < x1 or y2 < y1."""
    sides = np.maximum(np.asarray(boxes)[..., 2:] - np.asarray(boxes)[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pairwise areas [N, M] that `a` [N, 4] and `b` [M, 4] share."""
    return _overlap(a, b)[0]


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pairwise IoU [N, M] of `a` [N, 4] and `b` [M, 4]; the IoU of two empty boxes is 0."""
    inter, union, _ = _overlap(a, b)
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def giou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pairwise generalised IoU [N, M] in [-1, 1] (Rezatofighi et al., 2019, eq. 1)."""
    inter, union, hull = _overlap(a, b)
    overlap = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return overlap - np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)


def _overlap(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a = np.asarray(a, dtype=np.float64).reshape(-1, 1, 4)
    b = np.asarray(b, dtype=np.float64).reshape(1, -1, 4)
    inner = np.concatenate([np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])], axis=-1)
    outer = np.concatenate([np.minimum(a[..., :2], b[..., :2]), np.maximum(a[..., 2:], b[..., 2:])], axis=-1)
    inter = area(inner)
    return inter, area(a) + area(b) - inter, area(outer)
