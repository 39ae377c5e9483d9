"""The F1 of the Rex-Omni and LocateAnything tables, for comparing with them only: it is higher than the usual F1.

Every detection gets the same score, and detections of categories that are not annotated in the image are dropped.
Recall is the final recall of COCOeval; precision is its interpolated precision at the last of the 101 recall levels
where it is positive. A category that has none, because it has no true positive or no object, takes the precision of
the category (or IoU threshold) before it. Precision and recall are averaged over the categories where they are
positive, and F1 is computed from these two means. With equal scores the ranking is the order of the input: images by
id, and within an image the order in which the objects were written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from coordexp.evaluation.average_precision import RECALLS
from coordexp.evaluation.coco_lvis_ap import best_per_image_and_category
from coordexp.evaluation.detections import DetectionTable
from coordexp.evaluation.greedy_matching import Matches, match
from coordexp.evaluation.ground_truth import GroundTruth
from coordexp.evaluation.result_types import AtIoU, PublishedF1

DESCRIPTION = (
    "scorer of the Rex-Omni and LocateAnything tables: equal scores, only categories annotated in the image, precision "
    "carried over between categories; higher than the other variants, for comparing with those tables only"
)
MAX_DETS_COCO = 100  # per image and category; their LVIS scorer has no limit


def published_f1(ground_truth: GroundTruth, detections: DetectionTable, *, federated: bool) -> PublishedF1:
    """F1, precision and recall at IoU 0.5, at 0.95 and over 0.50:0.95; `federated` for LVIS annotations."""
    if federated:  # a crowd is an object like any other, as in lvis-api
        ground_truth = replace(ground_truth, crowd=np.zeros_like(ground_truth.crowd))
    matches = match(ground_truth, _in_input_order(ground_truth, detections, federated), federated=False)
    ignored = matches.ignored
    if federated:
        code = matches.image * matches.num_categories + matches.category
        ignored = ignored | (~matches.matched & np.isin(code, ground_truth.not_exhaustive)[:, None])
    precision, recall = _final_precision_recall(matches, ignored)
    summarised = [
        (_positive_mean(p), _positive_mean(r))
        for p, r in (
            (_carried_over(precision[:, :1])[:, 0], recall[:, 0]),
            (_carried_over(precision[:, -1:])[:, 0], recall[:, -1]),
            (_carried_over(precision).mean(axis=1), recall.mean(axis=1)),
        )
    ]
    return PublishedF1(
        description=DESCRIPTION,
        f1=_at_iou(2 * p * r / (p + r) if p + r else 0.0 for p, r in summarised),
        precision=_at_iou(p for p, _ in summarised),
        recall=_at_iou(r for _, r in summarised),
    )


def _in_input_order(ground_truth: GroundTruth, detections: DetectionTable, federated: bool) -> DetectionTable:
    """The scored detections, all with the same score, by image and position in the answer."""
    annotated = np.unique(ground_truth.code)
    code = detections.image * ground_truth.num_categories + detections.category
    kept = np.flatnonzero((detections.category >= 0) & np.isin(code, annotated))
    ordered = kept[np.lexsort((detections.input_index[kept], detections.image[kept]))]
    equal = detections.take(ordered)
    equal = replace(equal, score=np.zeros(len(equal)))
    return equal if federated else best_per_image_and_category(equal, MAX_DETS_COCO)


def _final_precision_recall(matches: Matches, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated precision at the last recall level reached, and final recall; float64 [K, T].

    Precision is 0 without a true positive, recall -1 without objects, as in the arrays of COCOeval.
    """
    objects = np.bincount(matches.object_category[matches.object_counted], minlength=matches.num_categories)
    start = np.searchsorted(matches.category, np.arange(matches.num_categories + 1))
    precision = np.zeros((matches.num_categories, len(matches.thresholds)))
    recall = np.where(objects > 0, 0.0, -1.0)[:, None].repeat(len(matches.thresholds), axis=1)
    for k in np.flatnonzero((objects > 0) & (np.diff(start) > 0)):
        rows = slice(start[k], start[k + 1])
        true_positives = np.cumsum(matches.matched[rows], axis=0)
        counted = np.cumsum(~ignored[rows], axis=0)
        recall[k] = true_positives[-1] / objects[k]
        for t in np.flatnonzero(true_positives[-1]):
            level = RECALLS[np.searchsorted(RECALLS, recall[k, t], "right") - 1]
            first = np.searchsorted(true_positives[:, t] / objects[k], level)
            after = slice(first, None)
            precision[k, t] = np.max(true_positives[after, t] / (counted[after, t] + np.spacing(1.0)))
    return precision, recall


def _carried_over(precision: np.ndarray) -> np.ndarray:
    """`precision` [K, T] with each zero replaced by the value before it, over thresholds first, then categories."""
    flat = precision.ravel()
    last = np.maximum.accumulate(np.where(flat > 0, np.arange(len(flat)), -1))
    return np.where(last >= 0, flat[last], 0.0).reshape(precision.shape)


def _positive_mean(values: np.ndarray) -> float:
    positive = values[values > 0]
    return float(positive.mean()) if len(positive) else 0.0


def _at_iou(values: Iterable[float]) -> AtIoU:
    return AtIoU(*values)
