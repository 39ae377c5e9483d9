"""The gallery of the report: the choice of images, the outcome of each box, labels and missing files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluation_cases import three_images
from report_cases import report_inputs

from coordexp.evaluation.results import ExampleError, ExampleImage, Examples, load_eval
from coordexp.reporting import gallery
from coordexp.runtime.errors import DataError


def examples(best, worst, errors) -> Examples:
    def image(i):
        return ExampleImage(image_id=i, F1_50=0.5, true_positives=1, false_positives=1, objects=1)

    def error(i):
        return ExampleError(image_id=i, desc="a", score=0.5, bbox_px=(0, 0, 1, 1), error="background")

    lists = [image(i) for i in best], [image(i) for i in worst], [error(i) for i in errors]
    return Examples("coco", *lists, false_positives_by_type={})


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (2, [("Best", 1), ("Worst", 2)]),
        (4, [("Best", 1), ("Best", 4), ("Worst", 2), ("Most confident errors", 3)]),
        (9, [("Best", 1), ("Best", 4), ("Worst", 2), ("Most confident errors", 3), ("Most confident errors", 5)]),
    ],
)
def test_images_are_taken_from_the_lists_in_turn_and_once_each(count, expected):
    assert gallery.choose(examples([1, 4], [2, 1], [3, 3, 5]), count) == expected


@pytest.fixture
def cards(tmp_path):
    inputs = report_inputs(three_images(), tmp_path)
    ids = {1, 2, 3}
    records = gallery.find_records(inputs["records_jsonl"], ids)
    predictions = gallery.find_predictions(inputs["predictions"], ids)
    chosen = [("Best", 1), ("Worst", 3), ("Best", 2)]
    result = load_eval(inputs["eval_json"])
    return dict(gallery.cards(chosen, records, predictions, tmp_path, result))


def test_every_box_has_its_outcome(cards):
    assert {heading: [card.title for card in group] for heading, group in cards.items()} == {
        "Best": ["Image 1", "Image 2"],
        "Worst": ["Image 3"],
    }
    kinds = {card.title: [shape.kind for shape in card.shapes] for group in cards.values() for card in group}
    assert kinds == {
        "Image 1": ["matched", "missed", "correct"],
        "Image 2": ["matched", "correct"],
        "Image 3": ["wrong"],
    }
    assert cards["Best"][0].caption == "1 correct, 0 wrong, 1 of 2 missed"
    assert cards["Worst"][0].shapes[0].text == "thing1 0.70 · background"


def test_boxes_are_in_pixels_of_the_thumbnail(cards):
    card = cards["Best"][1]
    assert (card.width, card.height) == (320, 240)  # source: 640 x 480
    drawn = card.shapes[0]
    assert (drawn.x, drawn.y, drawn.w, drawn.h) == pytest.approx((50, 50, 50, 50))


def test_a_missing_image_is_named(tmp_path):
    inputs = report_inputs(three_images(), tmp_path)
    lines = Path(inputs["predictions"]).read_text().splitlines()
    Path(inputs["predictions"]).write_text("\n".join(line for line in lines if json.loads(line)["image_id"] != 2))
    with pytest.raises(DataError, match=r"predictions\.jsonl: image_id: image 2 is missing"):
        gallery.find_predictions(inputs["predictions"], {1, 2})
    with pytest.raises(DataError, match="image 9 is missing"):
        gallery.find_records(inputs["records_jsonl"], {1, 9})


def test_an_unreadable_image_is_named(tmp_path):
    inputs = report_inputs(three_images(), tmp_path)
    (tmp_path / "images" / "1.jpg").write_bytes(b"not an image")
    records = gallery.find_records(inputs["records_jsonl"], {1})
    predictions = gallery.find_predictions(inputs["predictions"], {1})
    with pytest.raises(DataError, match=r"1\.jpg: image cannot be read"):
        gallery.cards([("Best", 1)], records, predictions, tmp_path, load_eval(inputs["eval_json"]))
