"""Training on pixel-space records, and calibration images that a training file contains; real runs of a few steps."""

import shutil

import pytest
from running import answer

from coordexp.runtime.config_io import merge
from coordexp.runtime.io import read_json

RUN = "results/shapes_9"
CALIBRATED = {"calibrate": {"images": 12, "method": "isotonic"}}


@pytest.fixture
def changed(finished, tmp_path):
    """Copies the finished demo and changes the recipe's `custom` section; with calibration."""

    def change(custom: dict):
        shutil.copytree(finished.folder, tmp_path, dirs_exist_ok=True)
        changes = merge(finished.changes, {**CALIBRATED, "runs": {"shapes": {"recipe": {"custom": custom}}}})
        return type(finished)(tmp_path, changes)

    return change


def test_a_recipe_may_train_on_pixel_space_records(changed):
    workflow = changed({"coord_tokens": {"skip_bbox_norm": False}})
    workflow.run(f"{RUN}/calibration/predictions.jsonl", f"{RUN}/eval/shards/1-of-1.jsonl")
    trained = read_json(workflow.path(f"{RUN}/train/adapter/train_manifest.json"))
    files = [trained["recipe"]["custom"][name] for name in ("train_jsonl", "val_jsonl")]
    assert files == [f"{RUN}/data/{name}.jsonl" for name in ("train_rest", "val_tiny")]
    answer(workflow.folder, f"{RUN}/data/calibration.jsonl", f"{RUN}/calibration/shards/1-of-1.jsonl", 1)
    workflow.run("--allowed-rules", "gather", "calibrate", "evaluate", "--", f"{RUN}/eval.json")
    assert read_json(workflow.path(f"{RUN}/eval.json"))["counts"]["images"] == 6


def test_a_calibration_image_in_the_user_s_own_training_file_is_an_error(changed):
    workflow = changed({"train_jsonl": f"{RUN}/data/train.coord.jsonl"})
    workflow.run(f"{RUN}/data/calibration.jsonl")
    answer(workflow.folder, f"{RUN}/data/calibration.jsonl", f"{RUN}/calibration/shards/1-of-1.jsonl", 1)
    target = f"{RUN}/calibration.json"
    done = workflow.run("--allowed-rules", "gather", "calibrate", "--", target, check=False)
    assert done.returncode != 0 and not workflow.path(target).exists()
    assert "is in the training data" in workflow.path(f"{RUN}/logs/calibrate.log").read_text()
