"""Duplicates and error types of false positives, with the categories of TIDE (Bolya et al., 2020)."""

from __future__ import annotations

from typing import get_args

import numpy as np

from coordexp.evaluation.box_pairs import near_overlaps
from coordexp.evaluation.detections import Detections
from coordexp.evaluation.greedy_matching import Matches
from coordexp.evaluation.ground_truth import GroundTruth
from coordexp.evaluation.result_types import ErrorType

DUPLICATE_IOU = 0.9
BACKGROUND_IOU = 0.1
ERROR_TYPES: tuple[ErrorType, ...] = get_args(ErrorType)


def duplicates(detections: Detections) -> np.ndarray:
    """Whether the image has a better detection of the same label with IoU >= 0.9; bool [N]."""
    groups = np.where(detections.category >= 0, detections.category, -1 - detections.desc)
    low = groups.min(initial=0)
    code = detections.image * (groups.max(initial=0) - low + 1) + (groups - low)
    order = np.argsort(code, kind="stable")  # keeps the score order within a group
    code, box = code[order], detections.box[order]
    duplicate = np.zeros(len(code), dtype=bool)
    for later, other, _ in near_overlaps(box, code, box, code, DUPLICATE_IOU):
        duplicate[later[other < later]] = True
    out = np.zeros(len(code), dtype=bool)
    out[order] = duplicate
    return out


def false_positives(
    ground_truth: GroundTruth, detections: Detections, matches: Matches, unmapped: np.ndarray, threshold: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """False positives (index in Detections) and their error types (index in `ERROR_TYPES`), at a threshold index.

    duplicate: the object is already matched by a better detection. localisation: right category, IoU from 0.1 to the
    threshold. classification: IoU above the threshold with an object of another category. background: none of these.
    unmapped: the description matches no category; `unmapped` holds their indices.
    """
    minimum = matches.thresholds[threshold]
    wrong = matches.row[~(matches.matched[:, threshold] | matches.ignored[:, threshold])]
    same, other = np.zeros(len(wrong)), np.zeros(len(wrong))
    boxes, images = detections.box[wrong], detections.image[wrong]
    pairs = near_overlaps(boxes, images, ground_truth.box, ground_truth.image, BACKGROUND_IOU, ground_truth.crowd)
    for i, j, overlap in pairs:
        same_category = detections.category[wrong[i]] == ground_truth.category[j]
        np.maximum.at(same, i[same_category], overlap[same_category])
        np.maximum.at(other, i[~same_category], overlap[~same_category])
    error = np.select([same >= minimum, same >= BACKGROUND_IOU, other >= minimum], [0, 1, 2], default=3)
    rows = np.concatenate([wrong, unmapped])
    return rows, np.concatenate([error, np.full(len(unmapped), ERROR_TYPES.index("unmapped"))])
