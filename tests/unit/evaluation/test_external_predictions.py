"""Predictions of other models: formats, units, parsing problems, and no exception on any text."""

from __future__ import annotations

import itertools
import json

import pytest
from evaluation_cases import generated
from hypothesis import given, settings
from hypothesis import strategies as st

from coordexp.evaluation.answer_formats import parse_answer
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.external_predictions import PREDICTION_FORMATS
from coordexp.evaluation.options import EvaluateOptions
from coordexp.runtime.errors import DataError

BOX = [0.1, 0.2, 0.5, 0.9]
SIZE = (640, 480)
ITEM = '{"bbox_2d": [100, 200, 500, 900], "label": "cat"}'


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("json-1000", f"[{ITEM}]"),
        ("qwen3-vl", f"```json\n[\n\t{ITEM}\n]\n```"),
        ("qwen3-vl", f"The box: [{ITEM}] and no other box: none."),
        ("json-1000", f'{{"result": {{"objects": [{ITEM}]}}}}'),
        ("json-1000", f'{{"objects": [{ITEM}]}}'),
        ("json-1000", ITEM),
        ("json-pixel", '[{"box": [64, 96, 320, 432], "category": "cat"}]'),
        ("qwen2.5-vl", '[{"bbox_2d": [64, 96, 320, 432], "label": "cat"}]'),
        ("gemini", '[{"box_2d": [200, 100, 900, 500], "label": "cat"}]'),
        ("internvl", "<ref>cat</ref><box>[[100, 200, 500, 900]]</box>"),
        ("internvl", "a <ref> cat </ref> <box>[100, 200, 500, 900]</box>."),
    ],
)
def test_same_object_in_every_format(format, text):
    found, problems = parse_answer(text, format, SIZE)
    assert [(d.desc, d.norm, d.score) for d in found] == [("cat", pytest.approx(BOX), 1.0)]
    assert problems == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[{"bbox_2d": [1, 2, 3], "label": "cat"}]', "bad_box"),
        ('[{"bbox_2d": [1, 2, 3, "x"], "label": "cat"}]', "bad_box"),
        ('[{"bbox_2d": [1, 2, 3, NaN], "label": "cat"}]', "bad_box"),
        ('[{"bbox_2d": [1, 2, 3, true], "label": "cat"}]', "bad_box"),
        ('[{"bbox_2d": [1, 2, 3, 4]}]', "no_label"),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": " "}]', "no_label"),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "cat", "score": "high"}]', "bad_score"),
        ("I see a cat.", "no_object_in_text"),
        ("", "no_object_in_text"),
    ],
)
def test_unusable_objects_are_counted(text, problem):
    assert parse_answer(text, "json-1000", SIZE) == ([], {problem: 1})


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ('{"bbox_2d": [1, 2, 3, 4], "label": "dog",}', "trailing_comma"),
        ('{"bbox_2d": [1, 2, 3, 4,], "label": "dog"}', "trailing_comma"),
        ('{"label": {"name": "dog"}, "bbox_2d": [1, 2, 3, 4],}', "trailing_comma"),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "12" dog"}', "quotes"),
        ("{'bbox_2d': [1, 2, 3, 4], 'label': 'dog'}", "quotes"),
        ('{bbox_2d: [1, 2, 3, 4], label: "dog"}', "quotes"),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "big\ndog"}', "not_json"),
        ('{"bbox_2d": [1, 2 3, 4], "label": "dog"}', "not_json"),
        ('{"bbox_2d" [1, 2, 3, 4], "label": "dog"}', "not_json"),
        ('{"bbox_2d": [1, 2, 3, 4], "bbox_2d": [5, 6, 7, 8], "label": "dog"}', "repeated_key"),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "dog", "label": "cat"}', "repeated_key"),
        ('{"box_2d": [1, 2, 3, 4], "label": "dog"}', "other_box_key"),
    ],
)
def test_unreadable_objects_beside_good_ones_are_counted(broken, reason):
    for text in (f"[{ITEM}, {broken}]", f"[{broken}, {ITEM}]", f'{{"objects": [{broken}, {ITEM}]}}'):
        found, problems = parse_answer(text, "qwen3-vl", SIZE)
        assert [d.desc for d in found] == ["cat"]
        assert problems == {reason: 1}, text
    assert parse_answer(f"[{broken}, {ITEM}, {broken}]", "qwen3-vl", SIZE)[1] == {reason: 2}


