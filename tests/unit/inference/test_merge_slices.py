"""Merging the detections of slices, compared with a slow reference."""

import msgspec
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from coordexp.geometry.slices import Slice, SliceOptions, slices_of
from coordexp.inference.merge_slices import SlicePrediction, merge_slices
from coordexp.records import Detection, Prediction

SIZE = (100, 80)
LEFT, RIGHT = Slice(0, 0, 60, 80), Slice(40, 0, 60, 80)
OPTIONS = SliceOptions(grids=((2, 1),), overlap=0.25, border=0.02)


def found(window, *boxes, **changes):
    """The prediction for a slice: (description, score, box in pixels of the image)."""
    detections = [
        Detection(
            desc,
            [(v - (window.left, window.top)[n % 2]) / (window.width, window.height)[n % 2] for n, v in enumerate(box)],
            score,
            bins=[1, 2, 3, 4],
            spread=[0.1] * 4,
        )
        for desc, score, *box in boxes
    ]
    fields = (7, 1000, 800, "open", "stop", "text", detections)
    return SlicePrediction(window, Prediction(*fields, token_ids=[1], token_logprobs=[-0.5], **changes))


def merged(*slices, options=OPTIONS):
    """(description, score, box in pixels) of the merged detections."""
    rows = merge_slices(slices, SIZE, options).detections
    return [(row.desc, row.score, *(round(v * SIZE[n % 2], 6) for n, v in enumerate(row.norm))) for row in rows]


def test_boxes_are_placed_in_the_image_and_name_their_slice():
    only = merge_slices([found(RIGHT, ("a", 0.5, 60, 20, 80, 40))], SIZE, OPTIONS)
    [detection] = only.detections
    assert detection.norm == pytest.approx([0.6, 0.25, 0.8, 0.5])
    assert detection.spread == pytest.approx([0.06, 0.1, 0.06, 0.1])
    assert detection.bins == [1, 2, 3, 4] and detection.slice == 0
    assert only.slices == [pytest.approx([0.4, 0, 1, 1])]
    assert (only.image_id, only.source_width, only.source_height) == (7, 1000, 800)


def test_an_object_in_two_slices_is_reported_once_with_its_best_score():
    left, right = found(LEFT, ("a", 0.5, 42, 10, 55, 30)), found(RIGHT, ("a", 0.7, 43, 10, 56, 30))
    assert merged(left, right) == [("a", 0.7, 43, 10, 56, 30)]
    assert merge_slices([left, right], SIZE, OPTIONS).merged == 1


def test_a_phrase_is_truncated_if_its_answer_about_one_slice_is():
    cut = {"truncated_phrases": ["a"]}
    assert merge_slices([found(LEFT), found(RIGHT, **cut)], SIZE, OPTIONS).truncated_phrases == ["a"]
    assert merge_slices([found(LEFT, **cut), found(RIGHT, **cut)], SIZE, OPTIONS).truncated_phrases == ["a"]
    assert merge_slices([found(LEFT), found(RIGHT)], SIZE, OPTIONS).truncated_phrases == []


def test_a_box_that_is_cut_off_gives_way_to_the_complete_one_whatever_its_score():
    cut, complete = ("a", 0.9, 50, 10, 60, 30), ("a", 0.2, 50, 10, 80, 30)
    assert merged(found(LEFT, cut), found(RIGHT, complete)) == [complete]


def test_a_box_that_is_cut_off_remains_if_nothing_else_covers_it():
    cut = ("a", 0.9, 50, 10, 60, 30)
    assert merged(found(LEFT, cut), found(RIGHT, ("a", 0.9, 80, 50, 90, 60), ("b", 0.9, 50, 10, 80, 30)))[0] == cut


def test_a_box_at_the_border_of_the_image_is_not_cut_off():
    edge = ("a", 0.9, 0, 0, 30, 80)
    assert merged(found(LEFT, edge, ("a", 0.8, 0, 0, 30, 80))) == [edge, ("a", 0.8, 0, 0, 30, 80)]
    assert merged(found(LEFT, ("a", 0.9, 41, 0, 58, 80)), found(RIGHT, ("a", 0.5, 41, 0, 70, 80))) == [
        ("a", 0.9, 41, 0, 58, 80)
    ]


def test_boxes_of_one_answer_or_of_different_descriptions_are_never_merged():
    twins = [("a", 0.9, 42, 10, 55, 30), ("a", 0.8, 42, 10, 55, 30), ("b", 0.7, 42, 10, 55, 30)]
    assert merged(found(LEFT, *twins)) == twins
    assert len(merged(found(LEFT, twins[0]), found(RIGHT, twins[2]))) == 2


def test_an_object_inside_another_one_is_kept():
    assert len(merged(found(LEFT, ("a", 0.9, 42, 10, 58, 60)), found(RIGHT, ("a", 0.5, 44, 20, 54, 30)))) == 2


