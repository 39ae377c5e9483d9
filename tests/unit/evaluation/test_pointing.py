"""Pointing accuracy by hand, and against a loop over images and categories."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_cases import generated, load, three_images

from coordexp.evaluation.pointing import pointing_accuracy


def test_best_detection_of_each_annotated_category_counts(tmp_path):
    case = three_images()  # thing0 in images 1 and 2, thing1 in image 1, where it is missed
    assert pointing_accuracy(*load(case, tmp_path / "a")) == pytest.approx((1 + 0) / 2)
    case.detections[1].insert(0, ("thing0", [0, 0, 10, 10], 0.95))  # a better one, elsewhere
    case.detections[1].append(("thing1", [310, 110, 320, 120], 0.1))  # small, but inside the object
    assert pointing_accuracy(*load(case, tmp_path / "b")) == pytest.approx((1 / 2 + 1) / 2)


def test_undefined_without_objects(tmp_path):
    case = three_images()
    case.annotations.clear()
    assert pointing_accuracy(*load(case, tmp_path)) is None


def test_equals_a_loop_over_images_and_categories(tmp_path):
    ground_truth, detections = load(generated(0, lvis=False, crowds=0.1), tmp_path)
    hits: dict[int, list[bool]] = {}
    for i in range(ground_truth.num_images):
        for k in range(ground_truth.num_categories):
            boxes = ground_truth.box[(ground_truth.image == i) & (ground_truth.category == k) & ~ground_truth.crowd]
            if not len(boxes):
                continue
            rows = np.flatnonzero((detections.image == i) & (detections.category == k))
            hit = False
            if len(rows):
                x, y, w, h = detections.box[rows[np.argmax(detections.score[rows])]]
                cx, cy = x + w / 2, y + h / 2
                hit = any(a <= cx <= a + c and b <= cy <= b + d for a, b, c, d in boxes)
            hits.setdefault(k, []).append(hit)
    expected = np.mean([np.mean(values) for values in hits.values()])
    assert 0 < expected < 1
    assert pointing_accuracy(ground_truth, detections) == pytest.approx(expected)