@pytest.mark.parametrize(
    "tail",
    [
        "{",
        '{"bb',
        '{"bbox_2d',
        '{"bbox_2d": [1, 2,',
        '{"label": "do',
        '{"bbox_2d": [1, 2, 3, 4], "label": "d',
        "{'bbox_2d': [",
    ],
)
def test_a_cut_off_tail_is_counted(tail):
    found, problems = parse_answer(f"[{ITEM}, {tail}", "qwen3-vl", SIZE)
    assert [d.desc for d in found] == ["cat"]
    assert problems == {"cut_off": 1}


@pytest.mark.parametrize("tail", ["<ref>dog</ref><box>[[1, 2", "<ref>dog</ref><bo", "<ref>do", "<ref>dog</ref>"])
def test_a_cut_off_tail_of_tags_is_counted(tail):
    found, problems = parse_answer(f"<ref>cat</ref><box>[[1, 2, 3, 4]]</box>{tail}", "internvl", SIZE)
    assert ([d.desc for d in found], problems) == (["cat"], {"cut_off": 1})


def test_tags_without_an_end_are_counted():
    text = "<ref>dog</ref><box>[[1, 2, 3, 4]]<ref>cat</ref><box>[[1, 2, 3, 4]]</box>"
    found, problems = parse_answer(text, "internvl", SIZE)
    assert ([d.desc for d in found], problems) == (["cat"], {"not_json": 1})


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        (f"<think>maybe {ITEM} or {{'bbox_2d': [1]}}</think>[{ITEM}]", ["cat"], {"in_reasoning": 2}),
        (f"{ITEM}</think>[]", [], {"in_reasoning": 1}),
        (f"<think>{ITEM}", [], {"in_reasoning": 1}),
        (f"<think>a cat</think>[{ITEM}]", ["cat"], {}),
        ("<think>nothing</think>\n[]", [], {}),
    ],
)
def test_reasoning_is_not_scored_but_counted(text, names, expected):
    found, problems = parse_answer(text, "qwen3-vl", SIZE)
    assert ([d.desc for d in found], problems) == (names, expected)


@pytest.mark.parametrize("text", ["[]", "```json\n[]\n```", '{"objects": []}', " [ ] "])
def test_empty_answer_is_not_a_problem(text):
    assert parse_answer(text, "json-1000", SIZE) == ([], {})


def test_stated_score_is_used():
    text = '[{"bbox_2d": [1, 2, 3, 4], "label": "cat", "score": 0.25}]'
    assert parse_answer(text, "json-1000", SIZE)[0][0].score == 0.25


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(alphabet='{}[]":,0123456789.eE+-<>/refboxlabel_d2 NaInfity\\', max_size=80),
    format=st.sampled_from(PREDICTION_FORMATS[2:]),
)
def test_no_text_raises(text, format):
    found, _ = parse_answer(ITEM[: len(text)] + text, format, SIZE)
    assert all(len(d.norm) == 4 and d.desc.strip() for d in found)


def test_deep_nesting_is_handled():
    found, problems = parse_answer('{"a":' * 3000, "json-1000", SIZE)
    assert (found, problems) == ([], {"cut_off": 1})


def test_coco_results_score_like_predictions(tmp_path):
    case = generated(0, lvis=True)
    case.sort_detections()
    predictions, annotations = case.write(tmp_path)
    results = tmp_path / "results.json"
    by_image = itertools.groupby(case.coco_results(), key=lambda row: row["image_id"])
    results.write_text(json.dumps([row for _, rows in reversed([(k, list(v)) for k, v in by_image]) for row in rows]))
    options = EvaluateOptions(bootstrap=5)
    own = evaluate(predictions, annotations, options, dataset="generated", split="val")
    other = evaluate(results, annotations, options, dataset="generated", split="val", format="coco")
    assert other.lvis == own.lvis and other.coco == own.coco
    assert other.inputs.predictions.format == "coco"


