"""F1 of counted examples under both rules."""

from __future__ import annotations

import pytest
from evaluation_cases import Case, annotation, categories, image, load

from coordexp.evaluation import f1
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.greedy_matching import match
from coordexp.evaluation.options import EvaluateOptions


def test_missed_categories_lower_macro_f1(tmp_path):
    kinds = 12
    case = Case([image(k + 1) for k in range(kinds)], [], categories(kinds))
    for k in range(kinds):
        row = annotation(k + 1, k + 1, [10, 10, 50, 50], case.categories[k]["id"])
        case.annotations.append(row)
    case.detections = {1: [("thing0", [10, 10, 60, 60], 0.9)]}
    predictions, annotations = case.write(tmp_path)
    result = evaluate(predictions, annotations, EvaluateOptions(bootstrap=0), dataset="generated", split="val")
    scores = result.coco.f1
    assert scores.all_predictions.macro.iou_50 == pytest.approx(1 / kinds)
    assert scores.prompted_only.macro.iou_50 == 1.0  # ignores the missed categories
    assert result.coco.metrics["AP"] == pytest.approx(1 / kinds)


def test_f1_of_counted_examples(tmp_path):
    case = Case(
        [image(1), image(2)], [annotation(1, 1, [10, 10, 50, 50]), annotation(2, 2, [10, 10, 50, 50], 3)], categories(3)
    )
    box = [10, 10, 60, 60]
    # a true positive, its duplicate, a category absent from image 1, an unmapped description
    case.detections = {1: [("thing0", box, 0.9), ("thing0", box, 0.8), ("thing1", box, 0.7), ("blob", box, 0.6)]}
    ground_truth, found = load(case, tmp_path)
    matches = match(ground_truth, found, federated=False)
    unmapped = found.image[found.category < 0]
    every, prompted = f1.F1Table(matches, unmapped), f1.F1Table(matches, unmapped, prompted_only=True)
    score, precision, recall = (v[0] for v in f1.micro(every.counts()))
    assert (score, precision, recall) == (pytest.approx(2 / 6), 0.25, 0.5)
    assert f1.macro(every.counts(), prompted_only=False)[0] == pytest.approx((2 / 3 + 0) / 2)
    assert f1.micro(prompted.counts())[0][0] == pytest.approx(2 / 4)
    assert f1.macro(prompted.counts(), prompted_only=True)[0] == pytest.approx(2 / 3)
    true_positives, false_positives, objects = every.per_image(0)
    assert (true_positives.tolist(), false_positives.tolist(), objects.tolist()) == ([1, 0], [3, 0], [1, 1])
