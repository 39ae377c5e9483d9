"""AP and AR equal those of pycocotools and lvis-api, on real annotations and on generated edge cases."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from ap_references import assert_same, lvis_metrics, pycocotools_metrics
from evaluation_cases import Case, categories, generated, load
from pycocotools import mask

from coordexp.evaluation import coco_lvis_ap
from coordexp.evaluation.average_precision import mean_ap
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions
from coordexp.evaluation.protocol import ScoredProtocol

PHOTOS = Path(__file__).parents[3].parent / "shared" / "photos" / "annotations"
needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason="photographs not available")


def add_shifted(case: Case, name: str, box: list[float], shift: float, score: float) -> None:
    """Add an object to the first image, and a detection shifted to the right by `shift` pixels."""
    case.annotations.append(
        {
            "id": len(case.annotations) + 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
    )
    x, y, w, h = box
    case.detections.setdefault(1, []).append((name, [x + shift, y, x + w + shift, y + h], score))


def empty_case(count: int = 1, kinds: int = 2) -> Case:
    images = [
        {"id": i + 1, "width": 640, "height": 480, "neg_category_ids": [1, 3], "not_exhaustive_category_ids": []}
        for i in range(count)
    ]
    return Case(images, [], categories(kinds))


def thresholds_hit_exactly() -> Case:
    case = empty_case()
    # IoU 1/3 .. 9/11 in whole pixels: .5 and .6 come out exactly
    for i, (width, shift) in enumerate([(30, 10), (40, 10), (30, 3), (90, 10), (21, 7), (70, 10), (19, 1), (39, 1)]):
        add_shifted(case, "thing0", [10, 10 + 50 * i, width, 20], shift, 0.5)
    return case


def area_limits() -> Case:
    case = empty_case()
    for i, (w, h) in enumerate([(32, 32), (96, 96), (33, 32), (96, 97), (32, 31)]):
        add_shifted(case, "thing0", [10 + 110 * i, 10, w, h], 1, 0.9 - i / 10)
        case.detections[1].append(("thing0", [10 + 110 * i, 300, 10 + 110 * i + w, 300 + h], 0.85))
    return case


def many_detections() -> Case:
    case = generated(11, images=4, kinds=3, lvis=True, noise=0)
    rng = np.random.default_rng(0)
    for image in case.images:
        for _ in range(420):
            x, y = np.round(rng.uniform(0, 500, 2), 1)
            case.detections[image["id"]].append(
                (f"thing{rng.integers(3)}", [x, y, x + 60, y + 40], float(rng.integers(4)) / 4)
            )
    return case


def outside() -> Case:
    case = generated(12, images=5, lvis=True)
    for image in case.images:
        case.detections[image["id"]] += [("thing0", [-50, -20, 100, 90], 0.9), ("thing1", [600, 400, 900, 800], 0.8)]
    return case


def without_area() -> Case:
    case = generated(13, images=5, lvis=True)
    for image in case.images:
        case.detections[image["id"]] += [("thing0", [50, 20, 50, 90], 0.9), ("thing1", [60, 40, 60, 40], 0.8)]
    return case


def duplicate_detections() -> Case:
    case = generated(14, images=8, lvis=True)
    for image_id, found in case.detections.items():
        case.detections[image_id] = found + found[:5] * 2
    return case


def no_detections() -> Case:
    case = generated(15, images=5, lvis=True)
    case.detections = {}
    return case


def no_objects() -> Case:
    case = generated(16, images=5, lvis=True)
    case.annotations.clear()
    return case


def unknown_categories() -> Case:
    case = generated(17, images=8, lvis=True)
    for found in case.detections.values():
        found += [("no such thing", [5, 5, 300, 300], 1.0)]
    return case


def same_boxes() -> Case:
    case = generated(18, images=6, lvis=True)
    for row in copy.deepcopy(case.annotations):
        case.annotations.append(row | {"id": len(case.annotations) + 1})
    return case


CASES = {
    "ties": lambda: generated(0, lvis=True, noise=12),
    "plain": lambda: generated(1, lvis=True),
    "one category": lambda: generated(2, lvis=True, kinds=1),
    "many categories": lambda: generated(3, lvis=True, kinds=40),
    "thresholds hit exactly": thresholds_hit_exactly,
    "area limits": area_limits,
    "over 300 detections": many_detections,
    "outside": outside,
    "without area": without_area,
    "duplicate detections": duplicate_detections,
    "no detections": no_detections,
    "no objects": no_objects,
    "unknown categories": unknown_categories,
    "two objects, one box": same_boxes,
}


@pytest.mark.parametrize("name", CASES)
def test_coco_equals_pycocotools(tmp_path, name):
    case = CASES[name]()
    ground_truth, found = load(case, tmp_path)
    annotations = tmp_path / "annotations.json"
    assert_same(
        coco_lvis_ap.coco(ground_truth, found, 100).metrics, pycocotools_metrics(annotations, case.coco_results())
    )


@pytest.mark.parametrize("seed", range(3))
def test_coco_with_crowds_equals_pycocotools(tmp_path, seed):
    case = generated(20 + seed, lvis=False, crowds=0.3, kinds=3)
    ground_truth, found = load(case, tmp_path)
    annotations = tmp_path / "annotations.json"
    assert ground_truth.crowd.sum() > 10
    assert_same(
        coco_lvis_ap.coco(ground_truth, found, 100).metrics, pycocotools_metrics(annotations, case.coco_results())
    )


@pytest.mark.parametrize("name", CASES)
def test_lvis_equals_lvis_api(tmp_path, lvis, name):
    case = CASES[name]()
    ground_truth, found = load(case, tmp_path)
    annotations = tmp_path / "annotations.json"
    assert_same(
        coco_lvis_ap.lvis(ground_truth, found, 300).metrics, lvis_metrics(lvis, annotations, case.coco_results())
    )


@pytest.mark.parametrize("name", ["ties", "over 300 detections", "no detections"])
def test_fixed_ap_equals_lvis_api_without_a_limit_per_image(tmp_path, lvis, name, monkeypatch):
    monkeypatch.setattr(coco_lvis_ap, "FIXED_AP_PER_CATEGORY", 60)
    case = CASES[name]()
    ground_truth, found = load(case, tmp_path)
    annotations = tmp_path / "annotations.json"
    kept, taken = [], dict.fromkeys((c["id"] for c in case.categories), 0)
    for row in sorted(case.coco_results(), key=lambda r: (-r["score"], r["image_id"])):
        taken[row["category_id"]] += 1
        kept += [row] if taken[row["category_id"]] <= 60 else []
    assert not kept or max(taken.values()) > 60 or name == "ties"
    assert_same(
        coco_lvis_ap.lvis_fixed(ground_truth, found).metrics, lvis_metrics(lvis, annotations, kept, max_dets=-1)
    )


@pytest.mark.parametrize("name", CASES)
def test_greedy_matching_gives_the_same_ap_as_hotcoco(tmp_path, name):
    ground_truth, found = load(CASES[name](), tmp_path)
    for protocol, limit in (("coco", 100), ("coco", 2), ("lvis", 300), ("lvis", 7)):
        parts = ScoredProtocol(protocol, ground_truth, found, limit)
        ap, scores = parts.ranked.average_precision(), parts.ap_scores
        np.testing.assert_allclose(ap.mean(axis=1), scores.category_ap[:, 0], atol=1e-12)
        np.testing.assert_allclose(ap[:, 0], scores.category_ap[:, 1], atol=1e-12)
        if scores.metrics["AP"] is not None:
            assert mean_ap(ap) == pytest.approx(scores.metrics["AP"], abs=1e-12)


def test_annotation_id_zero_changes_nothing(tmp_path):
    """pycocotools treats an object with id 0 as unmatched; this evaluation does not depend on ids."""
    case = generated(5, lvis=True)
    ground_truth, found = load(case, tmp_path / "a")
    for row in case.annotations:
        row["id"] -= 1
    shifted, _ = load(case, tmp_path / "b")
    assert coco_lvis_ap.coco(shifted, found, 100).metrics == coco_lvis_ap.coco(ground_truth, found, 100).metrics


def test_masks_equal_pycocotools(tmp_path):
    case = generated(6, lvis=False)
    predictions, annotations = case.write(tmp_path)
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    results = []
    ids = {c["name"]: c["id"] for c in case.categories}
    for line in lines:
        w, h = line["source_width"], line["source_height"]
        for det in line["detections"]:
            x1, y1, x2, y2 = det["norm"]
            det["poly"] = [x1, y1, x2, y1, x2, y2]  # the upper right half of the box
            polygon = [round(v * s, 6) for v, s in zip(det["poly"], [w, h] * 3, strict=True)]
            rle = mask.merge(mask.frPyObjects([polygon], h, w))
            order = (line["image_id"], -det["score"], det["desc"], round(x1 * w, 6), round(y1 * h, 6))
            row = {"image_id": line["image_id"], "category_id": ids[det["desc"]], "segmentation": rle}
            results.append((order, row | {"score": det["score"]}))
    predictions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = evaluate(predictions, annotations, EvaluateOptions(bootstrap=0), dataset="generated", split="val")
    reference = pycocotools_metrics(annotations, [row for _, row in sorted(results, key=lambda r: r[0])], "segm")
    assert reference["AP50"] > 0
    assert_same(result.coco.segm.metrics, reference)


@needs_photos
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_annotations(tmp_path, lvis, split):
    for format, name in (("coco", f"instances_{split}2017.json"), ("lvis", f"lvis_v1_{split}.json")):
        content = json.loads((PHOTOS / name).read_text())
        case = jittered(content)
        ground_truth, found = load(case, tmp_path / format)
        annotations = tmp_path / format / "annotations.json"
        results = case.coco_results()
        reference = pycocotools_metrics(annotations, results)
        assert reference["AP"] > 0.1
        assert_same(coco_lvis_ap.coco(ground_truth, found, 100).metrics, reference)
        if format == "lvis":
            assert ground_truth.federated
            assert_same(coco_lvis_ap.lvis(ground_truth, found, 300).metrics, lvis_metrics(lvis, annotations, results))


def jittered(content: dict) -> Case:
    """Detections near the objects of a real annotation file, some of another category."""
    rng = np.random.default_rng(3)
    names = {c["id"]: c["name"] for c in content["categories"]}
    case = Case(content["images"], content["annotations"], content["categories"])
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        for _ in range(int(rng.integers(1, 3))):
            dx, dy = np.round(rng.normal(0, 3, 2), 2)
            box = [round(float(v), 2) for v in (x + dx, y + dy, x + w + dx, y + h + dy)]
            shown = names[row["category_id"]] if rng.random() < 0.9 else str(rng.choice(list(names.values())))
            case.detections.setdefault(row["image_id"], []).append((shown, box, round(float(rng.uniform()), 1)))
    return case
