"""Pairs of overlapping boxes against all pairs, and the size of blocks."""

from __future__ import annotations

import numpy as np
import pytest

from coordexp.evaluation.box_pairs import _columns, _iou_with_all, box_iou, near_overlaps
from coordexp.runtime import tuning


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes on a coarse grid, so that equal boxes, equal edges and boxes without width occur."""
    return np.concatenate([rng.integers(-3, 12, (count, 2)), rng.integers(0, 8, (count, 2))], axis=1).astype(float)


@pytest.mark.parametrize("least", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("crowds", [0.0, 0.2])
@pytest.mark.parametrize("dense_pairs", [0, 10, 10**6])
def test_exactly_the_pairs_above_the_limit_are_found(monkeypatch, least, crowds, dense_pairs):
    """Also one by one, in groups where most boxes overlap."""
    monkeypatch.setattr(tuning, "PAIRS_PER_BLOCK", 50)
    monkeypatch.setattr(tuning, "DENSE_PAIRS", dense_pairs)
    rng = np.random.default_rng(int(10 * least))
    box, other = boxes(rng, 120), boxes(rng, 150)
    code, other_code = rng.integers(4, size=120), np.sort(rng.integers(5, size=150))
    crowd = rng.random(150) < crowds
    found = {}
    for i, j, overlap in near_overlaps(box, code, other, other_code, least, crowd):
        found |= dict(zip(zip(i.tolist(), j.tolist(), strict=True), overlap.tolist(), strict=True))
    i, j = np.nonzero(code[:, None] == other_code)
    overlap = box_iou(box[i], other[j], crowd[j])
    near = (overlap >= least) | (box[i] == other[j]).all(axis=1)
    pairs = zip(i[near].tolist(), j[near].tolist(), strict=True)
    assert found == dict(zip(pairs, overlap[near].tolist(), strict=True))


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_the_iou_of_one_box_with_all_is_equal_to_the_last_bit(count):
    rng = np.random.default_rng(count)
    box, other = rng.uniform(0, 640, (1, 4)) * 0.7, rng.uniform(-5, 640, (count, 4))
    crowd = rng.random(count) < 0.1
    overlap, _ = _iou_with_all(box[0], _columns(other, crowd))
    assert overlap.tolist() == box_iou(np.repeat(box, count, axis=0), other, crowd).tolist()


def test_blocks_are_bounded_and_hold_all_pairs_of_a_box(monkeypatch):
    monkeypatch.setattr(tuning, "PAIRS_PER_BLOCK", 40)
    box = np.tile([0.0, 0.0, 9.0, 9.0], (30, 1))
    code = np.zeros(30, dtype=int)
    blocks = list(near_overlaps(box, code, box, code, 0.5))
    assert all(len(i) <= 40 + 30 for i, *_ in blocks)
    seen = [set(i.tolist()) for i, *_ in blocks]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 30


def test_no_boxes():
    none = np.zeros((0, 4))
    one = np.array([[0.0, 0.0, 1.0, 1.0]])
    for a, b in ((none, none), (one, none), (none, one)):
        assert sum(len(i) for i, *_ in near_overlaps(a, np.zeros(len(a), int), b, np.zeros(len(b), int), 0.5)) == 0