def test_answers_tokens_and_problems_of_all_slices_are_kept():
    left, right = found(LEFT, problems={"x": 1}), found(RIGHT, problems={"x": 2, "y": 1})
    right.prediction.finish = "length"
    whole = merge_slices([left, right], SIZE, OPTIONS)
    assert (whole.finish, whole.text, whole.problems) == ("length", "text\ntext", {"x": 3, "y": 1})
    assert (whole.token_ids, whole.token_logprobs) == ([1, 1], [-0.5, -0.5])


def test_polygons_are_placed_like_boxes():
    one = found(RIGHT, ("a", 0.5, 60, 20, 80, 40))
    one.prediction.detections[0].poly = [0.0, 0.0, 1.0, 0.0, 0.5, 1.0]
    [detection] = merge_slices([one], SIZE, OPTIONS).detections
    assert detection.poly == pytest.approx([0.4, 0, 1, 0, 0.7, 1])


MEAN = msgspec.structs.replace(OPTIONS, score="mean")


def test_the_mean_score_counts_the_slices_that_contain_the_box():
    both, one = ("a", 0.8, 42, 10, 55, 30), ("a", 0.6, 10, 10, 30, 30)
    assert merged(found(LEFT, both, one), found(RIGHT, ("a", 0.4, 43, 10, 56, 30)), options=MEAN) == [
        ("a", pytest.approx(0.6), 42, 10, 55, 30),
        one,
    ]
    assert merged(found(LEFT, both), found(RIGHT), options=MEAN) == [("a", 0.4, *both[2:])]
    assert merged(found(LEFT, both), found(RIGHT)) == [both]


def test_a_slice_that_was_not_asked_about_a_category_does_not_lower_its_score():
    left, right = found(LEFT, ("a", 0.8, 42, 10, 55, 30)), found(RIGHT)
    for asked, score in ((None, 0.4), (frozenset("ab"), 0.4), (frozenset("b"), 0.8)):
        assert merged(left, right._replace(asked=asked), options=MEAN)[0][1] == pytest.approx(score)


def reference(slices, options):
    """Merging box by box with shapely: score by index; boxes are (description, score, box in pixels)."""
    rows = []
    for n, (window, boxes) in enumerate(slices):
        right, bottom = window.left + window.width, window.top + window.height
        margins = window.width * options.border, window.height * options.border
        for desc, score, x1, y1, x2, y2 in boxes:
            cut = (window.left > 0 and x1 - window.left <= margins[0]) or (right < SIZE[0] and right - x2 <= margins[0])
            cut = cut or (window.top > 0 and y1 - window.top <= margins[1])
            cut = cut or (bottom < SIZE[1] and bottom - y2 <= margins[1])
            rows.append((cut, -score, len(rows), n, desc, shapely.box(x1, y1, x2, y2)))
    kept = []
    for row in sorted(rows, key=lambda row: row[:3]):
        cut, score, _, n, desc, box = row
        for group in kept:
            *_, other_slice, other_desc, other = group[0]
            if other_slice == n or other_desc != desc:
                continue
            shared = box.intersection(other).area
            if shared / box.union(other).area >= options.iou or (
                cut and shared / min(box.area, other.area) >= options.containment
            ):
                group.append(row)
                break
        else:
            kept.append([row])
    windows = [shapely.box(w.left, w.top, w.left + w.width, w.top + w.height) for w, _ in slices]
    result = {}
    for group in kept:
        best = {n: max(-row[1] for row in group if row[3] == n) for n in {row[3] for row in group}}
        showing = {n for n, window in enumerate(windows) if window.covers(group[0][5])} | set(best)
        result[group[0][2]] = -group[0][1] if options.score == "best" else sum(best.values()) / len(showing)
    return result


SCORES = st.sampled_from(["best", "mean"])


@settings(deadline=None, max_examples=60)
@given(data=st.data(), columns=st.integers(1, 3), rows=st.integers(1, 2), whole=st.booleans(), score=SCORES)
def test_merging_agrees_with_the_reference(data, columns, rows, whole, score):
    options = SliceOptions(
        grids=((columns, rows),), overlap=0.3, border=0.021, iou=0.45, containment=0.55, whole_image=whole, score=score
    )
    slices = []
    for window in slices_of(SIZE, SIZE[0], options):
        boxes = []
        for _ in range(data.draw(st.integers(0, 4))):
            x1 = data.draw(st.integers(window.left, window.left + window.width - 5))
            y1 = data.draw(st.integers(window.top, window.top + window.height - 5))
            x2 = data.draw(st.integers(x1 + 4, window.left + window.width))
            y2 = data.draw(st.integers(y1 + 4, window.top + window.height))
            boxes.append((data.draw(st.sampled_from("ab")), data.draw(st.floats(0, 1)), x1, y1, x2, y2))
        slices.append((window, boxes))
    everything = [box for _, boxes in slices for box in boxes]
    expected = reference(slices, options)
    actual = merged(*(found(window, *boxes) for window, boxes in slices), options=options)
    assert [row[0] for row in actual] == [everything[n][0] for n in sorted(expected)]
    assert [row[1] for row in actual] == pytest.approx([expected[n] for n in sorted(expected)])
    assert [row[2:] for row in actual] == [pytest.approx(everything[n][2:]) for n in sorted(expected)]
