"""Counts of a conversion, and the messages and errors that are made of them."""

import pytest
from dataset_cases import balanced

from coordexp.datasets.conversion_stats import ConversionCounts, bad_input, check_not_emptied, notices, summary
from coordexp.datasets.objects import SkippedItem
from coordexp.datasets.source import Source
from coordexp.runtime.errors import DataError

SOURCE = Source(
    dataset="pets",
    split="train",
    format="coco",
    federated=False,
    annotations="a",
    image_dirs=[],
    annotations_sha256="0",
)


def statistics(**objects: int) -> dict:
    """Statistics of one image with one written object, and of `objects` dropped by reason."""
    counts = ConversionCounts()
    counts.counts.update({"images listed": 1, "images written": 1, "objects listed": 1})
    counts.objects.update({"written": 1})
    for reason, number in objects.items():
        for n in range(number):
            counts.drop_listed(SkippedItem("annotation", reason, 1, n))
    return summary(counts, SOURCE, 1)


def test_listed_is_written_and_dropped():
    stats = statistics(crowd=2, invalid=39)
    assert balanced(stats) and stats["objects"]["listed"] == 42 and len(stats["skipped"]) == 41
    assert list(notices(stats)) == ["pets/train: 41 of 42 objects dropped: crowd (2 objects), invalid (39 objects)"]
    assert not list(notices(statistics()))


def test_boxes_that_are_mostly_clipped_are_a_warning():
    stats = statistics()
    stats["objects"]["clipped"] = 1
    assert any("x1, y1, x2, y2 instead of x, y, width, height" in text for text in notices(stats))


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ({"invalid": 2}, "no object could be used"),
        ({"crowd": 1, "invalid": 1}, "no object could be used"),
        ({"crowd": 2}, "all 2 objects are crowds.*\n.*data.crowd: keep"),
    ],
)
def test_a_split_without_any_object_left_is_an_error(tmp_path, dropped, message):
    stats = statistics(**dropped)
    stats["objects"] |= {"written": 0, "listed": 2}
    with pytest.raises(DataError, match="(?s)" + message):
        check_not_emptied(stats, tmp_path / "a.json")


def test_an_error_names_the_ids_of_one_problem_and_lists_several():
    item = SkippedItem("annotation", "empty", 1, 7, "b.jpg", "detail")
    assert str(bad_input([item], "a.json")).startswith("a.json: image 1, annotation 7 (b.jpg): empty: detail\n  -> ")
    assert "2 problems:\n  image 1, annotation 7 (b.jpg): empty: detail\n" in str(bad_input([item] * 2, "a.json"))