def test_coco_results_of_some_images_with_and_without_subset(tmp_path):
    """Without `subset`, images that the results do not mention count as empty, as in pycocotools."""
    case = generated(0, lvis=True)
    named = sorted(image_id for image_id, found in case.detections.items() if found)[:10]
    case.detections = {image_id: case.detections[image_id] for image_id in named}
    case.sort_detections()
    _, annotations = case.write(tmp_path)
    results = tmp_path / "results.json"
    results.write_text(json.dumps(case.coco_results()))

    def scored(**options) -> dict:
        options = EvaluateOptions(bootstrap=0, **options)
        return evaluate(results, annotations, options, dataset="generated", split="val", format="coco")

    whole, part = scored(), scored(subset=True)
    assert whole.counts.images_absent_from_results == part.counts.images_absent_from_results == 20
    assert (whole.counts.images, part.counts.images) == (30, 10)
    assert part.counts.subset and not whole.counts.subset
    case.images = [image for image in case.images if image["id"] in named]
    case.annotations = [row for row in case.annotations if row["image_id"] in named]
    predictions, annotations = case.write(tmp_path / "small")
    small = evaluate(predictions, annotations, EvaluateOptions(bootstrap=0), dataset="generated", split="val")
    assert small.counts.images_absent_from_results is None
    assert part.coco == small.coco and part.coco.metrics["AP"] > whole.coco.metrics["AP"]


def test_coco_results_with_unknown_ids(tmp_path):
    case = generated(1, lvis=True, images=3)
    _, annotations = case.write(tmp_path)
    results = tmp_path / "results.json"
    row = {"image_id": 2, "category_id": 999, "bbox": [1, 2, 3, 4], "score": 0.5}
    results.write_text(json.dumps([row]))
    scored = evaluate(
        results, annotations, EvaluateOptions(bootstrap=0), dataset="generated", split="val", format="coco"
    )
    assert scored.mapping.unmapped[0].desc == "category id 999"
    results.write_text(json.dumps([row | {"image_id": 77}]))
    with pytest.raises(DataError, match=r"\[0\]\.image_id: image 77 is not in the annotations"):
        evaluate(results, annotations, EvaluateOptions(bootstrap=0), dataset="generated", split="val", format="coco")


@pytest.mark.parametrize("names", [("cell", "cell"), ("hot_dog", "hot dog"), ("Cell", "cell."), ("category id 2", "b")])
def test_category_ids_of_coco_results_do_not_go_through_names(tmp_path, names):
    case = generated(0, lvis=False, images=4, kinds=2)
    ids = [c["id"] for c in case.categories]
    results = tmp_path / "results.json"
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in case.annotations
    ]
    unknown = {"image_id": case.images[0]["id"], "category_id": 2, "bbox": [0, 0, 1, 1], "score": 0.1}
    results.write_text(json.dumps([*perfect, unknown]))
    for category, name in zip(case.categories, names, strict=True):
        category["name"] = name
    _, annotations = case.write(tmp_path)
    scored = evaluate(results, annotations, EvaluateOptions(bootstrap=0), dataset="d", split="val", format="coco")
    assert 2 not in ids
    assert scored.coco.metrics["AP"] == pytest.approx(1)
    assert scored.counts.unmapped_detections == 1
    assert sorted(v for v in scored.mapping.by_description.values() if v is not None) == sorted(ids)


def test_answers_of_a_model_with_pixel_coordinates(tmp_path):
    case = generated(2, lvis=True, images=3)
    _, annotations = case.write(tmp_path)
    answers = tmp_path / "answers.jsonl"
    rows = [{"image_id": i["id"], "answer": "[]", "input_width": 1280, "input_height": 960} for i in case.images]
    first = next(a for a in case.annotations if a["image_id"] == case.images[1]["id"])
    x, y, w, h = first["bbox"]
    name = next(c["name"] for c in case.categories if c["id"] == first["category_id"])
    rows[1]["answer"] = json.dumps([{"bbox_2d": [2 * x, 2 * y, 2 * (x + w), 2 * (y + h)], "label": name}])
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = EvaluateOptions(bootstrap=0)
    scored = evaluate(answers, annotations, options, dataset="generated", split="val", format="qwen2.5-vl")
    assert scored.coco.f1.all_predictions.true_positives_50 == 1
    del rows[1]["input_width"]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"answers\.jsonl:2: input_width"):
        evaluate(answers, annotations, options, dataset="generated", split="val", format="qwen2.5-vl")


def test_unknown_format_names_the_nearest(tmp_path):
    predictions, annotations = generated(3, lvis=True, images=2).write(tmp_path)
    with pytest.raises(DataError, match="did you mean 'gemini'"):
        evaluate(predictions, annotations, dataset="generated", split="val", format="gemni")
