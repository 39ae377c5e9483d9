"""Objects in answers of other models: those that cannot be read are counted by reason, never lost."""

from __future__ import annotations

import pytest
from answer_fuzz import check_answers, check_notations

from coordexp.evaluation.answer_formats import parse_answer
from coordexp.evaluation.answer_items import answer_part

SIZE = (640, 480)
ITEM = '{"bbox_2d": [100, 200, 500, 900], "label": "cat"}'


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ('{"bbox_2d": "[1, 2, 3, 4]", "label": "dog"}', "bad_box"),
        ('{"bbox_2d": [1, 2, 3, 4, 5], "label": "dog"}', "bad_box"),
        ('{"bbox_2d": [[1, 2], [3, 4]], "label": "dog"}', "bad_box"),
        ('{"bbox_2d": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}, "label": "dog"}', "bad_box"),
        ('{"bbox_2d": [1, 2, 3, 4], "label": ["dog"]}', "no_label"),
        ('{"x1": 1, "y1": 2, "x2": 3, "y2": 4, "label": "dog"}', "no_box"),
        ('{"bboxes": [[1, 2, 3, 4]], "label": "dog"}', "no_box"),
        ('{"rect": [1, 2, 3, 4], "name": "dog"}', "no_box"),
        ('{"dog": [1, 2, 3, 4]}', "no_box"),
        ('{"label": "dog"}', "no_box"),
        ('{"box_2d": "1, 2, 3, 4", "label": "dog"}', "other_box_key"),
        ('{"bbox": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}, "label": "dog"}', "other_box_key"),
        ('["dog", [1, 2, 3, 4]]', "bare_box"),
        ("<ref>dog</ref><box>[[1, 2, 3, 4]]</box>", "bare_box"),
        ('{x1: 1, y1: 2, x2: 3, y2: 4, "label": "dog"}', "quotes"),
        ('{"x1": 1, "y1": 2, "label": "dog",}', "trailing_comma"),
    ],
)
def test_objects_in_another_notation_are_counted(broken, reason):
    for text in (f"[{ITEM}, {broken}]", f"[{broken}, {ITEM}]", f"[{ITEM}, {broken}, {ITEM}]"):
        found, problems = parse_answer(text, "qwen3-vl", SIZE)
        assert len(found) == text.count("cat")
        assert problems == {reason: 1}, text


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (f'{{"image": {{"id": "a"}}, "objects": [{ITEM}]}}', {"no_box": 1}),
        (f'{{"objects": [{ITEM}], "others": []}}', {}),
        (f"{{{ITEM}}}", {}),
        (f'[{ITEM[:-1]}, "attributes": {{"colour": "red", "size": "big"}}}}]', {}),
    ],
)
def test_what_holds_objects_or_belongs_to_one_is_no_object_of_its_own(text, problems):
    found, counted = parse_answer(text, "qwen3-vl", SIZE)
    assert ([d.desc for d in found], counted) == (["cat"], problems)


def test_two_boxes_under_different_keys_of_the_format_are_not_chosen_between():
    text = '[{"bbox": [1, 2, 3, 4], "box": [5, 6, 7, 8], "label": "cat"}]'
    assert parse_answer(text, "json-1000", SIZE) == ([], {"repeated_key": 1})


@pytest.mark.parametrize(
    "broken", ["<ref>dog</ref>[[1, 2, 3, 4]]", "<ref>dog</ref><box>(1,2),(3,4)</box>", "<ref>dog</ref> "]
)
def test_incomplete_tags_beside_good_ones_are_counted(broken):
    found, problems = parse_answer(f"{broken}<ref>cat</ref><box>[[1, 2, 3, 4]]</box>", "internvl", SIZE)
    assert ([d.desc for d in found], problems) == (["cat"], {"not_json": 1})


def test_every_object_of_a_mutated_answer_is_read_or_counted():
    check_answers(2000)


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ('[[1, 2, 3, 4, "a"]]', 1),
        ('[["a", 1, 2, 3, 4], ["b", "5", "6", "7", "8"]]', 2),
        ('{"cat": [[1, 2, 3, 4], [5, 6, 7, 8]], "dog": {"bbox_2d": [1, 2, 3, 4]}}', 3),
        ('{"cat": [1, 2, 3, 4], "cat": [5, 6, 7, 8]}', 2),
        ('[{"label": "cat", "bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]}]', 2),
        ('{"answer": "cat [1, 2, 3, 4], dog [5, 6, 7, 8]"}', 2),
        ("cat: (1, 2), (3, 4); dog: (5, 6), (7, 8)", 2),
        ('[["dog", [1, 2, 3, 4]], ["dog", [1, 2,', 2),
        ('{"cat": [[1, 2, 3, 4],], "dog": [[1, 2, 3, 4]]}', 2),
        (f'[{ITEM[:-1]}, "polygon": [[1, 2], [3, 4], [5, 6]], "size": {{"w": [1, 2, 3, 4]}}}}]', 0),
        ("I found 4 cats (2 red, 1 blue, and 1 other, in 3 places) and 7 dogs.", 1),  # one text without an object
    ],
)
def test_boxes_in_the_notations_of_other_models_are_counted_one_by_one(text, counted):
    found, problems = parse_answer(text, "qwen3-vl", SIZE)
    assert (len(found), sum(problems.values())) == (text.count('"cat"}') + ("polygon" in text), counted), problems


def test_every_box_is_counted_whatever_the_notation():
    check_notations(4000)


@pytest.mark.soak
def test_every_box_of_100_000_answers_is_counted_whatever_the_notation():
    check_notations(100_000, seed=1)


@pytest.mark.soak
def test_every_object_of_100_000_mutated_answers_is_read_or_counted():
    check_answers(100_000, seed=1)


@pytest.mark.parametrize("tag", ["think", "thinking"])
def test_reasoning_in_either_tag_is_not_part_of_the_answer(tag):
    assert answer_part(f"<{tag}>a{{}}</{tag}>b") == (f"<{tag}>a{{}}", "b")
    assert answer_part(f"b<{tag}>a") == ("a", "b")
    assert answer_part("a answer") == ("", "a answer")
