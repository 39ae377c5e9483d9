"""Greedy matching of detections to objects as in COCOeval, for all IoU thresholds and images at once.

Within an image and category, detections are matched in order of falling score. Each takes the unmatched object of
greatest IoU at or above the threshold, non-crowd objects before crowds, the last one if IoUs are equal. A detection
matched to a crowd is neither a true nor a false positive. With federated annotations (LVIS), a detection of a category
that was not verified for the image is not judged, and an unmatched one is not a false positive if the category is
not exhaustively annotated in the image. As in lvis-api, objects and detections without area are then left out, and an
object without area does not verify its category.

The loop is over ranks: round r matches the r-th detection of every image and category.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from coordexp.evaluation.box_pairs import near_overlaps
from coordexp.evaluation.detections import DetectionTable
from coordexp.evaluation.ground_truth import GroundTruth

# Computed as in COCOeval: 0.9 becomes 0.8999999999999999, which decides boxes exactly at the threshold.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, int(np.round((0.95 - 0.5) / 0.05)) + 1, endpoint=True)


@dataclass(frozen=True)
class Matches:
    """Matching of D judged detections to M objects at T thresholds; detections by category, falling score, image.

    Detections that were not judged, because their category was not verified for the image or because they have no
    area (LVIS), are only counted, in `num_not_judged`.
    """

    row: np.ndarray  # int64 [D], index in DetectionTable
    rank: np.ndarray  # int64 [D], position by score within its image and category
    image: np.ndarray  # int64 [D]
    category: np.ndarray  # int64 [D]
    score: np.ndarray  # float64 [D]
    matched: np.ndarray  # bool [D, T], true positive
    ignored: np.ndarray  # bool [D, T], neither true nor false positive
    object_index: np.ndarray  # int32 [D, T], matched object or -1
    object_matched: np.ndarray  # bool [M, T]
    object_counted: np.ndarray  # bool [M], False for crowds (COCO) and objects without area (LVIS)
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
        if keep.all():
            return self
        columns = ("row", "rank", "image", "category", "score", "matched", "ignored", "object_index")
        return replace(self, **{name: getattr(self, name)[keep] for name in columns})


def match(
    ground_truth: GroundTruth,
    detections: DetectionTable,
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
        judged = np.isin(code, ground_truth.judged) & detections.has_area[rows]
        num_not_judged = int((~judged).sum())
        rows, code = rows[judged], code[judged]
    order = np.argsort(code, kind="stable")
    rows, code = rows[order], code[order]
    rank = rank_in_group(code)
    crowd = np.zeros(len(ground_truth.image), dtype=bool) if federated else ground_truth.crowd
    used = np.flatnonzero(ground_truth.has_area) if federated else np.arange(len(crowd))
    targets = Targets(ground_truth.box[used], ground_truth.code[used], crowd[used], crowd[used])
    taken, used_matched = greedy(detections.box[rows], code, rank, targets, thresholds)
    matched = taken >= 0
    taken[matched] = used[taken[matched]]
    object_matched = np.zeros((len(crowd), len(thresholds)), dtype=bool)
    object_matched[used] = used_matched
    counted = np.zeros(len(crowd), dtype=bool)
    counted[used] = ~crowd[used]
    ignored = np.zeros_like(matched)
    ignored[matched] = crowd[taken[matched]]
    true_positive = matched & ~ignored
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
        matched=true_positive[order],
        ignored=ignored[order],
        object_index=taken[order],
        object_matched=object_matched,
        object_counted=counted,
        object_image=ground_truth.image,
        object_category=ground_truth.category,
        num_images=ground_truth.num_images,
        num_categories=count,
        thresholds=thresholds,
        num_not_judged=num_not_judged,
    )


class Targets(NamedTuple):
    """M objects that detections can be matched to, sorted by code."""

    box: np.ndarray  # float64 [M, 4], x, y, w, h
    code: np.ndarray  # int64 [M], image and category
    last: np.ndarray  # bool [M], matched only by detections that can match no other object
    crowd: np.ndarray  # bool [M], matched by any number of detections, with IoU over the area of the detection


def greedy(
    box: np.ndarray, code: np.ndarray, rank: np.ndarray, targets: Targets, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Object matched by each detection, int32 [D, T] or -1, and whether each object is matched, bool [M, T]."""
    taken = np.full((len(code), len(thresholds)), -1, dtype=np.int32)
    object_matched = np.zeros((len(thresholds), len(targets.code)), dtype=bool)
    limits = np.minimum(thresholds, 1 - 1e-10)
    least = limits.min()
    by_rank = np.argsort(rank, kind="stable")
    box, code, rank = box[by_rank], code[by_rank], rank[by_rank]
    for i, j, overlap in near_overlaps(box, code, targets.box, targets.code, least, targets.crowd):
        near = np.flatnonzero(overlap >= least)
        if len(near) and i[0] == i[-1]:
            chosen = _choose(j[near], overlap[near], object_matched, targets, limits)
            taken[by_rank[i[0]]] = chosen
            at = np.flatnonzero(chosen >= 0)
            object_matched[at, chosen[at]] = True
            continue
        # sorted so that the last available pair of a detection is its match
        order = near[np.lexsort((j[near], overlap[near], ~targets.last[j[near]], i[near]))]
        det, obj, iou = i[order], j[order], overlap[order]
        pair = np.arange(len(det))[:, None]
        bounds = np.append(np.flatnonzero(np.diff(rank[det], prepend=-1)), len(det))
        for start, stop in itertools.pairwise(bounds):
            part = slice(start, stop)
            free = ~object_matched[:, obj[part]].T | targets.crowd[obj[part]][:, None]
            available = (iou[part, None] >= limits) & free
            first = np.flatnonzero(np.diff(det[part], prepend=-1))
            choice = np.maximum.reduceat(np.where(available, pair[part], -1), first, axis=0)
            who, at = np.nonzero(choice >= 0)
            chosen = obj[choice[who, at]]
            taken[by_rank[det[part][first][who]], at] = chosen
            object_matched[at, chosen] = True
    return taken, object_matched.T


def _choose(
    objects: np.ndarray, overlap: np.ndarray, object_matched: np.ndarray, targets: Targets, limits: np.ndarray
) -> np.ndarray:
    """The match of one detection at each threshold, int64 [T] or -1, of all `objects` that it overlaps."""
    chosen = np.full(len(limits), -1, dtype=np.int64)
    last, crowd, best = targets.last[objects], targets.crowd[objects], overlap.max()
    groups = (~last, last) if last.any() else (np.ones(len(objects), dtype=bool),)
    for group in groups:
        score = np.where(group, overlap, -1.0)
        for t in np.flatnonzero((chosen < 0) & (limits <= best)):
            taken = object_matched[t][objects] & ~crowd
            available = np.where(taken, -1.0, score)
            greatest = available.max()
            if greatest >= limits[t]:
                chosen[t] = objects[available == greatest].max()
    return chosen


def rank_in_group(group: np.ndarray) -> np.ndarray:
    """Position of each row within its run of equal values, from 0."""
    if not len(group):
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.diff(group, prepend=group[0] - 1))
    return np.arange(len(group)) - np.repeat(starts, np.diff(np.append(starts, len(group))))
