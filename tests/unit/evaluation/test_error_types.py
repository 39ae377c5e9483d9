"""Duplicates and error types of false positives."""

from __future__ import annotations

import numpy as np
from evaluation_cases import Case, annotation, categories, generated, image, load

from coordexp.evaluation.error_types import ERROR_TYPES, annotated_near_pairs, duplicates, false_positives
from coordexp.evaluation.greedy_matching import match
from coordexp.geometry.boxes import iou
from coordexp.runtime import tuning


def test_duplicates(tmp_path):
    case = Case([image(1), image(2)], [], categories(2))
    box = [100, 100, 200, 200]
    nearly, apart = [100, 100, 200, 195], [100, 100, 200, 188]
    found = [("thing0", box, 0.9), ("Thing0", nearly, 0.8), ("thing1", box, 0.7), ("thing0", apart, 0.6)]
    case.detections = {
        1: [*found, ("blob", box, 0.5), ("blob", box, 0.5), ("blub", box, 0.4)],
        2: [("thing0", box, 0.1)],
    }
    _, rows = load(case, tmp_path)
    duplicate = duplicates(rows).exact
    names = [rows.descriptions[d] for d in rows.desc[duplicate]]
    assert names == ["Thing0", "thing0", "blob"]  # the last thing0 has IoU 0.93 with Thing0


def test_error_type_of_false_positives(tmp_path):
    case = Case([image(1)], [annotation(1, 1, [100, 100, 100, 100])], categories(2))
    box = [100, 100, 200, 200]
    case.detections = {
        1: [
            ("thing0", box, 0.9),
            ("thing0", box, 0.8),
            ("thing0", [100, 100, 200, 140], 0.7),
            ("thing1", box, 0.6),
            ("thing1", [400, 300, 420, 320], 0.5),
            ("blob", box, 0.4),
        ]
    }
    ground_truth, found = load(case, tmp_path)
    matches = match(ground_truth, found, federated=False)
    rows, error = false_positives(ground_truth, found, matches, np.flatnonzero(found.category < 0))
    named = sorted(zip(found.score[rows].tolist(), (ERROR_TYPES[e] for e in error), strict=True), reverse=True)
    assert named == [
        (0.8, "duplicate"),
        (0.7, "localisation"),
        (0.6, "classification"),
        (0.5, "background"),
        (0.4, "unmapped"),
    ]


def test_chunks_do_not_change_the_duplicates(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "PAIRS_PER_BLOCK", 1000)
    case = generated(3, lvis=False, images=6, kinds=1, noise=120)
    for image_id, rows in case.detections.items():
        case.detections[image_id] = rows + rows[:9]
    _, found = load(case, tmp_path)
    blocks = duplicates(found)
    monkeypatch.undo()
    whole = duplicates(found)
    assert blocks.exact.any() and blocks.near_pairs == whole.near_pairs > 0
    assert (blocks.exact == whole.exact).all() and (blocks.near == whole.near).all()


def test_near_duplicates_agree_with_all_pairs_compared_one_by_one(tmp_path):
    case = generated(4, lvis=False, images=5, kinds=2, noise=40)
    for image_id, rows in case.detections.items():
        shifted = [(desc, [x1, y1, x2, y2 + 0.12 * (y2 - y1)], score / 2) for desc, (x1, y1, x2, y2), score in rows]
        case.detections[image_id] = rows + rows[:3] + shifted[2:9]
    case.detections[2] += [("thing0", [5, 5, 5, 9], 0.1)] * 2  # identical boxes without area
    _, found = load(case, tmp_path)
    label = np.where(found.category >= 0, found.category, -1 - found.desc)
    exact, near, pairs = set(), set(), 0
    for j in range(len(found)):
        for i in range(j):
            if found.image[i] == found.image[j] and label[i] == label[j]:
                same = (found.box[i] == found.box[j]).all()
                overlap = 1.0 if same else iou(xyxy(found.box[[i]]), xyxy(found.box[[j]]))[0, 0]
                pairs += overlap >= 0.8
                near |= {j} if overlap >= 0.8 else set()
                exact |= {j} if overlap >= 0.9 else set()
    result = duplicates(found)
    assert set(np.flatnonzero(result.exact)) == exact and set(np.flatnonzero(result.near)) == near
    assert result.near_pairs == pairs and len(near) > len(exact) > 5


def test_near_duplicate_annotations_are_pairs_of_one_category(tmp_path):
    box, nearly = [100, 100, 100, 100], [100, 100, 100, 85]
    rows = [(1, box, 1), (1, nearly, 1), (1, box, 3), (2, box, 1), (2, [100, 100, 100, 75], 1)]
    case = Case([image(1), image(2)], [annotation(n, *row) for n, row in enumerate(rows)], categories(2))
    case.annotations.append(annotation(9, 2, box) | {"iscrowd": 1})
    ground_truth, _ = load(case, tmp_path)
    assert annotated_near_pairs(ground_truth) == 1


def xyxy(box: np.ndarray) -> np.ndarray:
    """Corners of boxes given as x, y, w, h."""
    return np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1)
