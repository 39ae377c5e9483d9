"""The main job with polygons, which one key of the configuration asks for."""

import pytest
from running import SMALL, Workflow

from coordexp.records import read_records
from coordexp.runtime.config_io import merge
from coordexp.runtime.io import read_json, read_jsonl

RUN = "results/shapes_9"


@pytest.fixture(scope="module")
def polygons(tmp_path_factory) -> Workflow:
    # An untrained model writes descriptions of the maximum length, and a polygon takes more tokens than a box.
    changes = {"data": {"geometry": "poly"}, "predict": {"max_new_tokens": 256}}
    workflow = Workflow(tmp_path_factory.mktemp("polygons"), merge(SMALL, changes))
    workflow.run(f"{RUN}/eval.json", f"{RUN}/report.html")
    return workflow


def test_records_carry_polygons(polygons):
    objects = [o for r in read_records(polygons.path(f"{RUN}/data/train.coord.jsonl"), "token") for o in r.objects]
    assert sum(o.poly is not None for o in objects) > len(objects) / 2


def test_predictions_contain_polygons(polygons):
    found = [d for line in read_jsonl(polygons.path(f"{RUN}/eval/predictions.jsonl")) for d in line["detections"]]
    assert any("poly" in detection for detection in found)


def test_masks_are_scored(polygons):
    numbers = read_json(polygons.path(f"{RUN}/eval.json"))
    assert {"AP", "AP50"} <= set(numbers["coco"]["segm"]["metrics"])
    assert "predicted polygons" in polygons.path(f"{RUN}/report.html").read_text()
