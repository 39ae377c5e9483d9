"""Pairs of overlapping boxes, in blocks of bounded size, so that memory is linear in the number of boxes.

Two boxes whose IoU is at least t have intervals in x whose IoU is at least t as well. The left edge of the other box
then lies between `x - w (1 - t) / t` and `x + w (1 - t)`, and only these pairs are compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from coordexp.runtime import tuning

SLACK = 1e-6  # relative to the numbers compared, far above rounding errors


def box_iou(detection: np.ndarray, ground_truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of paired boxes, float64 [P, 4] as x, y, w, h; for crowds the intersection over the detection's area."""
    low = np.maximum(detection[:, :2], ground_truth[:, :2])
    high = np.minimum(detection[:, :2] + detection[:, 2:], ground_truth[:, :2] + ground_truth[:, 2:])
    sides = np.maximum(high - low, 0)
    intersection = sides[:, 0] * sides[:, 1]
    area = detection[:, 2] * detection[:, 3]
    union = np.where(crowd, area, area + ground_truth[:, 2] * ground_truth[:, 3] - intersection)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def near_pairs(
    box: np.ndarray,
    code: np.ndarray,
    other_box: np.ndarray,
    other_code: np.ndarray,
    least: float,
    crowd: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index pairs (i, j) of boxes of equal code, among them every pair with IoU >= `least` or the same box.

    All pairs of one `i` are in one block, and blocks are in the order of `i`. Boxes are x, y, w, h. `crowd` (bool, one
    per other box) marks those whose IoU is the intersection over the area of box `i`.
    """
    order = np.lexsort((other_box[:, 0], other_code))
    sorted_code, sorted_x = other_code[order], other_box[order, 0]
    x, width = box[:, 0], np.maximum(box[:, 2], 0)
    slack = SLACK * (1 + np.abs(x) + width)
    first = x - width * (1 - least) / least - slack
    if crowd is not None and crowd.any():
        first = np.where(np.isin(code, other_code[crowd]), -np.inf, first)
    low = _count_before(sorted_code, sorted_x, code, first, inclusive=False)
    high = _count_before(sorted_code, sorted_x, code, x + width * (1 - least) + slack, inclusive=True)
    for start, stop in _blocks(high - low):
        i, at = _ranges(low[start:stop], high[start:stop])
        yield i + start, order[at]


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
