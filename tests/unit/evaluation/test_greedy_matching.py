"""Greedy matching against a slow version, and its rules for federated annotations."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_cases import Case, annotation, categories, generated, image, load

from coordexp.evaluation import box_pairs, greedy_matching
from coordexp.evaluation.box_pairs import box_iou
from coordexp.evaluation.greedy_matching import IOU_THRESHOLDS, match
from coordexp.runtime import tuning


def slow_matching(ground_truth, found, threshold: float) -> dict[int, int]:
    """Object of every matched detection, by loops over detections and objects."""
    taken: dict[int, int] = {}
    used = set()
    for row in range(len(found)):  # in score order within an image
        objects = np.flatnonzero(
            (ground_truth.image == found.image[row]) & (ground_truth.category == found.category[row])
        )
        best, best_key = -1, None
        for m in objects:
            overlap = box_iou(found.box[[row]], ground_truth.box[[m]], ground_truth.crowd[[m]])[0]
            if overlap < min(threshold, 1 - 1e-10) or (m in used and not ground_truth.crowd[m]):
                continue
            key = (not ground_truth.crowd[m], overlap, m)
            if best_key is None or key > best_key:
                best, best_key = m, key
        if best >= 0:
            taken[row] = best
            used.add(best)
    return taken


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dense_pairs", [0, 10**6])
def test_matching_equals_the_slow_version(tmp_path, monkeypatch, seed, dense_pairs):
    monkeypatch.setattr(tuning, "DENSE_PAIRS", dense_pairs)
    ground_truth, found = load(generated(seed, lvis=False, crowds=0.2, kinds=2, noise=10), tmp_path)
    matches = match(ground_truth, found, federated=False)
    for t in (0, 5, 9):
        expected = slow_matching(ground_truth, found, IOU_THRESHOLDS[t])
        actual = {int(row): int(m) for row, m in zip(matches.row, matches.object_index[:, t], strict=True) if m >= 0}
        assert actual == expected
        correct = {row for row, m in expected.items() if not ground_truth.crowd[m]}
        assert set(matches.row[matches.matched[:, t]].tolist()) == correct
    assert len(expected) < len(slow_matching(ground_truth, found, IOU_THRESHOLDS[0]))


def test_federated_matching_judges_only_verified_categories(tmp_path):
    case = Case([image(1) | {"neg_category_ids": [3], "not_exhaustive_category_ids": [1]}], [], categories(3))
    case.annotations.append(annotation(1, 1, [10, 10, 50, 50]))
    far = [300, 300, 350, 350]
    case.detections = {1: [("thing0", far, 0.9), ("thing1", far, 0.8), ("thing2", far, 0.7)]}
    ground_truth, found = load(case, tmp_path)
    matches = match(ground_truth, found, federated=True)
    assert matches.num_not_judged == 1  # thing2 is neither present nor negative
    assert dict(zip(matches.category.tolist(), matches.ignored[:, 0].tolist(), strict=True)) == {0: True, 1: False}


def test_pairs_are_formed_in_blocks_of_bounded_size(tmp_path, monkeypatch):
    """Memory does not grow with detections times objects of an image and category."""
    ground_truth, detections = load(generated(3, lvis=False, kinds=1, noise=40), tmp_path)
    expected = greedy_matching.match(ground_truth, detections, federated=False)
    sizes = []
    iou = box_pairs.box_iou
    monkeypatch.setattr(tuning, "PAIRS_PER_BLOCK", 20)
    monkeypatch.setattr(box_pairs, "box_iou", lambda *boxes: sizes.append(len(boxes[0])) or iou(*boxes))
    found = greedy_matching.match(ground_truth, detections, federated=False)
    assert len(sizes) > 5 and max(sizes) < 60
    assert (found.object_index == expected.object_index).all()
