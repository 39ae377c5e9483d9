"""Breakdowns by size, density, category and frequency, against values computed by hand."""

from __future__ import annotations

import pytest
from evaluation_cases import load, three_images

from coordexp.evaluation import breakdowns
from coordexp.evaluation.protocol import ScoredProtocol

# thing0: both objects up to IoU 0.8, only the better-scored one above, which reaches 51 of 101 recall levels
AP_THING0 = (7 + 3 * 51 / 101) / 10


def scored(tmp_path, name="coco") -> ScoredProtocol:
    return ScoredProtocol(name, *load(three_images(), tmp_path), 100)


def test_recall_of_a_size_counts_its_objects_only(tmp_path):
    protocol = scored(tmp_path)
    small, medium, large = breakdowns.by_size(protocol.ground_truth, protocol.matches, protocol.ap_scores)
    assert (small.objects, small.area_px, small.recall_50, small.recall) == (1, (0, 1024), 1, 1)
    assert (medium.objects, medium.AP, medium.recall_50, medium.recall) == (1, 0, 0, 0)
    assert (large.objects, large.area_px, large.recall_50, large.recall_75) == (1, (9216, None), 1, 1)
    assert (small.AP, large.AP, large.recall) == pytest.approx((1, 0.7, 0.7))


def test_images_without_objects_have_false_positives_only(tmp_path):
    protocol = scored(tmp_path)
    rows = breakdowns.by_density(protocol.ground_truth, protocol.ranked, protocol.all_predictions)
    found = {row.objects_per_image: row for row in rows}
    assert list(found) == ["0", "1-2", "3-5", "6-10", "11-20", "21+"]
    empty, few = found["0"], found["1-2"]
    assert (empty.images, empty.objects, empty.true_positives_50, empty.false_positives_50) == (1, 0, 0, 1)
    assert (empty.AP, empty.AP50, empty.recall_50, empty.F1_50, empty.precision_50) == (None, None, None, None, 0)
    assert (few.images, few.objects, few.true_positives_50, few.false_positives_50) == (2, 3, 2, 0)
    assert (few.precision_50, few.recall_50, few.F1_50) == pytest.approx((1, 2 / 3, 4 / 5))
    assert pytest.approx((AP_THING0 / 2, 0.5)) == (few.AP, few.AP50)


def test_categories_without_objects_and_detections_are_left_out(tmp_path):
    protocol = scored(tmp_path)
    arguments = protocol.ground_truth, protocol.matches, protocol.all_predictions, protocol.ap_scores
    first, second = breakdowns.by_category(*arguments)
    assert (first.id, first.name, first.frequency, first.objects, first.detections) == (1, "thing0", "r", 2, 2)
    assert pytest.approx((AP_THING0, 1, 1)) == (first.AP, first.AP50, first.F1_50)
    assert (second.id, second.name, second.frequency, second.objects, second.detections) == (3, "thing1", "c", 1, 1)
    assert (second.AP, second.AP50, second.F1_50) == (0, 0, 0)


def test_a_frequency_without_objects_has_no_ap(tmp_path):
    protocol = scored(tmp_path, "lvis")
    rows = breakdowns.by_frequency(protocol.ground_truth, protocol.all_predictions, protocol.ap_scores)
    assert [(r.frequency, r.categories, r.objects, r.F1_50_macro) for r in rows] == [
        ("rare", 1, 2, 1),
        ("common", 1, 1, 0),
        ("frequent", 0, 0, None),
    ]
    assert [row.AP for row in rows] == [pytest.approx(AP_THING0), 0, None]


@pytest.mark.parametrize(("value", "expected"), [(float("nan"), None), (0.25, 0.25), (0.0, 0.0)])
def test_undefined_values_become_null(value, expected):
    assert breakdowns.none_if_nan(value) == expected
