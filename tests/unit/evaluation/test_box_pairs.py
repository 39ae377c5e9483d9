"""Pairs of overlapping boxes against all pairs, and the size of blocks."""

from __future__ import annotations

import numpy as np
import pytest

from coordexp.evaluation.box_pairs import box_iou, near_pairs
from coordexp.runtime import tuning


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes on a coarse grid, so that equal boxes, equal edges and boxes without width occur."""
    return np.concatenate([rng.integers(-3, 12, (count, 2)), rng.integers(0, 8, (count, 2))], axis=1).astype(float)


@pytest.mark.parametrize("least", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("crowds", [0.0, 0.2])
def test_no_pair_above_the_limit_is_missed(monkeypatch, least, crowds):
    monkeypatch.setattr(tuning, "PAIRS_PER_BLOCK", 50)
    rng = np.random.default_rng(int(10 * least))
    box, other = boxes(rng, 120), boxes(rng, 150)
    code, other_code = rng.integers(4, size=120), np.sort(rng.integers(5, size=150))
    crowd = rng.random(150) < crowds
    found = set()
    for i, j in near_pairs(box, code, other, other_code, least, crowd):
        found |= set(zip(i.tolist(), j.tolist(), strict=True))
    i, j = np.nonzero(code[:, None] == other_code)
    same = (box[i] == other[j]).all(axis=1)
    needed = (box_iou(box[i], other[j], crowd[j]) >= least) | same
    assert set(zip(i[needed].tolist(), j[needed].tolist(), strict=True)) <= found
    assert found <= set(zip(i.tolist(), j.tolist(), strict=True))
    assert crowds or len(found) < 0.8 * len(i)


def test_blocks_are_bounded_and_hold_all_pairs_of_a_box(monkeypatch):
    monkeypatch.setattr(tuning, "PAIRS_PER_BLOCK", 40)
    box = np.tile([0.0, 0.0, 9.0, 9.0], (30, 1))
    code = np.zeros(30, dtype=int)
    blocks = list(near_pairs(box, code, box, code, 0.5))
    assert all(len(i) <= 40 + 30 for i, _ in blocks)
    seen = [set(i.tolist()) for i, _ in blocks]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 30


def test_no_boxes():
    none = np.zeros((0, 4))
    one = np.array([[0.0, 0.0, 1.0, 1.0]])
    for a, b in ((none, none), (one, none), (none, one)):
        assert sum(len(i) for i, _ in near_pairs(a, np.zeros(len(a), int), b, np.zeros(len(b), int), 0.5)) == 0
