"""evaluate(): eval.json matches its types and schema, counts, errors, independence of the input order."""

from __future__ import annotations

import json
import random

import jsonschema
import msgspec
import pytest
from evaluation_cases import Case, categories, generated

from coordexp.evaluation import box_pairs, coco_lvis_ap
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions, options_from
from coordexp.evaluation.result_types import AtIoU
from coordexp.evaluation.results import UnmappedLabel, load_eval, schema
from coordexp.records import Metadata, Record
from coordexp.runtime import tuning
from coordexp.runtime.errors import ConfigError, DataError
from coordexp.runtime.io import write_jsonl

QUICK = EvaluateOptions(bootstrap=3)


def run(case: Case, folder, options=QUICK, **kwargs):
    predictions, annotations = case.write(folder)
    return evaluate(predictions, annotations, options, dataset="generated", split="val", **kwargs)


def test_eval_json_matches_its_schema_and_the_returned_value(tmp_path):
    result = run(generated(0, lvis=True), tmp_path, out=tmp_path / "eval.json")
    written = json.loads((tmp_path / "eval.json").read_text())
    jsonschema.validate(written, schema())
    assert load_eval(tmp_path / "eval.json") == result
    assert written["lvis"]["metrics"]["AP"] > 0 and written["coco"]["metrics"]["AP"] > 0
    assert written["counts"]["images"] == 30


def test_result_does_not_depend_on_the_order_of_the_files(tmp_path):
    case = generated(1, lvis=True, crowds=0.1)
    first = run(case, tmp_path / "a")
    rng = random.Random(0)
    for rows in (case.images, case.annotations, case.categories):
        rng.shuffle(rows)
    second = run(case, tmp_path / "b")
    assert first == msgspec.structs.replace(second, inputs=first.inputs)


def test_only_the_published_f1_depends_on_the_order_within_an_answer(tmp_path):
    case = generated(1, lvis=True, crowds=0.1)
    first = msgspec.to_builtins(run(case, tmp_path / "a"))
    rng = random.Random(0)
    for rows in case.detections.values():
        rng.shuffle(rows)
    second = msgspec.to_builtins(run(case, tmp_path / "b"))
    for result in (first, second):
        del result["inputs"], result["coco"]["f1"]["published"], result["lvis"]["f1"]["published"]
    assert first == second


def test_scoring_in_parts_gives_the_same_result(tmp_path, monkeypatch):
    """Pairs of boxes and the input of hotcoco are limited to parts of the detections, so that memory is, too."""
    case = generated(1, lvis=True, crowds=0.1)
    whole = run(case, tmp_path)
    most, sizes = 40, {"boxes": [], "detections": []}
    monkeypatch.setattr(tuning, "BOXES_PER_PART", most)
    monkeypatch.setattr(tuning, "DETECTIONS_PER_PART", most)
    candidates, rows = box_pairs._candidates, coco_lvis_ap._rows
    monkeypatch.setattr(
        box_pairs, "_candidates", lambda box, *given: sizes["boxes"].append(len(box)) or candidates(box, *given)
    )
    monkeypatch.setattr(coco_lvis_ap, "_rows", lambda found: sizes["detections"].append(len(found)) or rows(found))
    assert run(case, tmp_path) == whole
    largest = max(row.detections for row in whole.coco.by_category)  # a category is never divided
    assert len(sizes["boxes"]) > 20 and max(sizes["boxes"]) < 2 * most
    assert len(sizes["detections"]) > 10 and max(sizes["detections"]) < most + largest


def test_nothing_predicted_gives_zeros(tmp_path):
    case = generated(2, lvis=True)
    case.detections = {}
    result = run(case, tmp_path)
    for name in ("coco", "lvis"):
        block = getattr(result, name)
        assert {value for name, value in block.metrics.items() if name != "presence_mcc"} <= {0.0}
        assert block.metrics["presence_mcc"] is None  # a correlation with a constant
        assert block.metrics["AP"] == 0.0
        assert block.f1.all_predictions.micro == AtIoU(0.0, 0.0, 0.0)
    assert result.counts.images_without_detections == 30


def test_without_objects_ap_is_null_and_detections_are_false_positives(tmp_path):
    case = generated(3, lvis=False)
    case.annotations.clear()
    result = run(case, tmp_path)
    assert result.coco.metrics["AP"] is None
    assert result.not_computed == {"lvis": "the annotations have no federated lists (neg_category_ids)"}
    total = sum(len(found) for found in case.detections.values())
    assert result.coco.f1.all_predictions.false_positives_50 == total


def test_image_without_objects_counts(tmp_path):
    case = Case([image(1), image(2)], [annotation(1, 1, [10, 10, 100, 100])], categories(1))
    case.detections = {1: [("thing0", [10, 10, 110, 110], 0.5)]}
    clean = run(case, tmp_path / "a").coco.metrics["AP"]
    case.detections[2] = [("thing0", [10, 10, 110, 110], 0.9)]
    assert clean == pytest.approx(1.0)
    assert run(case, tmp_path / "b").coco.metrics["AP"] == pytest.approx(0.5)


