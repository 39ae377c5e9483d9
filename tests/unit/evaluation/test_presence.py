"""False positives on absent categories, and the correlation of predicted with actual presence."""

from __future__ import annotations

import math
from itertools import product

import msgspec
import numpy as np
import pytest

from coordexp.datasets.categories import Category
from coordexp.evaluation.detections import collect_detections
from coordexp.evaluation.ground_truth import load_ground_truth
from coordexp.evaluation.label_mapping import LabelMap
from coordexp.evaluation.presence import presence
from coordexp.records import Detection, Prediction
from coordexp.runtime.io import write_json

CATEGORIES = [Category(id=k, name=f"kind {k}") for k in range(1, 6)]
BOX = [0.1, 0.1, 0.4, 0.4]


def case(folder, rng, federated):
    """Ground truth and detections of six images: objects, crowds, and categories that are not fully annotated."""
    images, annotations, predictions = [], [], []
    for number in range(6):
        image = {"id": number, "width": 100, "height": 100}
        present = rng.choice(5, rng.integers(0, 4), replace=False) + 1
        for k in present.tolist():
            crowd = int(rng.random() < 0.3)
            fields = {"image_id": number, "category_id": k, "bbox": [10, 10, 30, 30], "area": 900, "iscrowd": crowd}
            annotations.append({"id": len(annotations) + 1, **fields})
        if federated:
            others = [k for k in range(1, 6) if k not in present]
            image |= {"neg_category_ids": others[::2], "not_exhaustive_category_ids": present.tolist()[:1]}
        images.append(image)
        named = rng.choice(5, rng.integers(0, 5)) + 1
        found = [Detection(f"kind {k}", BOX, 0.5) for k in named.tolist()]
        predictions.append(Prediction(number, 100, 100, "open", "stop", "", [*found, Detection("other", BOX, 1.0)]))
    content = {"images": images, "annotations": annotations, "categories": [msgspec.to_builtins(c) for c in CATEGORIES]}
    write_json(folder / "a.json", content)
    return content, predictions


@pytest.mark.parametrize("federated", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_every_known_pair_of_image_and_category_counts(tmp_path, federated, seed):
    content, predictions = case(tmp_path, np.random.default_rng(seed), federated)
    truth = load_ground_truth(tmp_path / "a.json")
    detections, _ = collect_detections([("x", p) for p in predictions], truth, LabelMap(truth.categories))
    table, wrong = dict.fromkeys(product((False, True), repeat=2), 0), 0
    for image, prediction in zip(content["images"], predictions, strict=True):
        own = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        for k in range(1, 6):
            here = any(row["category_id"] == k and not row["iscrowd"] for row in own)
            unknown = any(row["category_id"] == k for row in own) or (federated and k not in image["neg_category_ids"])
            if not here and unknown:
                continue
            named = sum(found.desc == f"kind {k}" for found in prediction.detections)
            table[here, named > 0] += 1
            wrong += 0 if here else named
    result = presence(truth, detections, federated=federated)
    assert result["absent_false_positives"] == wrong / 6
    tp, fn, fp, tn = table[True, True], table[True, False], table[False, True], table[False, False]
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert result["presence_mcc"] == pytest.approx(expected)


def test_the_correlation_is_undefined_if_nothing_is_predicted(tmp_path):
    _, predictions = case(tmp_path, np.random.default_rng(0), federated=False)
    truth = load_ground_truth(tmp_path / "a.json")
    empty = [("x", msgspec.structs.replace(p, detections=[])) for p in predictions]
    detections, _ = collect_detections(empty, truth, LabelMap(truth.categories))
    assert presence(truth, detections, federated=False) == {"absent_false_positives": 0.0, "presence_mcc": None}
