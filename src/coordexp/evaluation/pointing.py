"""Pointing accuracy: whether the best detection of a category points at one of its objects."""

from __future__ import annotations

import numpy as np

from coordexp.evaluation.detections import DetectionTable
from coordexp.evaluation.ground_truth import GroundTruth


def pointing_accuracy(ground_truth: GroundTruth, detections: DetectionTable) -> float | None:
    """Pointing game (Zhang et al., 2016) with box centres and boxes, without a margin; None without objects.

    One point per image and annotated category: the centre of the best detection of that category. It is a hit if it
    lies within the box of one of its objects, crowds excluded, and a miss if there is no such detection. The accuracy
    is the mean over the images of each category, then over categories.
    """
    objects = np.flatnonzero(~ground_truth.crowd)
    pairs, pair_of_object = np.unique(ground_truth.code[objects], return_inverse=True)
    if not len(pairs):
        return None
    mapped = np.flatnonzero(detections.category >= 0)  # by image and falling score
    code = detections.image[mapped] * ground_truth.num_categories + detections.category[mapped]
    found, first = np.unique(code, return_index=True)
    centre = np.full((len(pairs), 2), np.nan)
    index = np.searchsorted(found, pairs)
    exists = np.isin(pairs, found)
    best = detections.box[mapped[first[index[exists]]]]
    centre[exists] = best[:, :2] + best[:, 2:] / 2
    box = ground_truth.box[objects]
    offset = centre[pair_of_object] - box[:, :2]
    inside = ((offset >= 0) & (offset <= box[:, 2:])).all(axis=1)  # False for nan
    hit = np.bincount(pair_of_object, weights=inside, minlength=len(pairs)) > 0
    category = pairs % ground_truth.num_categories
    total = np.bincount(category)
    return float((np.bincount(category, weights=hit)[total > 0] / total[total > 0]).mean())
