"""Pairs of overlapping boxes, in blocks of bounded size, so that memory is linear in the number of boxes.

Two boxes whose IoU is at least t have intervals in x whose IoU is at least t as well. The left edge of the other box
then lies between `x - w (1 - t) / t` and `x + w (1 - t)`, and only these pairs are compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from coordexp.runtime import tuning

SLACK = 1e-6  # relative to the numbers compared, far above rounding errors


def box_iou(detection: np.ndarray, ground_truth: np.ndarray, crowd: np.ndarray | bool = False) -> np.ndarray:
    """IoU of paired boxes, float64 [P, 4] as x, y, w, h; for crowds the intersection over the detection's area."""
    low = np.maximum(detection[:, :2], ground_truth[:, :2])
    high = np.minimum(detection[:, :2] + detection[:, 2:], ground_truth[:, :2] + ground_truth[:, 2:])
    sides = np.maximum(high - low, 0)
    intersection = sides[:, 0] * sides[:, 1]
    area = detection[:, 2] * detection[:, 3]
    union = np.where(crowd, area, area + ground_truth[:, 2] * ground_truth[:, 3] - intersection)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


class _Candidates(NamedTuple):
    """Rows `low[i]` to `high[i]` of `order` are the other boxes that box `i` may overlap."""

    order: np.ndarray  # int64, sorts the other boxes by code and left edge
    low: np.ndarray
    high: np.ndarray


def near_overlaps(
    box: np.ndarray,
    code: np.ndarray,
    other_box: np.ndarray,
    other_code: np.ndarray,
    least: float,
    crowd: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Index pairs (i, j) of boxes of equal code, and their IoU: every pair with IoU >= `least` or the same box.

    All pairs of one `i` are in one block, and the rows `i` of a code are in ascending order. Boxes are x, y, w, h.
    `crowd` (bool, one per other box) marks those whose IoU is the intersection over the area of box `i`. In groups
    where boxes overlap most others, a block holds a single `i`, as this needs an eighth of the time.
    """
    crowd = np.zeros(len(other_box), dtype=bool) if crowd is None else crowd
    for rows, others in _parts(code, other_code):
        boxes = (box[rows], code[rows], other_box[others], other_code[others])
        for i, j, overlap in _near_overlaps(*boxes, least, crowd[others]):
            yield rows[i], others[j], overlap


def _parts(code: np.ndarray, other_code: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of both that have a range of codes, for ranges with about `BOXES_PER_PART` boxes."""
    ordered = np.sort(code)
    starts = np.unique(ordered[tuning.BOXES_PER_PART :: tuning.BOXES_PER_PART])
    part, other_part = (np.searchsorted(starts, codes, side="right") for codes in (code, other_code))
    for n in range(len(starts) + 1):
        yield np.flatnonzero(part == n), np.flatnonzero(other_part == n)


def _near_overlaps(
    box: np.ndarray, code: np.ndarray, other_box: np.ndarray, other_code: np.ndarray, least: float, crowd: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`near_overlaps` without a bound on its memory per box."""
    candidates = _candidates(box, code, other_box, other_code, least, crowd)
    dense = _in_dense_group(code, candidates.high - candidates.low)
    for i, j in near_pairs(np.flatnonzero(~dense), candidates):
        overlap = box_iou(box[i], other_box[j], crowd[j])
        near = (overlap >= least) | (box[i] == other_box[j]).all(axis=1)
        yield i[near], j[near], overlap[near]
    columns = _columns(other_box[candidates.order], crowd[candidates.order])
    for i in np.flatnonzero(dense).tolist():
        low, high = int(candidates.low[i]), int(candidates.high[i])
        overlap, same = _iou_with_all(box[i], columns[:, low:high])
        near = np.flatnonzero((overlap >= least) | same)
        yield np.full(len(near), i), candidates.order[low:high][near], overlap[near]


def near_pairs(rows: np.ndarray, candidates: _Candidates) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index pairs (i, j) of `rows` and their candidates, in blocks, in the order of `rows`."""
    low, high = candidates.low[rows], candidates.high[rows]
    for start, stop in _blocks(high - low):
        i, at = _ranges(low[start:stop], high[start:stop])
        yield rows[i + start], candidates.order[at]


def _columns(box: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """What `_iou_with_all` needs of boxes [P, 4], contiguous: x1, y1, x2, y2, width, height, area, crowd; [8, P]."""
    low, size = box[:, :2], box[:, 2:]
    return np.ascontiguousarray(np.column_stack([low, low + size, size, size[:, 0] * size[:, 1], crowd]).T)


def _iou_with_all(box: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`box_iou` of one box [4] with `others` (see `_columns`), to the last bit, and which are the same box."""
    x, y, width, height = box.tolist()
    x1, y1, x2, y2, other_width, other_height, other_area, crowd = others
    intersection = np.maximum(np.minimum(x2, x + width) - np.maximum(x1, x), 0)
    intersection *= np.maximum(np.minimum(y2, y + height) - np.maximum(y1, y), 0)
    union = other_area + width * height
    union -= intersection
    if crowd.any():
        union = np.where(crowd, width * height, union)
    if union.min(initial=1) > 0:
        overlap = intersection / union
    else:
        overlap = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return overlap, (x1 == x) & (y1 == y) & (other_width == width) & (other_height == height)


def _candidates(
    box: np.ndarray, code: np.ndarray, other_box: np.ndarray, other_code: np.ndarray, least: float, crowd: np.ndarray
) -> _Candidates:
    order = np.lexsort((other_box[:, 0], other_code))
    sorted_code, sorted_x = other_code[order], other_box[order, 0]
    x, width = box[:, 0], np.maximum(box[:, 2], 0)
    slack = SLACK * (1 + np.abs(x) + width)
    first = x - width * (1 - least) / least - slack
    if crowd.any():
        first = np.where(np.isin(code, other_code[crowd]), -np.inf, first)
    low = _count_before(sorted_code, sorted_x, code, first, inclusive=False)
    high = _count_before(sorted_code, sorted_x, code, x + width * (1 - least) + slack, inclusive=True)
    return _Candidates(order, low, np.maximum(low, high))


def _in_dense_group(code: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether the boxes of the same code have more than `DENSE_PAIRS` candidates on average, bool [N]."""
    _, group = np.unique(code, return_inverse=True)
    pairs, rows = np.bincount(group, sizes), np.bincount(group)
    return (pairs > tuning.DENSE_PAIRS * rows)[group]


def _blocks(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose `sizes` add up to about `PAIRS_PER_BLOCK`, at least one row each."""
    block = np.cumsum(sizes) // tuning.PAIRS_PER_BLOCK
    return itertools.pairwise(np.append(np.flatnonzero(np.diff(block, prepend=-1)), len(sizes)).tolist())


def _ranges(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (i, k) with low[i] <= k < high[i]."""
    size = np.maximum(high - low, 0)
    within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    return np.repeat(np.arange(len(low)), size), np.repeat(low, size) + within


def _count_before(
    sorted_code: np.ndarray, sorted_x: np.ndarray, code: np.ndarray, x: np.ndarray, *, inclusive: bool
) -> np.ndarray:
    """Number of sorted (code, x) pairs less than, or with `inclusive` at most, each of the pairs (code, x)."""
    count = len(sorted_code)
    is_query = np.repeat([0, 1], [count, len(code)])
    tie = is_query if inclusive else 1 - is_query
    order = np.lexsort((tie, np.concatenate([sorted_x, x]), np.concatenate([sorted_code, code])))
    before = np.cumsum(is_query[order] == 0)
    out = np.empty(len(order), dtype=np.int64)
    out[order] = before
    return out[count:]