def test_missing_images_are_an_error_unless_subset(tmp_path):
    case = generated(4, lvis=True)
    predictions, annotations = case.write(tmp_path)
    lines = predictions.read_text().splitlines()
    predictions.write_text("\n".join(lines[:10]) + "\n")
    with pytest.raises(DataError, match="20 of 30 annotated images have no prediction"):
        evaluate(predictions, annotations, QUICK, dataset="generated", split="val")
    options = EvaluateOptions(bootstrap=0, subset=True)
    part = evaluate(predictions, annotations, options, dataset="generated", split="val")
    assert (part.counts.images, part.counts.images_annotated) == (10, 30)
    assert "10 predicted of 30" in part.counts.subset_note
    kept = {i["id"] for i in case.images[:10]}
    small = Case(case.images[:10], [a for a in case.annotations if a["image_id"] in kept], case.categories)
    small.detections = {i: d for i, d in case.detections.items() if i in kept}
    whole = run(small, tmp_path / "small", EvaluateOptions(bootstrap=0))
    assert part.lvis == whole.lvis and part.coco == whole.coco


def test_images_without_a_record_are_not_scored(tmp_path):
    case = generated(4, lvis=True)
    predictions, annotations = case.write(tmp_path)
    kept = [image["id"] for image in case.images[:25]]
    lines = predictions.read_text().splitlines()
    predictions.write_text("\n".join(lines[:25]) + "\n")
    write_jsonl(tmp_path / "r.jsonl", [Record(["x"], 64, 64, "pixel", [], Metadata(i, 640, 480)) for i in kept])
    options, names = EvaluateOptions(bootstrap=0), {"dataset": "generated", "split": "val"}
    part = evaluate(predictions, annotations, options, **names, records=tmp_path / "r.jsonl")
    left = sum(row["image_id"] not in kept for row in case.annotations)
    counts = part.counts
    assert (counts.images, counts.images_annotated, counts.images_without_record) == (25, 30, 5)
    assert counts.objects_without_record == left > 0
    assert counts.subset_note == "5 of 30 annotated images have no record and are not scored"
    small = evaluate(predictions, annotations, EvaluateOptions(bootstrap=0, subset=True), **names)
    assert part.coco == small.coco and part.lvis == small.lvis
    predictions.write_text("\n".join(lines[:20]) + "\n")
    with pytest.raises(DataError, match="5 of 25 annotated images have no prediction"):
        evaluate(predictions, annotations, options, **names, records=tmp_path / "r.jsonl")
    write_jsonl(tmp_path / "r.jsonl", [Record(["x"], 64, 64, "pixel", [], Metadata(999, 640, 480))])
    with pytest.raises(DataError, match=r"r\.jsonl: image 999 is not in the annotations"):
        evaluate(predictions, annotations, options, **names, records=tmp_path / "r.jsonl")


def test_unmapped_detections_are_counted_and_wrong_in_coco(tmp_path):
    case = Case([image(1)], [annotation(1, 1, [10, 10, 100, 100])], categories(2))
    case.detections = {1: [("thing0", [10, 10, 110, 110], 0.5), ("zebra crossing", [0, 0, 50, 50], 0.9)]}
    result = run(case, tmp_path)
    assert result.counts.unmapped_detections == 1
    unmapped = UnmappedLabel(desc="zebra crossing", why="unknown", candidates=[], count=1)
    assert result.mapping.unmapped == [unmapped]
    assert result.coco.f1.all_predictions.precision.iou_50 == 0.5
    assert result.coco.f1.prompted_only.precision.iou_50 == 1.0
    assert pytest.approx(0.5) == result.coco.pooled.AP
    assert result.coco.pooled.unmapped_false_positives == 1
    assert result.examples.confident_errors[0].error == "unmapped"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.update(image_id=999), "image 999 is not in the annotations"),
        (lambda line: line.update(image_id=2), "duplicate image 2"),
        (lambda line: line.update(source_width=1), "size of image 8 differs from the annotations"),
        (lambda line: line["detections"].append(detection(norm=[0, 0, 1])), "not a box"),
        (lambda line: line["detections"].append(detection(score="1")), "not a prediction"),
        (lambda line: line["detections"].append(detection(poly=[0, 0, 1, 1])), "not a polygon"),
    ],
)
def test_invalid_predictions_name_the_line(tmp_path, change, message):
    case = generated(5, lvis=True, images=4)
    predictions, annotations = case.write(tmp_path)
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    change(lines[2])
    predictions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=message) as raised:
        evaluate(predictions, annotations, QUICK, dataset="generated", split="val")
    assert "predictions.jsonl:3" in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_score_is_an_error_with_its_line(tmp_path, value):
    case = generated(5, lvis=True, images=4)
    case.detections[5].append(("thing0", [0, 0, 10, 10], value))
    predictions, annotations = case.write(tmp_path)
    with pytest.raises(DataError, match=r"predictions\.jsonl:2"):
        evaluate(predictions, annotations, QUICK, dataset="generated", split="val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda case: case.annotations.append(dict(case.annotations[0])), "annotations: id 1 occurs more than once"),
        (lambda case: case.images.append(dict(case.images[0])), "images: id 2 occurs more than once"),
        (lambda case: case.categories.append(dict(case.categories[0])), "categories: id 1 occurs more than once"),
        (lambda case: case.annotations[0].update(category_id=77), "category_id 77 is not in the file's list"),
        (lambda case: case.annotations[0].update(image_id=77), "image_id 77 is not in the file's list"),
        (
            lambda case: case.annotations[0].update(area="large"),
            "annotations: id 1: Expected `float | null`",
        ),
        (lambda case: case.categories[0].update(name=" "), "categories: id 1 has no name"),
        (lambda case: case.images[0].update(width=-5), "has no size"),
    ],
)
def test_invalid_annotations_name_the_id(tmp_path, change, message):
    case = generated(6, lvis=True, images=4)
    change(case)
    with pytest.raises(DataError, match=message):
        run(case, tmp_path)


