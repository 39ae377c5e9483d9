"""Per-category results of the report: the confusion matrix, thresholds and curves, against counts by hand."""

import json

import numpy as np
import pytest
from evaluation_cases import generated
from report_cases import report_inputs

from coordexp.evaluation.results import load_eval
from coordexp.reporting.classes import BACKGROUND, LISTED, OTHER, THRESHOLDS, class_results
from coordexp.runtime.io import read_json

CAT, DOG, FAR = [0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.6, 0.2, 1.0]


def results(folder, objects, detections, names=("cat", "dog")):
    """Results of one image of 100 x 100 pixels, with (name, box) objects and (name, box, score) detections."""
    from coordexp.evaluation.evaluate import evaluate

    ids = {name: n for n, name in enumerate(names, 1)}
    annotations = [
        {"id": n, "image_id": 1, "category_id": ids[name], "iscrowd": 0, "area": 100.0 * (x2 - x1) * 100 * (y2 - y1)}
        | {"bbox": [100 * x1, 100 * y1, 100 * (x2 - x1), 100 * (y2 - y1)]}
        for n, (name, (x1, y1, x2, y2)) in enumerate(objects, 1)
    ]
    images = [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}]
    categories = [{"id": n, "name": name} for name, n in ids.items()]
    (folder / "gt.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    found = [{"desc": name, "norm": box, "score": score} for name, box, score in detections]
    row = {"image_id": 1, "source_width": 100, "source_height": 100, "protocol": "open", "finish": "stop", "text": ""}
    (folder / "p.jsonl").write_text(json.dumps(row | {"detections": found}))
    record = {"images": ["a.png"], "width": 100, "height": 100, "coord_space": "pixel"}
    record["objects"] = [
        {"desc": name, "category_id": ids[name], "norm": box, "bbox_2d": [100 * v for v in box]}
        for name, box in objects
    ]
    record["metadata"] = {"image_id": 1, "source_width": 100, "source_height": 100}
    (folder / "val.jsonl").write_text(json.dumps(record))
    evaluate(folder / "p.jsonl", folder / "gt.json", dataset="d", split="val", out=folder / "eval.json")
    return class_results(folder / "p.jsonl", folder / "val.jsonl", load_eval(folder / "eval.json"))


def test_the_matrix_counts_confusions_misses_and_background(tmp_path):
    objects = [("cat", CAT), ("dog", DOG), ("dog", FAR)]
    detections = [("cat", CAT, 0.9), ("cat", DOG, 0.8), ("dog", [0.6, 0.0, 0.9, 0.3], 0.7)]
    found = results(tmp_path, objects, detections)
    assert THRESHOLDS[found.threshold] == 0.85  # one correct detection and no wrong one
    everything = results(tmp_path, objects, [(name, box, 0.9) for name, box, _ in detections])
    assert everything.labels == ["cat", "dog"] or everything.labels == ["dog", "cat"]
    cat, dog, last = everything.labels.index("cat"), everything.labels.index("dog"), 2
    matrix = everything.matrix
    assert matrix[cat, cat] == 1 and matrix[dog, cat] == 1 and matrix[last, dog] == 1 and matrix[dog, last] == 1
    assert matrix.sum() == 4


def test_an_object_goes_to_a_detection_of_its_category_first(tmp_path):
    shifted = [0.1, 0.0, 0.6, 0.5]
    found = results(tmp_path, [("cat", CAT)], [("dog", CAT, 0.9), ("cat", shifted, 0.9)])
    cat, dog = found.labels.index("cat"), found.labels.index("dog")
    assert found.matrix[cat, cat] == 1 and found.matrix[2, dog] == 1 and found.matrix.sum() == 2


def test_precision_and_recall_by_threshold(tmp_path):
    objects = [("cat", CAT), ("cat", DOG)]
    found = results(tmp_path, objects, [("cat", CAT, 0.9), ("cat", DOG, 0.4), ("cat", FAR, 0.6)])
    [cat] = found.categories
    at = {t: (cat.precision(i), cat.recall(i)) for i, t in enumerate(THRESHOLDS)}
    assert at[0.0] == (2 / 3, 1.0) and at[0.5] == (1 / 2, 1 / 2) and at[0.7] == (1.0, 1 / 2)
    assert at[0.95] == (None, 0.0)
    [[curve]] = found.plots
    assert curve.y[0] == curve.y[50] == 1.0 and curve.y[51] == curve.y[100] == pytest.approx(2 / 3)


def test_many_categories_are_folded_into_one(tmp_path):
    names = tuple(f"c{n:02}" for n in range(LISTED + 3))
    boxes = [[n / 30, 0.0, (n + 1) / 30, 0.5] for n in range(len(names))]
    found = results(tmp_path, list(zip(names, boxes, strict=True)), [(names[0], boxes[-1], 0.5)], names)
    assert found.labels[-1] == OTHER and len(found.labels) == LISTED + 1 and BACKGROUND not in found.labels
    assert found.matrix[-2, 0] == 1 and found.matrix.sum() == len(names)


@pytest.mark.parametrize("lvis", [True, False])
def test_counts_agree_with_the_evaluation(tmp_path, lvis):
    inputs = report_inputs(generated(1, lvis=lvis), tmp_path)
    result = load_eval(inputs["eval_json"])
    found = class_results(inputs["predictions"], inputs["records_jsonl"], result)
    block = read_json(inputs["eval_json"])["lvis" if lvis else "coco"]
    positives = block["f1"]["all_predictions"]["true_positives_50"]
    assert sum(row.true_positives[0] for row in found.categories) == positives
    assert np.trace(found.matrix[:-1, :-1]) <= positives
