"""Images with very many objects of one category: the same numbers as hotcoco and lvis-api, in little memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from ap_references import assert_same, lvis_ap
from evaluation_cases import Case, annotation, categories, generated, image, load

from coordexp.evaluation import coco_lvis_ap, large_groups


@pytest.mark.parametrize("seed", range(4))
def test_fixed_ap_of_large_categories_equals_hotcoco_and_lvis_api(tmp_path, monkeypatch, seed):
    case = generated(seed, images=10, kinds=3, lvis=True, crowds=0.2, noise=20)
    case.annotations[0]["area"] = 0.0
    ground_truth, found = load(case, tmp_path)
    expected = coco_lvis_ap.lvis_fixed(ground_truth, found)
    monkeypatch.setattr(large_groups, "MAX_MATRIX", 20)
    assert 0 < len(large_groups.large_categories(ground_truth, found)) <= 3
    actual = coco_lvis_ap.lvis_fixed(ground_truth, found)
    assert actual.metrics == pytest.approx(expected.metrics, abs=1e-12)
    np.testing.assert_allclose(actual.category_ap, expected.category_ap, atol=1e-12)
    assert actual.curves == expected.curves
    content = {"images": case.images, "annotations": case.annotations, "categories": case.categories}
    assert_same(actual.metrics, lvis_ap(content, case.coco_results(), -1))


SCORE_IN_LITTLE_MEMORY = """
import resource, sys
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

import hotcoco
before = peak()
evaluate(sys.argv[1], sys.argv[2], EvaluateOptions(bootstrap=0), dataset="d", split="val")
print(peak() - before)
"""


def test_memory_grows_linearly_with_the_objects_of_one_category(tmp_path):
    """3,000 boxes of one category in one image; one matrix of their IoUs would take 72 MB."""
    case = Case([image(1) | {"neg_category_ids": [], "not_exhaustive_category_ids": []}], [], categories(1))
    rng = np.random.default_rng(0)
    case.annotations = [
        annotation(i + 1, 1, [x, y, 8.0, 6.0])
        for i, (x, y) in enumerate(np.round(rng.uniform(0, 470, (3000, 2)), 2).tolist())
    ]
    boxes = [row["bbox"] for row in case.annotations]
    case.detections = {1: [("thing0", [x, y, x + w, y + h + 1], 0.5) for x, y, w, h in boxes]}
    predictions, annotations = case.write(tmp_path)
    command = [sys.executable, "-c", SCORE_IN_LITTLE_MEMORY, str(predictions), str(annotations)]
    grown = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 70
