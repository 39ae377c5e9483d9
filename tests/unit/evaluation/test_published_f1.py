"""F1 as in the Rex-Omni tables, against a slow computation from the arrays of pycocotools and by hand."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from evaluation_cases import Case, annotation, categories, generated, image, load
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions
from coordexp.evaluation.published_f1 import published_f1


def reference(case: Case, *, federated: bool) -> dict[str, tuple[float, float, float]]:
    """(P, R, F1) at IoU 0.5, 0.95 and over 0.50:0.95, with loops over the arrays of COCOeval."""
    gt, rows = COCO(), []
    annotations = [dict(row, iscrowd=0 if federated else row.get("iscrowd", 0)) for row in case.annotations]
    gt.dataset = {"images": case.images, "annotations": annotations, "categories": case.categories}
    ids = {c["name"]: c["id"] for c in case.categories}
    annotated = {(row["image_id"], row["category_id"]) for row in annotations}
    for entry in case.images:
        for desc, (x1, y1, x2, y2), _ in case.detections.get(entry["id"], []):
            if (entry["id"], ids.get(desc)) in annotated:
                box = [x1, y1, round(x2 - x1, 6), round(y2 - y1, 6)]
                rows.append({"image_id": entry["id"], "category_id": ids[desc], "bbox": box, "score": 0.2})
    with contextlib.redirect_stdout(io.StringIO()):
        gt.createIndex()
        run = COCOeval(gt, gt.loadRes(rows), "bbox")
        run.params.maxDets = [1, 10, 10_000 if federated else 100]
        run.evaluate()
        if federated:
            ignore_unmatched(run, {entry["id"]: entry["not_exhaustive_category_ids"] for entry in case.images})
        run.accumulate()
    precision, recall = run.eval["precision"][:, :, :, 0, 2], run.eval["recall"][:, :, 0, 2]
    return {
        "0.50": summarise(precision[:1], recall[:1]),
        "0.95": summarise(precision[-1:], recall[-1:]),
        "mean": summarise(precision, recall),
    }


def ignore_unmatched(run: COCOeval, not_exhaustive: dict[int, list[int]]) -> None:
    for result in run.evalImgs:
        if result is not None and result["category_id"] in not_exhaustive[result["image_id"]]:
            result["dtIgnore"] |= result["dtMatches"] == 0


def summarise(precision: np.ndarray, recall: np.ndarray) -> tuple[float, float, float]:
    """precision [T, R, K], recall [T, K]."""
    last, precisions, recalls = 0.0, [], []
    for k in range(precision.shape[2]):
        found = []
        for t in range(len(precision)):
            positive = [v for v in precision[t, :, k] if v > 0]
            last = positive[-1] if positive else last
            found.append(last)
        precisions.append(sum(found) / len(found))
        recalls.append(recall[:, k].mean())
    p, r = (np.mean([v for v in values if v > 0] or [0.0]) for values in (precisions, recalls))
    return p, r, 2 * p * r / (p + r) if p + r else 0.0


@pytest.mark.parametrize("federated", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_equals_a_slow_computation_from_cocoeval(tmp_path, seed, federated):
    case = generated(seed, kinds=9, lvis=federated, crowds=0.1, noise=[0, 6][seed % 2])
    if seed == 5:
        case.detections = {case.images[1]["id"]: case.detections[case.images[1]["id"]]}
    ground_truth, detections = load(case, tmp_path)
    result = published_f1(ground_truth, detections, federated=federated)
    for name, expected in reference(case, federated=federated).items():
        key = {"0.50": "iou_50", "0.95": "iou_95", "mean": "mean"}[name]
        found = tuple(getattr(value, key) for value in (result.precision, result.recall, result.f1))
        assert found == pytest.approx(expected, abs=1e-12)


def test_only_the_first_100_objects_of_a_category_in_the_order_of_the_answer_count(tmp_path):
    case = Case([image(1)], [annotation(1, 1, [10, 10, 50, 50])], categories(1))
    wrong, right = ("thing0", [300, 300, 320, 320], 0.9), ("thing0", [10, 10, 60, 60], 0.1)
    case.detections = {1: [wrong] * 99 + [right]}
    assert published_f1(*load(case, tmp_path / "in"), federated=False).precision.iou_50 == pytest.approx(1 / 100)
    case.detections = {1: [wrong] * 100 + [right]}
    assert published_f1(*load(case, tmp_path / "out"), federated=False).f1.iou_50 == 0


def test_flatters(tmp_path):
    """A category that is never found takes the precision of the one before it and is left out of the recall."""
    boxes = [annotation(1, 1, [10, 10, 50, 50], 1), annotation(2, 2, [10, 10, 50, 50], 3)]
    case = Case([image(1), image(2)], boxes, categories(2))
    case.detections = {1: [("thing0", [10, 10, 60, 60], 0.9), ("thing1", [10, 10, 60, 60], 0.9)]}
    assert published_f1(*load(case, tmp_path), federated=False).f1.iou_50 == pytest.approx(1)
    predictions, annotations = case.write(tmp_path)
    scores = evaluate(predictions, annotations, EvaluateOptions(bootstrap=0), dataset="generated", split="val").coco.f1
    assert (scores.all_predictions.micro.iou_50, scores.all_predictions.macro.iou_50) == (0.5, 0.5)
    assert (scores.prompted_only.macro.iou_50, scores.published.f1.iou_50) == (1.0, pytest.approx(1))