INVALID = {
    "duplicate annotation id": lambda case: case.annotations.append(dict(case.annotations[0])),
    "duplicate image id": lambda case: case.images.append(dict(case.images[0])),
    "repeated category id": lambda case: case.categories.append(dict(case.categories[0])),
    "category without a name": lambda case: case.categories.append({"id": 99, "name": " "}),
    "unknown category": lambda case: extra(case, category_id=77),
    "unknown category in neg_category_ids": lambda case: case.images[0]["neg_category_ids"].append(77),
    "annotation of no image": lambda case: extra(case, image_id=77),
    "impossible size": lambda case: case.images.append(image(78) | {"width": 0}),
    "unreadable entry of annotations": lambda case: extra(case, bbox=[0, 0, float("nan"), 5]),
    "outside the image": lambda case: extra(case, bbox=[700, 0, 5, 5]),
}


def extra(case: Case, **changes) -> None:
    case.annotations.append(annotation(1000 + len(case.annotations), 2, [10, 10, 20, 20]) | changes)


def test_skipped_annotations_do_not_count(tmp_path):
    """With `on_bad: skip` the scores are those of the file without its invalid entries, which are counted."""
    case = generated(6, lvis=True, images=8)
    options = EvaluateOptions(bootstrap=0, on_bad="skip")
    clean = run(case, tmp_path / "clean", options)
    for change in INVALID.values():
        change(case)
    _, annotations = case.write(tmp_path / "invalid")
    predictions = tmp_path / "clean" / "predictions.jsonl"
    result = evaluate(predictions, annotations, options, dataset="generated", split="val")
    assert result.counts.annotations_skipped == dict.fromkeys(sorted(INVALID), 1)
    assert result.coco == clean.coco and result.lvis == clean.lvis


@pytest.mark.parametrize("name", sorted(set(INVALID) - {"outside the image", "unknown category in neg_category_ids"}))
def test_invalid_annotation_is_an_error_by_default(tmp_path, name):
    case = generated(6, lvis=True, images=8)
    INVALID[name](case)
    with pytest.raises(DataError, match=r"annotations\.json"):
        run(case, tmp_path)


def test_string_annotation_ids_and_boxes_without_area(tmp_path):
    """Accepted as in the conversion; a box without area stays an object that cannot be matched, as in COCOeval."""
    case = generated(7, lvis=True)
    numbers = run(case, tmp_path / "a")
    for row in case.annotations:
        row["id"] = f"a{row['id']:05d}"
    extra(case, id="b", bbox=[10, 10, -5, 5])
    texts = run(case, tmp_path / "b")
    assert texts.lvis == numbers.lvis and texts.coco == numbers.coco
    assert texts.counts.annotations_skipped == {"empty box": 1}
    extra(case, id="c", bbox=[10, 10, 0, 5])
    flat = run(case, tmp_path / "c")
    assert flat.counts.objects == texts.counts.objects + 1
    assert (texts.counts.objects_without_area, flat.counts.objects_without_area) == (0, 1)


def test_string_image_ids(tmp_path):
    case = generated(7, lvis=True)
    numbers = run(case, tmp_path / "a")
    for row in case.images:
        row["id"] = f"p{row['id']:05d}"
    for row in case.annotations:
        row["image_id"] = f"p{row['image_id']:05d}"
    case.detections = {f"p{i:05d}": found for i, found in case.detections.items()}
    texts = run(case, tmp_path / "b")
    assert texts.lvis == numbers.lvis and texts.coco == numbers.coco


def test_options_from_config():
    options = options_from({"protocols": ["coco"], "max_dets": {"lvis": 300, "coco": 50}})
    assert (options.protocols, options.max_dets.coco, options.subset) == (("coco",), 50, False)
    with pytest.raises(ConfigError, match="protocolls"):
        options_from({"protocolls": []})


def detection(**fields) -> dict:
    return {"desc": "x", "norm": [0, 0, 1, 1], "score": 1.0, **fields}


def image(image_id: int) -> dict:
    return {"id": image_id, "width": 640, "height": 480}


def annotation(annotation_id: int, image_id: int, box: list[float], category_id: int = 1) -> dict:
    return {"id": annotation_id, "image_id": image_id, "category_id": category_id, "bbox": box, "area": box[2] * box[3]}
