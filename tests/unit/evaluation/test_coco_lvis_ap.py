"""AP under both protocols for objects and detections without area, as the reference implementations compute it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ap_references import assert_same, lvis_ap, lvis_metrics, pycocotools_metrics
from evaluation_cases import Case, annotation, categories, generated, image, load

from coordexp.evaluation import coco_lvis_ap
from coordexp.evaluation.average_precision import mean_ap
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions
from coordexp.evaluation.protocol import ScoredProtocol


def with_boxes_without_area(seed: int, crowds: float = 0.0) -> Case:
    """Random objects and detections; some have no width, no height, or a box with an annotated area of 0."""
    case = generated(seed, images=12, kinds=4, lvis=True, crowds=crowds)
    rng = np.random.default_rng(seed)
    for row in case.annotations:
        kind = rng.integers(8)
        if kind < 2:
            row["bbox"] = [*row["bbox"][:2], *((0.0, row["bbox"][3]) if kind else (row["bbox"][2], 0.0))]
        if kind < 3:
            row["area"] = 0.0
    for found in case.detections.values():
        for i, (name, (x1, y1, x2, y2), score) in enumerate(found):
            if rng.random() < 0.2:
                found[i] = (name, [x1, y1, x1, y2] if rng.random() < 0.5 else [x1, y1, x2, y1], score)
    return case


def content_of(case: Case) -> dict:
    return {"images": case.images, "annotations": case.annotations, "categories": case.categories}


def our_names(reference: dict, suffix: str) -> dict:
    return {name + suffix if name.startswith("AR") else name: value for name, value in reference.items()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_dets", [300, 5])
def test_lvis_ap_leaves_out_what_has_no_area_as_lvis_api_does(tmp_path, seed, max_dets):
    case = with_boxes_without_area(seed, crowds=0.2)
    ground_truth, found = load(case, tmp_path)
    assert (~ground_truth.has_area).sum() > 3 and (~found.has_area).sum() > 3
    reference = lvis_ap(content_of(case), case.coco_results(), max_dets)
    assert_same(coco_lvis_ap.lvis(ground_truth, found, max_dets).metrics, our_names(reference, f"@{max_dets}"))
    protocol = ScoredProtocol("lvis", ground_truth, found, max_dets)
    assert mean_ap(protocol.ranked.average_precision()) == pytest.approx(reference["AP"], abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_fixed_ap_leaves_out_what_has_no_area_as_lvis_api_does(tmp_path, seed):
    case = with_boxes_without_area(seed)
    ground_truth, found = load(case, tmp_path)
    reference = lvis_ap(content_of(case), case.coco_results(), -1)
    assert_same(coco_lvis_ap.lvis_fixed(ground_truth, found).metrics, reference)


@pytest.mark.parametrize("seed", range(4))
def test_coco_ap_keeps_what_has_no_area_as_pycocotools_does(tmp_path, seed):
    case = with_boxes_without_area(seed, crowds=0.2)
    ground_truth, found = load(case, tmp_path)
    reference = pycocotools_metrics(tmp_path / "annotations.json", case.coco_results())
    assert_same(coco_lvis_ap.coco(ground_truth, found, 100).metrics, reference)
    protocol = ScoredProtocol("coco", ground_truth, found, 100)
    assert mean_ap(protocol.ranked.average_precision()) == pytest.approx(reference["AP"], abs=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_the_slow_reference_equals_lvis_api(tmp_path, lvis, seed):
    case = with_boxes_without_area(seed, crowds=0.2)
    case.write(tmp_path)
    expected = lvis_metrics(lvis, tmp_path / "annotations.json", case.coco_results())
    assert our_names(lvis_ap(content_of(case), case.coco_results(), 300), "@300") == pytest.approx(expected)


def test_an_object_without_area_is_neither_missed_nor_verifies_its_category(tmp_path):
    """One object of each category; that of the second has no area and its detection is therefore not judged."""
    case = Case([image(1) | {"neg_category_ids": [], "not_exhaustive_category_ids": []}], [], categories(2))
    case.annotations = [annotation(1, 1, [10, 10, 50, 50]), annotation(2, 1, [90, 90, 0, 50], category_id=3)]
    case.detections = {1: [("thing0", [10, 10, 60, 60], 0.5), ("thing1", [90, 90, 120, 140], 0.9)]}
    predictions, annotations = case.write(tmp_path)
    result = evaluate(predictions, annotations, EvaluateOptions(bootstrap=0), dataset="d", split="val")
    assert result.lvis.metrics["AP"] == result.lvis.fixed_ap.metrics["AP"] == pytest.approx(1.0)
    assert result.lvis.metrics["F1_50_micro"] == result.lvis.ap_by_iou["0.50"] == pytest.approx(1.0)
    assert result.coco.metrics["AP"] == pytest.approx(0.5)
    assert result.lvis.counts.not_judged == 1


def test_fixed_ap_has_no_limit_per_image(tmp_path):
    """350 objects of one category in one image are all found, more than the 300 that LVIS AP scores."""
    case = Case([image(1) | {"neg_category_ids": [], "not_exhaustive_category_ids": []}], [], categories(1))
    boxes = [[20 * (i % 25), 20 * (i // 25), 15, 15] for i in range(350)]
    case.annotations = [annotation(i + 1, 1, box) for i, box in enumerate(boxes)]
    case.detections = {1: [("thing0", [x, y, x + w, y + h], 0.5) for x, y, w, h in boxes]}
    ground_truth, found = load(case, tmp_path)
    assert coco_lvis_ap.lvis_fixed(ground_truth, found).metrics["AR"] == 1.0
    assert coco_lvis_ap.lvis(ground_truth, found, 300).metrics["AR@300"] == pytest.approx(300 / 350)


@pytest.mark.parametrize("flat", [[0.1, 0.1, 0.4, 0.1, 0.2, 0.1], [0.1, 0.1, 0.1, 0.4, 0.1, 0.2]])
def test_masks_without_pixels_are_left_out_of_lvis_mask_ap(tmp_path, flat):
    case = Case([image(1) | {"neg_category_ids": [3], "not_exhaustive_category_ids": []}], [], categories(2))
    x, y, w, h = 64, 48, 128, 96
    case.annotations = [annotation(1, 1, [x, y, w, h]) | {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}]
    predictions, annotations = case.write(tmp_path)
    square = [x / 640, y / 480, (x + w) / 640, y / 480, (x + w) / 640, (y + h) / 480, x / 640, (y + h) / 480]
    line = json.loads(predictions.read_text())
    box = {"desc": "thing0", "norm": [0.1, 0.1, 0.3, 0.3]}
    line["detections"] = [box | {"score": 0.9, "poly": flat}, box | {"score": 0.5, "poly": square}]
    predictions.write_text(json.dumps(line) + "\n")
    result = evaluate(predictions, annotations, EvaluateOptions(bootstrap=0), dataset="d", split="val")
    assert result.lvis.segm.metrics["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("ids", [(1, 2), (0, 1), (-5, -4), (2**53, 2**53 + 1), (-(2**63), 2**63 - 1)])
def test_category_ids_of_any_size_are_kept_apart(tmp_path, ids):
    """pycocotools accepts them; float64 has the same value for 2^53 and 2^53 + 1."""
    boxes = [[10, 10, 30, 30], [50, 50, 30, 30]]
    rows = [{"image_id": 1, "category_id": c, "bbox": b} for c, b in zip(ids, boxes, strict=True)]
    gt = {
        "images": [image(1) | {"width": 100, "height": 100, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "annotations": [{"id": i, **row, "area": 900, "iscrowd": 0} for i, row in enumerate(rows, 1)],
        "categories": [{"id": c, "name": name} for c, name in zip(ids, ("cat", "dog"), strict=True)],
    }
    swapped = [{**row, "category_id": c, "score": 0.9} for row, c in zip(rows, ids[::-1], strict=True)]
    (tmp_path / "gt.json").write_text(json.dumps(gt))
    options = EvaluateOptions(bootstrap=0)
    for results, expected in (([{**row, "score": 0.9} for row in rows], 1.0), (swapped, 0.0)):
        (tmp_path / "found.json").write_text(json.dumps(results))
        files = tmp_path / "found.json", tmp_path / "gt.json"
        result = evaluate(*files, options, dataset="ids", split="val", format="coco")
        assert [result.coco.metrics["AP"], result.lvis.metrics["AP"]] == pytest.approx([expected, expected])
