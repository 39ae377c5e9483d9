"""Matching, average precision, F1, calibration and duplicates against slow, obvious versions."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_cases import Case, categories, generated

from coordexp.evaluation import EvaluateOptions, evaluate, f1
from coordexp.evaluation import coco_lvis_ap as engine
from coordexp.evaluation import detections as columns
from coordexp.evaluation import error_types as mistakes
from coordexp.evaluation import external_predictions as foreign
from coordexp.evaluation import ground_truth as ground_truth_file
from coordexp.evaluation.average_precision import RankedMatches, mean_ap
from coordexp.evaluation.greedy_matching import IOU_THRESHOLDS, box_iou, match
from coordexp.evaluation.label_mapping import LabelMap
from coordexp.evaluation.protocol import Protocol
from coordexp.evaluation.reliability import calibration
from coordexp.runtime import tuning


def load(case: Case, folder):
    predictions, annotations = case.write(folder)
    ground_truth = ground_truth_file.load(annotations)
    return ground_truth, columns.collect(
        foreign.read(predictions, ground_truth), ground_truth, LabelMap(ground_truth.categories)
    )[0]


def one_by_one(ground_truth, found, threshold: float) -> dict[int, int]:
    """Object of every detection that takes one, by loops over images, categories and detections."""
    taken: dict[int, int] = {}
    used = set()
    for row in range(len(found)):  # in score order within a image
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
def test_matching_equals_the_loops(tmp_path, seed):
    ground_truth, found = load(generated(seed, lvis=False, crowds=0.2, kinds=2, noise=10), tmp_path)
    matches = match(ground_truth, found, federated=False)
    for t in (0, 5, 9):
        expected = one_by_one(ground_truth, found, IOU_THRESHOLDS[t])
        actual = {int(row): int(m) for row, m in zip(matches.row, matches.ground_truth[:, t], strict=True) if m >= 0}
        assert actual == expected
        right = {row for row, m in expected.items() if not ground_truth.crowd[m]}
        assert set(matches.row[matches.matched[:, t]].tolist()) == right
    assert len(expected) < len(one_by_one(ground_truth, found, IOU_THRESHOLDS[0]))


def test_federated_matching_judges_only_what_was_looked_for(tmp_path):
    case = Case([image(1) | {"neg_category_ids": [3], "not_exhaustive_category_ids": [1]}], [], categories(3))
    case.annotations.append(annotation(1, 1, [10, 10, 50, 50]))
    far = [300, 300, 350, 350]
    case.detections = {1: [("thing0", far, 0.9), ("thing1", far, 0.8), ("thing2", far, 0.7)]}
    ground_truth, found = load(case, tmp_path)
    matches = match(ground_truth, found, federated=True)
    assert matches.unjudged == 1  # thing2 is neither present nor negative
    assert dict(zip(matches.category.tolist(), matches.ignored[:, 0].tolist(), strict=True)) == {0: True, 1: False}


def test_image_weights_are_copies_of_images(tmp_path):
    case = generated(1, lvis=False, images=8)
    ground_truth, found = load(case, tmp_path / "a")
    weights = np.array([0, 2, 1, 0, 3, 1, 1, 2])
    part = Protocol("coco", ground_truth, found, 100)
    copies = Case([], [], case.categories)
    for image, weight in zip(case.images, weights, strict=True):
        for _ in range(weight):
            new = image | {"id": len(copies.images) + 1}
            copies.images.append(new)
            copies.detections[new["id"]] = case.detections[image["id"]]
            for row in (a for a in case.annotations if a["image_id"] == image["id"]):
                copies.annotations.append(row | {"id": len(copies.annotations) + 1, "image_id": new["id"]})
    drawn = Protocol("coco", *load(copies, tmp_path / "b"), 100)
    for name, value in drawn.statistic(np.ones(len(copies.images), dtype=int)).items():
        # equal scores fall in another order among copies: AP may differ by a tie, counts may not
        assert part.statistic(weights)[name] == pytest.approx(value, abs=0.03 if name.startswith("AP") else 1e-12)


def test_weights_of_a_case_without_ties_are_exact(tmp_path):
    case = generated(2, lvis=False, images=9)
    rng = np.random.default_rng(0)
    for image_id, found in case.detections.items():
        case.detections[image_id] = [(d, box, float(rng.uniform())) for d, box, _ in found]
    ground_truth, found = load(case, tmp_path)
    weights = np.array([0, 1, 1, 0, 1, 1, 1, 0, 1])
    part = Protocol("coco", ground_truth, found, 100)
    kept = weights.astype(bool)
    rows = found.take(kept[found.image]).renumbered(np.cumsum(kept) - 1)
    scores = engine.coco(ground_truth.restricted(kept), rows, 100)
    assert mean_ap(part.ranked.average_precision(weights)) == pytest.approx(scores.metrics["AP"], abs=1e-12)


def test_pooled_list_puts_wrong_first_among_equal_scores(tmp_path):
    case = Case([image(1)], [annotation(1, 1, [10, 10, 50, 50])], categories(2))
    case.detections = {1: [("thing0", [10, 10, 60, 60], 0.5), ("thing1", [300, 300, 350, 350], 0.5)]}
    ground_truth, found = load(case, tmp_path)
    pooled = RankedMatches(match(ground_truth, found, federated=False), pooled=True)
    assert mean_ap(pooled.average_precision()) == pytest.approx(0.5)


def test_one_perfect_category_among_missed_ones_does_not_look_good(tmp_path):
    kinds = 12
    case = Case([image(k + 1) for k in range(kinds)], [], categories(kinds))
    for k in range(kinds):
        row = annotation(k + 1, k + 1, [10, 10, 50, 50], case.categories[k]["id"])
        case.annotations.append(row)
    case.detections = {1: [("thing0", [10, 10, 60, 60], 0.9)]}
    predictions, annotations = case.write(tmp_path)
    result = evaluate(predictions, annotations, EvaluateOptions(bootstrap=0), dataset="made", split="val")
    scores = result["coco"]["f1"]
    assert scores["all_predictions"]["macro"]["0.50"] == pytest.approx(1 / kinds)
    assert scores["prompted_only"]["macro"]["0.50"] == 1.0  # what the usual protocol hides
    assert result["coco"]["metrics"]["AP"] == pytest.approx(1 / kinds)


def test_f1_of_counted_examples(tmp_path):
    case = Case(
        [image(1), image(2)], [annotation(1, 1, [10, 10, 50, 50]), annotation(2, 2, [10, 10, 50, 50], 3)], categories(3)
    )
    box = [10, 10, 60, 60]
    # a hit, its double, a category that image 1 does not hold, an unmapped text
    case.detections = {1: [("thing0", box, 0.9), ("thing0", box, 0.8), ("thing1", box, 0.7), ("blob", box, 0.6)]}
    ground_truth, found = load(case, tmp_path)
    matches = match(ground_truth, found, federated=False)
    unmapped = found.image[found.category < 0]
    honest, usual = f1.F1Table(matches, unmapped), f1.F1Table(matches, unmapped, usual=True)
    score, precision, recall = (v[0] for v in f1.micro(honest.counts()))
    assert (score, precision, recall) == (pytest.approx(2 / 6), 0.25, 0.5)
    assert f1.macro(honest.counts(), usual=False)[0] == pytest.approx((2 / 3 + 0) / 2)
    assert f1.micro(usual.counts())[0][0] == pytest.approx(2 / 4)
    assert f1.macro(usual.counts(), usual=True)[0] == pytest.approx(2 / 3)
    hits, alarms, objects = honest.per_image(0)
    assert (hits.tolist(), alarms.tolist(), objects.tolist()) == ([1, 0], [3, 0], [1, 1])


def test_calibration_of_counted_examples():
    score = np.array([0.0, 0.05, 0.95, 0.95, 0.95, 1.0])
    right = np.array([False, True, True, True, False, True])
    result = calibration(score, right)
    low, high = abs(0.025 - 0.5), abs(0.9625 - 0.75)
    assert result["ece"] == pytest.approx((2 * low + 4 * high) / 6)
    assert result["mce"] == pytest.approx(low)
    assert [b["count"] for b in result["bins"]] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 4]
    assert calibration(np.full(4, 0.5), np.array([1, 1, 0, 0], bool))["ece"] == 0.0
    assert calibration(np.full(4, 0.5), np.array([1, 1, 0, 0], bool))["constant"]


def test_scores_that_are_no_probabilities_are_not_calibrated():
    result = calibration(np.array([0.5, 3.0]), np.array([True, False]))
    assert result["ece"] is None and "not probabilities" in result["reason"]


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
    doubled = mistakes.duplicates(rows)
    names = [rows.descriptions[d] for d in rows.desc[doubled]]
    assert names == ["Thing0", "thing0", "blob"]  # apart overlaps nearly by .93


def test_kinds_of_false_positives(tmp_path):
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
    rows, kind = mistakes.false_positives(ground_truth, found, matches, np.flatnonzero(found.category < 0))
    named = sorted(zip(found.score[rows].tolist(), (mistakes.KINDS[k] for k in kind), strict=True), reverse=True)
    assert named == [
        (0.8, "duplicate"),
        (0.7, "poor_box"),
        (0.6, "wrong_category"),
        (0.5, "background"),
        (0.4, "unmapped"),
    ]


def test_many_boxes_in_one_image_stay_within_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "PAIRS_PER_BLOCK", 1000)
    case = generated(3, lvis=False, images=6, kinds=1, noise=120)
    for image_id, rows in case.detections.items():
        case.detections[image_id] = rows + rows[:9]
    _, found = load(case, tmp_path)
    blocks = mistakes.duplicates(found)
    monkeypatch.undo()
    assert blocks.any() and (blocks == mistakes.duplicates(found)).all()


def image(image_id: int) -> dict:
    return {"id": image_id, "width": 640, "height": 480}


def annotation(annotation_id: int, image_id: int, box: list[float], category_id: int = 1) -> dict:
    return {"id": annotation_id, "image_id": image_id, "category_id": category_id, "bbox": box, "area": box[2] * box[3]}
