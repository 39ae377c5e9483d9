"""AP under image weights: copies of images, subsets, and the pooled list."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_cases import Case, annotation, categories, generated, image, load

from coordexp.evaluation import coco_lvis_ap
from coordexp.evaluation.average_precision import RankedMatches, mean_ap
from coordexp.evaluation.greedy_matching import match
from coordexp.evaluation.protocol import ScoredProtocol


def test_image_weights_equal_copies_of_images(tmp_path):
    case = generated(1, lvis=False, images=8)
    ground_truth, found = load(case, tmp_path / "a")
    weights = np.array([0, 2, 1, 0, 3, 1, 1, 2])
    part = ScoredProtocol("coco", ground_truth, found, 100)
    copies = Case([], [], case.categories)
    for row, weight in zip(case.images, weights, strict=True):
        for _ in range(weight):
            new = row | {"id": len(copies.images) + 1}
            copies.images.append(new)
            copies.detections[new["id"]] = case.detections[row["id"]]
            for obj in (a for a in case.annotations if a["image_id"] == row["id"]):
                copies.annotations.append(obj | {"id": len(copies.annotations) + 1, "image_id": new["id"]})
    drawn = ScoredProtocol("coco", *load(copies, tmp_path / "b"), 100)
    for name, value in drawn.statistic(np.ones(len(copies.images), dtype=int)).items():
        # copies change the order of equal scores, which may change AP slightly but not the counts
        assert part.statistic(weights)[name] == pytest.approx(value, abs=0.03 if name.startswith("AP") else 1e-12)


def test_zero_weights_equal_a_subset_if_scores_differ(tmp_path):
    case = generated(2, lvis=False, images=9)
    rng = np.random.default_rng(0)
    for image_id, found in case.detections.items():
        case.detections[image_id] = [(d, box, float(rng.uniform())) for d, box, _ in found]
    ground_truth, found = load(case, tmp_path)
    weights = np.array([0, 1, 1, 0, 1, 1, 1, 0, 1])
    part = ScoredProtocol("coco", ground_truth, found, 100)
    kept = weights.astype(bool)
    rows = found.take(kept[found.image]).renumbered(np.cumsum(kept) - 1)
    scores = coco_lvis_ap.coco(ground_truth.restricted(kept), rows, 100)
    assert mean_ap(part.ranked.average_precision(weights)) == pytest.approx(scores.metrics["AP"], abs=1e-12)


def test_pooled_list_ranks_false_positives_first_among_equal_scores(tmp_path):
    case = Case([image(1)], [annotation(1, 1, [10, 10, 50, 50])], categories(2))
    case.detections = {1: [("thing0", [10, 10, 60, 60], 0.5), ("thing1", [300, 300, 350, 350], 0.5)]}
    ground_truth, found = load(case, tmp_path)
    pooled = RankedMatches(match(ground_truth, found, federated=False), pooled=True)
    assert mean_ap(pooled.average_precision()) == pytest.approx(0.5)
