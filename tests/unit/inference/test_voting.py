"""Merging of several answers to one prompt."""

from __future__ import annotations

import pytest

from coordexp.inference.voting import merge_answers
from coordexp.records import Detection

LEFT = [0.1, 0.1, 0.5, 0.5]
SHIFTED = [0.12, 0.1, 0.52, 0.5]
RIGHT = [0.6, 0.1, 0.9, 0.5]


@pytest.mark.parametrize(("weight", "both", "alone"), [(0, 0.6, 0.5), (1, 0.8 / 3, 0.5 / 3), (0.5, 1.3 / 3, 1 / 3)])
def test_the_best_member_is_kept_and_scored_by_votes(weight, both, alone):
    first = [Detection("cat", LEFT, 0.6, bins=[1, 2, 3, 4], score_parts={"desc_logprob": -1.0})]
    second = [Detection("cat", RIGHT, 0.5), Detection("cat", SHIFTED, 0.2)]
    merged = merge_answers([first, second, []], 0.5, weight)
    assert [found.score for found in merged] == pytest.approx([both, alone])
    assert merged[0].norm == LEFT and merged[0].bins == [1, 2, 3, 4]
    assert merged[0].score_parts == {"desc_logprob": -1.0, "votes": pytest.approx(2 / 3)}
    assert merged[1].norm == RIGHT and merged[1].score_parts == {"votes": pytest.approx(1 / 3)}


def test_only_boxes_of_different_answers_with_the_same_description_are_merged():
    answer = [Detection("cat", LEFT, 0.6), Detection("cat", SHIFTED, 0.5), Detection("dog", LEFT, 0.4)]
    assert len(merge_answers([answer, []], 0.5)) == 3
    merged = merge_answers([answer, answer], 0.5)
    assert [(found.desc, found.score) for found in merged] == [("cat", 0.6), ("cat", 0.5), ("dog", 0.4)]
    assert [found.norm for found in merged] == [LEFT, SHIFTED, LEFT]
    assert len(merge_answers([[answer[0]], [Detection("cat", SHIFTED, 0.5)]], 0.95)) == 2


def test_a_box_joins_the_group_that_it_overlaps_most():
    far, near = [0.1, 0.1, 0.5, 0.6], [0.1, 0.1, 0.5, 0.5]
    answers = [[Detection("cat", far, 0.9), Detection("cat", near, 0.8)], [Detection("cat", near, 0.4)]]
    assert {(d.norm[3], d.score_parts["votes"]) for d in merge_answers(answers, 0.5)} == {(0.6, 0.5), (0.5, 1.0)}


def test_the_order_of_the_answers_has_no_effect():
    one, two = [Detection("cat", LEFT, 0.6), Detection("dog", RIGHT, 0.3)], [Detection("cat", SHIFTED, 0.5)]
    assert merge_answers([one, two], 0.5) == merge_answers([two, one], 0.5)
