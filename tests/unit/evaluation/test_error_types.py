"""Duplicates and error types of false positives."""

from __future__ import annotations

import numpy as np
from evaluation_cases import Case, annotation, categories, generated, image, load

from coordexp.evaluation.error_types import ERROR_TYPES, duplicates, false_positives
from coordexp.evaluation.greedy_matching import match
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
    duplicate = duplicates(rows)
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
    assert blocks.any() and (blocks == duplicates(found)).all()
