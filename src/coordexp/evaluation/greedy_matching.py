"""Greedy matching of detections to truth as COCOeval does it, for all thresholds and images at once.

Within a image and category the detections take their turn by falling score; each takes the free object
of greatest IoU at or above the threshold, objects that count before crowds, the later one where IoUs tie.
A detection that takes a crowd is neither right nor wrong. In federated truth (LVIS) a detection of a
category that nobody looked for in the image is not judged, and one without an object is not wrong where
the category is marked as not exhaustively annotated.

The turns are taken in rounds: round r handles the r-th detection of every image and category.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from coordexp.evaluation.detections import Detections
from coordexp.evaluation.ground_truth import GroundTruth

# COCOeval's own spelling: 0.9 is 0.8999999999999999 there, which decides boxes on the edge.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, int(np.round((0.95 - 0.5) / 0.05)) + 1, endpoint=True)


@dataclass(frozen=True)
class Matches:
    """D judged detections by category, falling score, image; T thresholds; M objects of the truth.

    `row` is the detection's index in Detections, `rank` its turn in its image and category, `matched` and
    `ignored` are bool [D, T], `truth` int64 [D, T] the object's index or -1, `found` bool [M, T].
    `unjudged` counts detections that were left out because nobody looked for their category in the image.
    """

    row: np.ndarray
    rank: np.ndarray
    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    ground_truth: np.ndarray
    found: np.ndarray
    counts: np.ndarray  # bool [M], objects that count (no crowds)
    object_image: np.ndarray  # int64 [M]
    object_category: np.ndarray  # int64 [M]
    images: int
    categories: int
    thresholds: np.ndarray
    unjudged: int

    def limited(self, keep: np.ndarray) -> Matches:
        """Without the detections outside `keep` (bool [D]).

        Those that follow in a image and category never change a match, so cutting them off afterwards is
        the same as never having had them; `found` is not cut.
        """
        columns = ("row", "rank", "image", "category", "score", "matched", "ignored", "truth")
        return replace(self, **{name: getattr(self, name)[keep] for name in columns})


def match(
    ground_truth: GroundTruth,
    detections: Detections,
    *,
    federated: bool,
    thresholds: np.ndarray = IOU_THRESHOLDS,
) -> Matches:
    """Match the mapped detections of all images; no limit on their number."""
    count = len(ground_truth.categories)
    rows = np.flatnonzero(detections.category >= 0)
    code = detections.image[rows] * count + detections.category[rows]
    unjudged = 0
    if federated:
        judged = np.isin(code, ground_truth.judged)
        unjudged = int((~judged).sum())
        rows, code = rows[judged], code[judged]
    order = np.argsort(code, kind="stable")
    rows, code = rows[order], code[order]
    rank = _rank(code)
    taken, found = _greedy(ground_truth, detections.box[rows], code, rank, thresholds, crowds=not federated)
    matched = taken >= 0
    crowd = np.zeros(len(ground_truth.image), dtype=bool) if federated else ground_truth.crowd
    on_crowd = matched & crowd[np.maximum(taken, 0)] if len(crowd) else matched
    ignored = on_crowd.copy()
    if federated:
        ignored |= ~matched & np.isin(code, ground_truth.not_exhaustive)[:, None]
    image, category = np.divmod(code, count) if count else (code, code)
    # within a category: falling score, then image, then the image's own order
    order = np.lexsort((rank, image, -detections.score[rows], category))
    return Matches(
        row=rows[order],
        rank=rank[order],
        image=image[order],
        category=category[order],
        score=detections.score[rows][order],
        matched=(matched & ~on_crowd)[order],
        ignored=ignored[order],
        ground_truth=taken[order],
        found=found,
        counts=~crowd,
        object_image=ground_truth.image,
        object_category=ground_truth.category,
        images=ground_truth.images,
        categories=count,
        thresholds=thresholds,
        unjudged=unjudged,
    )


def box_iou(detection: np.ndarray, ground_truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of paired boxes [P, 4] x, y, w, h; for crowds the share of the detection that lies inside."""
    low = np.maximum(detection[:, :2], ground_truth[:, :2])
    high = np.minimum(detection[:, :2] + detection[:, 2:], ground_truth[:, :2] + ground_truth[:, 2:])
    sides = np.maximum(high - low, 0)
    inter = sides[:, 0] * sides[:, 1]
    own = detection[:, 2] * detection[:, 3]
    union = np.where(crowd, own, own + ground_truth[:, 2] * ground_truth[:, 3] - inter)
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def _greedy(
    ground_truth: GroundTruth,
    box: np.ndarray,
    code: np.ndarray,
    rank: np.ndarray,
    thresholds: np.ndarray,
    *,
    crowds: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Object taken by each detection, int64 [D, T] or -1, and objects taken, bool [M, T]."""
    taken = np.full((len(code), len(thresholds)), -1, dtype=np.int64)
    found = np.zeros((len(ground_truth.image), len(thresholds)), dtype=bool)
    det, obj = join(code, ground_truth.image * max(len(ground_truth.categories), 1) + ground_truth.category)
    crowd = ground_truth.crowd if crowds else np.zeros(len(ground_truth.image), dtype=bool)
    iou = box_iou(box[det], ground_truth.box[obj], crowd[obj])
    limits = np.minimum(thresholds, 1 - 1e-10)
    close = iou >= limits.min()
    det, obj, iou = det[close], obj[close], iou[close]
    # the last pair that is still free is the one to take
    order = np.lexsort((obj, iou, ~crowd[obj], det, rank[det]))
    det, obj, iou = det[order], obj[order], iou[order]
    enough = iou[:, None] >= limits
    place = np.arange(len(det))[:, None]
    bounds = np.append(np.flatnonzero(np.diff(rank[det], prepend=-1)), len(det))
    for start, stop in itertools.pairwise(bounds):
        part = slice(start, stop)
        free = enough[part] & (~found[obj[part]] | crowd[obj[part]][:, None])
        first = np.flatnonzero(np.diff(det[part], prepend=-1))
        choice = np.maximum.reduceat(np.where(free, place[part], -1), first, axis=0)
        who, at = np.nonzero(choice >= 0)
        chosen = obj[choice[who, at]]
        taken[det[part][first][who], at] = chosen
        found[chosen, at] = True
    return taken, found


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
