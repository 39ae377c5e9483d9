"""Greedy matching of detections to objects as in COCOeval, for all IoU thresholds and images at once.

Within an image and category, detections are matched in order of falling score. Each takes the unmatched object of
greatest IoU at or above the threshold, non-crowd objects before crowds, the last one if IoUs are equal. A detection
matched to a crowd is neither a true nor a false positive. With federated annotations (LVIS), a detection of a category
that was not verified for the image is not judged, and an unmatched one is not a false positive if the category is
not exhaustively annotated in the image.

The loop is over ranks: round r matches the r-th detection of every image and category.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from coordexp.evaluation.detections import Detections
from coordexp.evaluation.ground_truth import GroundTruth

# Computed as in COCOeval: 0.9 becomes 0.8999999999999999, which decides boxes exactly at the threshold.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, int(np.round((0.95 - 0.5) / 0.05)) + 1, endpoint=True)

PAIRS_AT_A_TIME = 1_000_000  # no effect on results


@dataclass(frozen=True)
class Matches:
    """Matching of D judged detections to M objects at T thresholds; detections by category, falling score, image.

    Detections that were not judged because their category was not verified for the image are only counted, in
    `num_not_judged`.
    """

    row: np.ndarray  # int64 [D], index in Detections
    rank: np.ndarray  # int64 [D], position by score within its image and category
    image: np.ndarray  # int64 [D]
    category: np.ndarray  # int64 [D]
    score: np.ndarray  # float64 [D]
    matched: np.ndarray  # bool [D, T], true positive
    ignored: np.ndarray  # bool [D, T], neither true nor false positive
    object_index: np.ndarray  # int64 [D, T], matched object or -1
    object_matched: np.ndarray  # bool [M, T]
    object_counted: np.ndarray  # bool [M], False for crowds
    object_image: np.ndarray  # int64 [M]
    object_category: np.ndarray  # int64 [M]
    num_images: int
    num_categories: int
    thresholds: np.ndarray  # float64 [T]
    num_not_judged: int

    def limited(self, keep: np.ndarray) -> Matches:
        """The matching with only the detections `keep` (bool [D]); `object_matched` stays.

        A detection never changes the match of a better one, so dropping the worst detections of an image and
        category afterwards equals never having had them.
        """
        columns = ("row", "rank", "image", "category", "score", "matched", "ignored", "object_index")
        return replace(self, **{name: getattr(self, name)[keep] for name in columns})


def match(
    ground_truth: GroundTruth,
    detections: Detections,
    *,
    federated: bool,
    thresholds: np.ndarray = IOU_THRESHOLDS,
) -> Matches:
    """Match all detections that have a category; no limit on their number."""
    count = ground_truth.num_categories
    rows = np.flatnonzero(detections.category >= 0)
    code = detections.image[rows] * count + detections.category[rows]
    num_not_judged = 0
    if federated:
        judged = np.isin(code, ground_truth.judged)
        num_not_judged = int((~judged).sum())
        rows, code = rows[judged], code[judged]
    order = np.argsort(code, kind="stable")
    rows, code = rows[order], code[order]
    rank = _rank(code)
    taken, object_matched = _greedy(ground_truth, detections.box[rows], code, rank, thresholds, crowds=not federated)
    matched = taken >= 0
    crowd = np.zeros(len(ground_truth.image), dtype=bool) if federated else ground_truth.crowd
    on_crowd = matched & crowd[np.maximum(taken, 0)] if len(crowd) else matched
    ignored = on_crowd.copy()
    if federated:
        ignored |= ~matched & np.isin(code, ground_truth.not_exhaustive)[:, None]
    image, category = np.divmod(code, count) if count else (code, code)
    # within a category: falling score, then image, then rank within the image
    order = np.lexsort((rank, image, -detections.score[rows], category))
    return Matches(
        row=rows[order],
        rank=rank[order],
        image=image[order],
        category=category[order],
        score=detections.score[rows][order],
        matched=(matched & ~on_crowd)[order],
        ignored=ignored[order],
        object_index=taken[order],
        object_matched=object_matched,
        object_counted=~crowd,
        object_image=ground_truth.image,
        object_category=ground_truth.category,
        num_images=ground_truth.num_images,
        num_categories=count,
        thresholds=thresholds,
        num_not_judged=num_not_judged,
    )


def box_iou(detection: np.ndarray, ground_truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of paired boxes, float64 [P, 4] as x, y, w, h; for crowds the intersection over the detection's area."""
    low = np.maximum(detection[:, :2], ground_truth[:, :2])
    high = np.minimum(detection[:, :2] + detection[:, 2:], ground_truth[:, :2] + ground_truth[:, 2:])
    sides = np.maximum(high - low, 0)
    intersection = sides[:, 0] * sides[:, 1]
    area = detection[:, 2] * detection[:, 3]
    union = np.where(crowd, area, area + ground_truth[:, 2] * ground_truth[:, 3] - intersection)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _greedy(
    ground_truth: GroundTruth,
    box: np.ndarray,
    code: np.ndarray,
    rank: np.ndarray,
    thresholds: np.ndarray,
    *,
    crowds: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Object matched by each detection, int64 [D, T] or -1, and whether each object is matched, bool [M, T]."""
    taken = np.full((len(code), len(thresholds)), -1, dtype=np.int64)
    object_matched = np.zeros((len(ground_truth.image), len(thresholds)), dtype=bool)
    crowd = ground_truth.crowd if crowds else np.zeros(len(ground_truth.image), dtype=bool)
    limits = np.minimum(thresholds, 1 - 1e-10)
    object_code = ground_truth.image * max(ground_truth.num_categories, 1) + ground_truth.category
    det, obj, iou = _candidates(box, code, ground_truth.box, object_code, crowd, limits.min())
    # sorted so that the last available pair of a detection is its match
    order = np.lexsort((obj, iou, ~crowd[obj], det, rank[det]))
    det, obj, iou = det[order], obj[order], iou[order]
    enough = iou[:, None] >= limits
    pair = np.arange(len(det))[:, None]
    bounds = np.append(np.flatnonzero(np.diff(rank[det], prepend=-1)), len(det))
    for start, stop in itertools.pairwise(bounds):
        part = slice(start, stop)
        available = enough[part] & (~object_matched[obj[part]] | crowd[obj[part]][:, None])
        first = np.flatnonzero(np.diff(det[part], prepend=-1))
        choice = np.maximum.reduceat(np.where(available, pair[part], -1), first, axis=0)
        who, at = np.nonzero(choice >= 0)
        chosen = obj[choice[who, at]]
        taken[det[part][first][who], at] = chosen
        object_matched[chosen, at] = True
    return taken, object_matched


def _candidates(
    box: np.ndarray, code: np.ndarray, object_box: np.ndarray, object_code: np.ndarray, crowd: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of equal code with IoU >= `least`: detection, object, IoU; a block of pairs is in memory at a time."""
    size = np.searchsorted(object_code, code, "right") - np.searchsorted(object_code, code, "left")
    block = np.cumsum(size) // PAIRS_AT_A_TIME
    bounds = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(code)]
    kept = []
    for start, stop in itertools.pairwise(bounds):
        det, obj = join(code[start:stop], object_code)
        det += start
        iou = box_iou(box[det], object_box[obj], crowd[obj])
        near = iou >= least
        kept.append((det[near], obj[near], iou[near]))
    det, obj, iou = (np.concatenate(columns) for columns in zip(*kept, strict=True))
    return det, obj, iou


def join(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All index pairs (i, j) with left[i] == right[j], by i then j; `right` must be sorted."""
    low, high = np.searchsorted(right, left, "left"), np.searchsorted(right, left, "right")
    size = high - low
    i = np.repeat(np.arange(len(left)), size)
    within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    return i, np.repeat(low, size) + within


def _rank(code: np.ndarray) -> np.ndarray:
    """Position within each run of equal codes (sorted)."""
    return np.arange(len(code)) - np.searchsorted(code, code, "left")
