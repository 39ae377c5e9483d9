"""Merging of several answers to one prompt."""

from __future__ import annotations

import pytest

from coordexp.inference.voting import merge_answers
from coordexp.records import Detection

LEFT = [0.1, 0.1, 0.5, 0.5]
SHIFTED = [0.12, 0.1, 0.52, 0.5]
RIGHT = [0.6, 0.1, 0.9, 0.5]


def test_scores_are_summed_over_answers_and_divided_by_their_number():
    first = [Detection("cat", LEFT, 0.6, bins=[1, 2, 3, 4], score_parts={"desc_logprob": -1.0})]
    second = [Detection("cat", RIGHT, 0.5), Detection("cat", SHIFTED, 0.2)]
    both, alone = merge_answers([first, second, []], 0.5)
    assert both.score == pytest.approx(0.8 / 3) and alone.score == pytest.approx(0.5 / 3)
    assert both.norm == pytest.approx([0.105, 0.1, 0.505, 0.5])
    assert both.bins == [1, 2, 3, 4]
    assert both.score_parts == {"desc_logprob": -1.0, "votes": pytest.approx(2 / 3)}
    assert alone.norm == pytest.approx(RIGHT) and alone.score_parts == {"votes": pytest.approx(1 / 3)}


def test_only_boxes_of_different_answers_with_the_same_description_are_merged():
    answer = [Detection("cat", LEFT, 0.6), Detection("cat", SHIFTED, 0.5), Detection("dog", LEFT, 0.4)]
    assert len(merge_answers([answer, []], 0.5)) == 3
    merged = merge_answers([answer, answer], 0.5)
    assert [(found.desc, round(found.score, 9)) for found in merged] == [("cat", 0.6), ("cat", 0.5), ("dog", 0.4)]
    assert [found.norm for found in merged] == [pytest.approx(box) for box in (LEFT, SHIFTED, LEFT)]
    assert len(merge_answers([[answer[0]], [Detection("cat", SHIFTED, 0.5)]], 0.95)) == 2


def test_a_box_joins_the_group_that_it_overlaps_most():
    far, near = [0.1, 0.1, 0.5, 0.6], [0.1, 0.1, 0.5, 0.5]
    merged = merge_answers(
        [[Detection("cat", far, 0.9), Detection("cat", near, 0.8)], [Detection("cat", near, 0.4)]], 0.5
    )
    assert [found.score_parts["votes"] for found in merged] == [1.0, 0.5]
    assert merged[0].norm == pytest.approx(near)


def test_a_polygon_keeps_the_box_of_its_best_member():
    outline = [0.1, 0.1, 0.5, 0.1, 0.5, 0.5]
    [merged] = merge_answers([[Detection("cat", LEFT, 0.6, poly=outline)], [Detection("cat", SHIFTED, 0.5)]], 0.5)
    assert merged.norm == LEFT and merged.poly == outline and merged.score == pytest.approx(0.55)


def test_the_order_of_the_answers_has_no_effect():
    one, two = [Detection("cat", LEFT, 0.6), Detection("dog", RIGHT, 0.3)], [Detection("cat", SHIFTED, 0.5)]
    assert merge_answers([one, two], 0.5) == merge_answers([two, one], 0.5)
