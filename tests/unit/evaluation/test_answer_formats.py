"""Answers of other models: one file per model in `answers_of_models`, written from its documented output format.

All describe the same four objects in two images, and say of a third image that it has none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coordexp.evaluation.answer_formats import ANSWER_FORMATS, parse_answer
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions
from coordexp.runtime.errors import DataError

FOLDER = Path(__file__).parent / "answers_of_models"
MODELS = sorted(path.stem for path in FOLDER.glob("*.jsonl"))
SIZE = (640, 480)
REX_CAT = "<|object_ref_start|>cat<|object_ref_end|><|box_start|><99><199><499><899>"
LOCATE_CAT = "<ref>cat</ref><box><100><200><500><900></box>"
FLORENCE_CAT = "cat<loc_100><loc_200><loc_500><loc_900>"
PALIGEMMA_CAT = "<loc0205><loc0102><loc0922><loc0512> cat"


def test_every_model_has_a_file_of_answers():
    assert set(ANSWER_FORMATS) - set(MODELS) == {"json-pixel", "json-1000"}


@pytest.mark.parametrize("model", MODELS)
def test_answers_of_a_model_are_scored_in_their_declared_space(model):
    options = EvaluateOptions(bootstrap=0)
    scored = evaluate(
        FOLDER / f"{model}.jsonl", FOLDER / "annotations.json", options, dataset="d", split="val", format=model
    )
    found = scored.coco.f1.all_predictions
    assert (found.true_positives_50, found.false_positives_50, found.false_negatives_50) == (4, 0, 0)
    assert found.micro.mean > 0.95  # the thinnest box is 30 pixels high, a bin is 0.6 pixels
    assert scored.counts.problems == {}
    assert (scored.counts.images, scored.counts.images_without_detections) == (3, 1)


@pytest.mark.parametrize(
    ("model", "text", "norm"),
    [
        ("rex-omni", REX_CAT + "<|box_end|>", np.array([99, 199, 499, 899]) / 999),
        ("locate-anything", LOCATE_CAT, [0.1, 0.2, 0.5, 0.9]),
        ("florence-2", FLORENCE_CAT, [0.1005, 0.2005, 0.5005, 0.9005]),
        ("paligemma", PALIGEMMA_CAT, np.array([102, 205, 512, 922]) / 1024),
    ],
)
def test_bins_are_converted_as_the_model_documents(model, text, norm):
    found, problems = parse_answer(text, model, SIZE)
    assert ([d.desc for d in found], problems) == (["cat"], {})
    assert found[0].norm == pytest.approx(list(norm))


@pytest.mark.parametrize(
    ("model", "text", "names", "problems"),
    [
        ("rex-omni", REX_CAT, ["cat"], {}),
        ("rex-omni", REX_CAT + ",<1><2>", ["cat"], {"cut_off": 1}),
        ("rex-omni", REX_CAT + ",<1><2><3", ["cat"], {"cut_off": 1}),
        ("rex-omni", REX_CAT + ",<1><2><|box_end|>", ["cat"], {"bad_box": 1}),
        ("rex-omni", REX_CAT + ",<1><2><3><1000><|box_end|>", ["cat"], {"bad_box": 1}),
        ("rex-omni", REX_CAT + "<|box_end|>, <|object_ref_start|>dog", ["cat"], {"cut_off": 1}),
        ("rex-omni", REX_CAT + REX_CAT + "<|box_end|>", ["cat", "cat"], {}),
        ("rex-omni", "<|box_start|><1><2><3><4><|box_end|>", [], {"no_label": 1}),
        ("rex-omni", "<|object_ref_start|>cat<|object_ref_end|><|box_start|>None<|box_end|>", [], {}),
        ("locate-anything", LOCATE_CAT + "<box><1><2></box>", ["cat"], {"bad_box": 1}),
        ("locate-anything", LOCATE_CAT + "<box><1><2><3>", ["cat"], {"cut_off": 1}),
        ("locate-anything", LOCATE_CAT + "<ref>dog</ref>", ["cat"], {"cut_off": 1}),
        ("locate-anything", "<ref>dog</ref>" + LOCATE_CAT, ["cat"], {"no_box": 1}),
        ("locate-anything", LOCATE_CAT + "<1><2><3><4>", ["cat"], {"bare_box": 1}),
        ("locate-anything", "<box><1><2><3><4></box>", [], {"no_label": 1}),
        ("florence-2", f"</s><s>{FLORENCE_CAT}dog<loc_1><loc_2></s>", ["cat"], {"cut_off": 1}),
        ("florence-2", f"dog<loc_1><loc_2>{FLORENCE_CAT}", ["cat"], {"bad_box": 1}),
        ("florence-2", FLORENCE_CAT + "dog<loc_1><loc_2><lo", ["cat"], {"cut_off": 1}),
        ("florence-2", FLORENCE_CAT + "dog", ["cat"], {"cut_off": 1}),
        ("florence-2", FLORENCE_CAT + "dog<loc_1><loc_2><loc_3><loc_1000>", ["cat"], {"bad_box": 1}),
        ("paligemma", f"{PALIGEMMA_CAT} ; <loc0001><loc0002> dog", ["cat"], {"cut_off": 1}),
        ("paligemma", f"<loc0001><loc0002> dog ; {PALIGEMMA_CAT}", ["cat"], {"bad_box": 1}),
        ("paligemma", f"{PALIGEMMA_CAT} ; <loc0001><loc00", ["cat"], {"cut_off": 1}),
        ("paligemma", PALIGEMMA_CAT[:-4], [], {"no_label": 1}),
        ("paligemma", "I see a cat.", [], {"no_object_in_text": 1}),
        ("moondream", '{"objects": [{"x_min": 0.1, "y_min": 0.2, "x_max": 0.5}]}', [], {"bad_box": 1}),
        ("moondream", '{"objects": [{"x_min": 0.1', [], {"cut_off": 1}),
        ("mmdet", '{"bboxes": [[1, 2, 3, 4]], "labels": [7], "scores": [0.5]}', [], {"no_label": 1}),
        ("mmdet", '{"bboxes": [[1, 2, 3, 4]], "labels": [0, 1], "scores": [0.5]}', [], {"unequal_columns": 2}),
        ("mmdet", '{"bboxes": [[1, 2, 3]], "labels": [0], "scores": [0.5]}', [], {"bad_box": 1}),
        ("grounding-dino", '{"boxes": [[1, 2, 3, 4]], "text_labels": ["cat"]}', [], {"unequal_columns": 1}),
    ],
)
def test_objects_that_cannot_be_read_are_counted(model, text, names, problems):
    label = "dog" if ANSWER_FORMATS[model].label == "prompt" else None
    found, counted = parse_answer(text, model, SIZE, label=label, classes=("cat",))
    assert ([d.desc for d in found], counted) == (names, problems)


def test_the_label_of_the_prompt_is_used_where_the_answer_has_none():
    found, _ = parse_answer("<box><1><2><3><4></box>", "locate-anything", SIZE, label="cat")
    assert [d.desc for d in found] == ["cat"]


@pytest.mark.parametrize(
    ("model", "line", "message"),
    [
        ("moondream", '{"image_id": 1, "answer": {"objects": []}}', r"answers\.jsonl:1: label: missing label"),
        ("mmdet", '{"image_id": 1, "answer": {"labels": [0]}}', r"answers\.jsonl:1: classes: missing class names"),
        ("qwen2.5-vl", '{"image_id": 1, "answer": "[]"}', r"answers\.jsonl:1: input_width: missing size"),
        ("rex-omni", '{"image_id": 9, "answer": ""}', r"answers\.jsonl:1: image 9 is not in the annotations"),
    ],
)
def test_a_line_without_what_the_format_needs_is_an_error(tmp_path, model, line, message):
    (tmp_path / "answers.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        evaluate(tmp_path / "answers.jsonl", FOLDER / "annotations.json", dataset="d", split="val", format=model)


def test_two_answers_to_the_same_prompt_are_an_error(tmp_path):
    line = '{"image_id": 1, "label": "cat", "answer": {"objects": []}}\n'
    (tmp_path / "answers.jsonl").write_text(line * 2)
    with pytest.raises(DataError, match="duplicate image 1"):
        evaluate(tmp_path / "answers.jsonl", FOLDER / "annotations.json", dataset="d", split="val", format="moondream")
