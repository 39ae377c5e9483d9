"""Duplicates and error types of false positives, with the categories of TIDE (Bolya et al., 2020)."""

from __future__ import annotations

from typing import NamedTuple, get_args

import numpy as np

from coordexp.evaluation.box_pairs import near_overlaps
from coordexp.evaluation.detections import DetectionTable
from coordexp.evaluation.greedy_matching import Matches
from coordexp.evaluation.ground_truth import GroundTruth
from coordexp.evaluation.result_types import ErrorType

DUPLICATE_IOU = 0.9
NEAR_DUPLICATE_IOU = 0.8
BACKGROUND_IOU = 0.1
ERROR_TYPES: tuple[ErrorType, ...] = get_args(ErrorType)


class Duplicates(NamedTuple):
    """Detections that repeat a better one with the same label in the same image; identical boxes always count.

    exact: bool [N], IoU >= 0.9. near: bool [N], IoU >= 0.8, so exact ones are among them. near_pairs: pairs of
    detections with the same label and IoU >= 0.8.
    """

    exact: np.ndarray
    near: np.ndarray
    near_pairs: int


def duplicates(detections: DetectionTable) -> Duplicates:
    """The duplicates among `detections`, which are in the order of their scores."""
    groups = np.where(detections.category >= 0, detections.category, -1 - detections.desc)
    low = groups.min(initial=0)
    code = detections.image * (groups.max(initial=0) - low + 1) + (groups - low)
    order = np.argsort(code, kind="stable")  # keeps the score order within a group
    code, box = code[order], detections.box[order]
    exact, near = np.zeros((2, len(code)), dtype=bool)
    pairs = 0
    for i, j, overlap in near_overlaps(box, code, box, code, NEAR_DUPLICATE_IOU):
        worse = j < i
        pairs += int(worse.sum())
        near[i[worse]] = True
        # identical boxes without area have an IoU of 0
        exact[i[worse & ((overlap >= DUPLICATE_IOU) | (overlap < NEAR_DUPLICATE_IOU))]] = True
    original = np.argsort(order)
    return Duplicates(exact[original], near[original], pairs)


def annotated_near_pairs(ground_truth: GroundTruth) -> int:
    """Pairs of annotated objects, without crowds, of one image and category with IoU >= 0.8."""
    objects = np.flatnonzero(~ground_truth.crowd)
    box = ground_truth.box[objects]
    code = ground_truth.image[objects] * max(ground_truth.num_categories, 1) + ground_truth.category[objects]
    return sum(int((i < j).sum()) for i, j, _ in near_overlaps(box, code, box, code, NEAR_DUPLICATE_IOU))


def false_positives(
    ground_truth: GroundTruth, detections: DetectionTable, matches: Matches, unmapped: np.ndarray, threshold: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """False positives (index in DetectionTable) and their error types (index in `ERROR_TYPES`), at a threshold index.

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
