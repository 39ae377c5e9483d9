"""Federated precision and recall of a category in memory linear in its boxes.

hotcoco keeps the IoU of every detection with every object of an image and category. Where such a matrix would be too
large, this module computes the same arrays from blocks of pairs.
"""

from __future__ import annotations

import numpy as np

from coordexp.evaluation.average_precision import RECALLS
from coordexp.evaluation.detections import DetectionTable
from coordexp.evaluation.greedy_matching import IOU_THRESHOLDS, Targets, greedy, rank_in_group
from coordexp.evaluation.ground_truth import GroundTruth

# of lvis-api and COCOeval, inclusive: all, small, medium, large
AREA_RANGES = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
MAX_MATRIX = 4_000_000  # IoUs of one image and category that hotcoco may keep: 32 MB


def large_categories(ground_truth: GroundTruth, detections: DetectionTable) -> np.ndarray:
    """Categories with an image in which detections times objects exceed `MAX_MATRIX`; int64, sorted."""
    count = ground_truth.num_categories
    codes, objects = np.unique(ground_truth.code, return_counts=True)
    found_codes, found = np.unique(detections.image * count + detections.category, return_counts=True)
    _, at, found_at = np.intersect1d(codes, found_codes, return_indices=True)
    large = objects[at] * found[found_at] > MAX_MATRIX
    return np.unique(codes[at][large] % max(count, 1))


def federated_category(
    ground_truth: GroundTruth, detections: DetectionTable, category: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision [T, R, A] and recall [T, A] of one category as in lvis-api; -1 without ground truth.

    Objects and detections without area must have been left out; there is no limit on the number of detections.
    """
    count = ground_truth.num_categories
    truth = ground_truth.of_objects(ground_truth.category == category)
    rows = np.flatnonzero(detections.category == category)
    code = detections.image[rows] * count + category
    judged = np.isin(code, ground_truth.judged)
    rows, code = rows[judged], code[judged]
    order = np.lexsort((-detections.score[rows], code))
    rows, code = rows[order], code[order]
    box, rank = detections.box[rows], rank_in_group(code)
    not_exhaustive = np.isin(code, ground_truth.not_exhaustive)
    area = box[:, 2] * box[:, 3]
    by_score = np.lexsort((rank, code, -detections.score[rows]))
    precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), len(AREA_RANGES)), -1.0)
    recall = np.full((len(IOU_THRESHOLDS), len(AREA_RANGES)), -1.0)
    for a, (low, high) in enumerate(AREA_RANGES):
        outside = (truth.area < low) | (truth.area > high)
        if outside.all():
            continue
        targets = Targets(truth.box, truth.code, outside, np.zeros(len(outside), dtype=bool))
        taken, _ = greedy(box, code, rank, targets, IOU_THRESHOLDS)
        ignored = outside[np.maximum(taken, 0)] & (taken >= 0)
        ignored |= (taken < 0) & (not_exhaustive | (area < low) | (area > high))[:, None]
        for t in range(len(IOU_THRESHOLDS)):
            counted = by_score[~ignored[by_score, t]]
            found = _precision_at_recalls(taken[counted, t] >= 0, int((~outside).sum()))
            precision[t, :, a], recall[t, a] = found
    return precision, recall


def _precision_at_recalls(correct: np.ndarray, objects: int) -> tuple[np.ndarray, float]:
    """Interpolated precision at 101 recall levels and final recall, from detections by falling score."""
    true_positives = np.cumsum(correct)
    if not len(correct):
        return np.zeros(len(RECALLS)), 0.0
    precision = true_positives / (np.arange(1, len(correct) + 1) + np.spacing(1))
    best = np.maximum.accumulate(precision[::-1])[::-1]
    recall = true_positives / objects
    at = np.searchsorted(recall, RECALLS, side="left")
    return np.where(at < len(best), best[np.minimum(at, len(best) - 1)], 0.0), float(recall[-1])
