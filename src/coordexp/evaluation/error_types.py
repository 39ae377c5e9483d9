"""Duplicates, and what is wrong with each false positive."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from coordexp.evaluation.detections import Detections
from coordexp.evaluation.greedy_matching import Matches, box_iou, join
from coordexp.evaluation.ground_truth import GroundTruth
from coordexp.runtime import tuning

DUPLICATE_IOU = 0.9
NEAR = 0.1
KINDS = ("duplicate", "poor_box", "wrong_category", "background", "unmapped")


def duplicates(detections: Detections) -> np.ndarray:
    """True for a detection whose image holds a better one with the same label and IoU >= .9; bool [N]."""
    groups = np.where(detections.category >= 0, detections.category, -1 - detections.desc)
    low = groups.min(initial=0)
    code = detections.image * (groups.max(initial=0) - low + 1) + (groups - low)
    order = np.argsort(code, kind="stable")  # keeps the score order within a group
    code, box = code[order], detections.box[order]
    doubled = np.zeros(len(code), dtype=bool)
    for later, other in _pairs(code, code):
        i, j = later[other < later], other[other < later]
        same = (box[i] == box[j]).all(axis=1)
        overlap = box_iou(box[i], box[j], np.zeros(len(i), dtype=bool))
        doubled[i[same | (overlap >= DUPLICATE_IOU)]] = True
    out = np.zeros(len(code), dtype=bool)
    out[order] = doubled
    return out


def false_positives(
    ground_truth: GroundTruth, detections: Detections, matches: Matches, unmapped: np.ndarray, at: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(rows of Detections, kind as index of KINDS) of everything that is wrong at threshold `at`.

    duplicate: a true object, already taken by a better detection. poor_box: the right category, IoU from .1 to
    the threshold. wrong_category: a box that fits an object of another category. background: nothing near.
    unmapped: no category (rows given by the caller).
    """
    threshold = matches.thresholds[at]
    wrong = matches.row[~(matches.matched[:, at] | matches.ignored[:, at])]
    same, other = np.zeros(len(wrong)), np.zeros(len(wrong))
    for i, j in _pairs(detections.image[wrong], ground_truth.image):
        rows = wrong[i]
        overlap = box_iou(detections.box[rows], ground_truth.box[j], ground_truth.crowd[j])
        alike = detections.category[rows] == ground_truth.category[j]
        np.maximum.at(same, i[alike], overlap[alike])
        np.maximum.at(other, i[~alike], overlap[~alike])
    choices = [same >= threshold, same >= NEAR, other >= threshold]
    kind = np.select(choices, [0, 1, 2], default=3)
    rows = np.concatenate([wrong, unmapped])
    return rows, np.concatenate([kind, np.full(len(unmapped), KINDS.index("unmapped"))])


def _pairs(left: np.ndarray, right: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`join` in blocks, so that one image with very many boxes does not fill the memory; `right` sorted."""
    size = np.searchsorted(right, left, "right") - np.searchsorted(right, left, "left")
    block = np.cumsum(size) // tuning.PAIRS_PER_BLOCK
    bounds = np.append(np.flatnonzero(np.diff(block, prepend=-1)), len(left))
    for start, stop in itertools.pairwise(bounds):
        i, j = join(left[start:stop], right)
        yield i + start, j
