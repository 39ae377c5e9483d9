"""The block of one protocol in eval.json and the examples, against values computed by hand."""

from __future__ import annotations

import pytest
from evaluation_cases import load, three_images

from coordexp.evaluation.protocol import ScoredProtocol
from coordexp.evaluation.protocol_result import examples, protocol_result


def scored(tmp_path, name="coco", max_dets=100) -> ScoredProtocol:
    case = three_images()
    exact = [100.0, 100.0, 120.0, 120.0]
    case.detections[1] += [("thing0", exact, 0.6), ("blob", exact, 0.5)]  # a duplicate; a description of no category
    return ScoredProtocol(name, *load(case, tmp_path), max_dets)


def test_ap_falls_with_the_threshold(tmp_path):
    result = protocol_result(scored(tmp_path), bootstrap=0, seed=0)
    assert len(result.ap_by_iou) == 10
    assert result.ap_by_iou["0.80"] == pytest.approx(0.5)  # thing0: 1, thing1: 0
    assert result.ap_by_iou["0.85"] == result.ap_by_iou["0.95"] == pytest.approx(51 / 101 / 2)
    assert result.metrics["AP50"] == pytest.approx(0.5)


def test_unmapped_detections_are_false_positives_under_coco_only(tmp_path):
    coco = protocol_result(scored(tmp_path / "coco"), bootstrap=0, seed=0)
    lvis = protocol_result(scored(tmp_path / "lvis", "lvis"), bootstrap=0, seed=0)
    assert (coco.pooled.unmapped_false_positives, lvis.pooled.unmapped_false_positives) == (1, 0)
    assert coco.f1.all_predictions.false_positives_50 == 3
    assert lvis.f1.all_predictions.false_positives_50 == 2
    # one list: both matches come first, then only false positives; 2 of 3 objects reach 67 recall levels
    assert coco.pooled.AP50 == lvis.pooled.AP50 == pytest.approx(67 / 101)


def test_parts_that_belong_to_lvis_are_absent_from_coco(tmp_path):
    coco = protocol_result(scored(tmp_path / "coco"), bootstrap=0, seed=0)
    lvis = protocol_result(scored(tmp_path / "lvis", "lvis"), bootstrap=0, seed=0)
    assert (coco.fixed_ap, coco.by_frequency, coco.segm) == (None, [], None)
    assert lvis.fixed_ap is not None
    assert [row.frequency for row in lvis.by_frequency] == ["rare", "common", "frequent"]


def test_detections_beyond_the_limit_are_counted(tmp_path):
    result = protocol_result(scored(tmp_path, max_dets=1), bootstrap=0, seed=0)
    assert (result.max_dets, result.counts.over_max_dets) == (1, 1)
    assert "at most 1 detections" in result.description


def test_intervals_contain_the_value_of_every_bootstrapped_metric(tmp_path):
    protocol = scored(tmp_path)
    intervals = protocol_result(protocol, bootstrap=20, seed=3).intervals
    assert (intervals.replicates, set(intervals.values)) == (20, set(protocol.values))
    assert "20 replicates, seed 3" in intervals.description
    low, high = intervals.values["precision_50"]
    assert 0 <= low <= protocol.values["precision_50"] <= high <= 1


def test_examples_are_the_best_the_worst_and_the_most_confident_errors(tmp_path):
    found = examples(scored(tmp_path), 2)
    assert [row.image_id for row in found.best] == [2, 1]
    assert [(row.image_id, row.F1_50) for row in found.worst] == [(3, 0), (1, 0.4)]
    worst = found.worst[1]
    assert (worst.true_positives, worst.false_positives, worst.objects) == (1, 2, 2)
    assert [(row.image_id, row.desc, row.score, row.error) for row in found.confident_errors] == [
        (3, "thing1", 0.7, "background"),
        (1, "thing0", 0.6, "duplicate"),
    ]
    assert found.confident_errors[0].bbox_px == pytest.approx((10, 10, 50, 50))
    counts = {"duplicate": 1, "localisation": 0, "classification": 0, "background": 1, "unmapped": 1}
    assert found.false_positives_by_type == counts
