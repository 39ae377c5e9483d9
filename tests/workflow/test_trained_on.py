"""Training on records in pixel space, and what calibration takes for the training file; real runs of a few steps."""

import shutil

import pytest
from running import answer

from coordexp.runtime.config_io import merge
from coordexp.runtime.io import read_json

RUN = "results/shapes_9"
CALIBRATED = {"calibrate": {"calibration": 12, "method": "isotonic"}}


@pytest.fixture
def changed(finished, tmp_path):
    """Maker of a copy of the finished demo that trains by a changed `custom` section, with calibration."""

    def change(custom: dict):
        shutil.copytree(finished.folder, tmp_path, dirs_exist_ok=True)
        changes = merge(finished.changes, {**CALIBRATED, "runs": {"shapes": {"custom": custom}}})
        return type(finished)(tmp_path, changes)

    return change


def test_a_recipe_that_wants_records_in_pixel_space_is_given_them(changed):
    workflow = changed({"coord_tokens": {"skip_bbox_norm": False}})
    workflow.run(f"{RUN}/calibration/predictions.jsonl", f"{RUN}/eval/shards/1-of-1.jsonl")
    trained = read_json(workflow.path(f"{RUN}/train/adapter/train_manifest.json"))
    files = [trained["recipe"]["custom"][name] for name in ("train_jsonl", "val_jsonl")]
    assert files == [str(workflow.path(f"{RUN}/data/{name}.jsonl")) for name in ("train_rest", "val_tiny")]
    answer(workflow.folder, f"{RUN}/data/calibration.jsonl", f"{RUN}/calibration/shards/1-of-1.jsonl", 1)
    workflow.run("--allowed-rules", "gather", "calibrate", "evaluate", "--", f"{RUN}/eval.json")
    assert read_json(workflow.path(f"{RUN}/eval.json"))["counts"]["images"] == 6


def test_a_held_out_image_in_a_training_file_of_one_s_own_is_found(changed):
    workflow = changed({"train_jsonl": f"{RUN}/data/train.coord.jsonl"})
    workflow.run(f"{RUN}/data/calibration.jsonl")
    answer(workflow.folder, f"{RUN}/data/calibration.jsonl", f"{RUN}/calibration/shards/1-of-1.jsonl", 1)
    target = f"{RUN}/calibration.json"
    done = workflow.run("--allowed-rules", "gather", "calibrate", "--", target, check=False)
    assert done.returncode != 0 and not workflow.path(target).exists()
    assert "was trained on" in workflow.path(f"{RUN}/logs/calibrate.log").read_text()
