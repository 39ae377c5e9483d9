"""Presence: whether the answers name the categories that an image contains, and no others."""

from __future__ import annotations

import math

import numpy as np

from coordexp.evaluation.detections import DetectionTable
from coordexp.evaluation.ground_truth import GroundTruth


def presence(ground_truth: GroundTruth, detections: DetectionTable, *, federated: bool) -> dict[str, float | None]:
    """Detections of absent categories per image, and Matthews correlation of predicted with actual presence.

    A category is present in an image if it has an object, crowds excluded. It is absent if it is listed as such
    (federated) or, with exhaustive annotations, if the image has no annotation of it and it is not among the
    categories that are not exhaustively annotated. All other pairs of image and category are left out. A category is
    predicted as present by any detection, whatever its score. Detections without a category do not count. None where
    undefined.
    """
    objects = ~ground_truth.crowd
    present = np.unique(ground_truth.code[objects])
    mapped = detections.category >= 0
    code = detections.image[mapped] * ground_truth.num_categories + detections.category[mapped]
    if federated:
        absent = np.setdiff1d(ground_truth.negative, ground_truth.code)
        num_absent, is_wrong = len(absent), np.isin(code, absent)
    else:
        known = np.union1d(ground_truth.code, ground_truth.not_exhaustive)
        num_absent = ground_truth.num_images * ground_truth.num_categories - len(known)
        is_wrong = ~np.isin(code, known)
    hits = len(np.intersect1d(code, present))
    wrong = len(np.unique(code[is_wrong]))
    return {
        "absent_false_positives": int(is_wrong.sum()) / ground_truth.num_images if ground_truth.num_images else None,
        "presence_mcc": _mcc(hits, wrong, len(present) - hits, num_absent - wrong),
    }


def _mcc(true_pos: int, false_pos: int, false_neg: int, true_neg: int) -> float | None:
    """Matthews correlation coefficient in [-1, 1]; None if a row or column of the 2 x 2 table is empty."""
    margins = (true_pos + false_pos, true_pos + false_neg, true_neg + false_pos, true_neg + false_neg)
    if 0 in margins:
        return None
    return (true_pos * true_neg - false_pos * false_neg) / math.sqrt(math.prod(margins))
