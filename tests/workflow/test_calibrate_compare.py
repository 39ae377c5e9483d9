"""Calibration and the comparison of runs, by real Snakemake on synthetic predictions."""

import shutil
import zipfile

import pytest
from running import answer

from coordexp.recipe import merge
from coordexp.records import read_records
from coordexp.runtime.io import read_json, read_jsonl

RUN = "results/shapes_9"
TARGETS = (f"{RUN}/eval.json", f"{RUN}/report.html")
AFTER_PREDICT = ("gather", "calibrate", "evaluate", "report", "compare")


def changed(base: dict, **calibrate: object) -> dict:
    return merge(base, {"calibrate": {"images": 12, "method": "logistic", **calibrate}})


@pytest.fixture(scope="module")
def calibrated(finished, tmp_path_factory):
    """The finished demo with calibration, and synthetic shards of predictions."""
    folder = tmp_path_factory.mktemp("calibrated")
    shutil.copytree(finished.folder, folder, dirs_exist_ok=True)
    workflow = type(finished)(folder, changed(finished.changes))
    workflow.run(f"{RUN}/data/calibration.jsonl")
    answer(folder, f"{RUN}/data/calibration.jsonl", f"{RUN}/calibration/shards/1-of-1.jsonl", 1)
    answer(folder, f"{RUN}/data/val.jsonl", f"{RUN}/eval/shards/1-of-1.jsonl", 2)
    workflow.run("--allowed-rules", *AFTER_PREDICT, "--", *TARGETS)
    return workflow


def test_calibration_trains_on_the_rest_and_predicts_the_calibration_images(finished):
    before = finished.changes
    finished.change(changed(before))
    try:
        planned = finished.planned(*TARGETS)
    finally:
        finished.change(before)
    again = {"calibration_split", "train", "curves", "merge", "calibrate", "evaluate", "report"}
    assert planned == {**dict.fromkeys(again, 1), "predict": 2, "gather": 2}


def test_the_calibration_is_fitted_on_images_that_training_does_not_see(calibrated):
    held, rest = (
        {record.metadata.image_id for record in read_records(calibrated.path(f"{RUN}/data/{name}"), space)}
        for name, space in (("calibration.jsonl", "pixel"), ("train_rest.coord.jsonl", "token"))
    )
    assert len(held) == 12 and len(rest) == 12 and not held & rest
    fitted = read_json(calibrated.path(f"{RUN}/calibration.json"))
    assert fitted["method"] == "logistic" and fitted["fitted"]["images"] == 12
    shard, rows = (
        list(read_jsonl(calibrated.path(f"{RUN}/eval/{name}"))) for name in ("shards/1-of-1.jsonl", "predictions.jsonl")
    )
    raw = [[d["score"] for d in row["detections"]] for row in shard]
    assert raw == [[d["score_parts"]["raw_score"] for d in row["detections"]] for row in rows]
    numbers = read_json(calibrated.path(f"{RUN}/eval.json"))
    assert numbers["counts"]["calibrated_detections"] == numbers["counts"]["detections"] > 0
    assert fitted["fitted"]["records"] in calibrated.path(f"{RUN}/report.html").read_text()


def test_another_method_predicts_nothing_again(calibrated):
    before = calibrated.changes
    calibrated.change(changed(before, method="isotonic"))
    planned = calibrated.planned(*TARGETS, allowed=AFTER_PREDICT)
    assert planned == dict.fromkeys(("calibrate", "gather", "evaluate", "report"), 1)
    calibrated.change(changed(before, method="none"))
    assert planned.keys() - calibrated.planned(*TARGETS, allowed=AFTER_PREDICT).keys() == {"calibrate"}
    calibrated.change(before)


def test_runs_on_the_same_records_are_compared_by_their_names(calibrated):
    calibrated.change(merge(calibrated.changes, {"runs": {"other": {"records_from": "shapes_9"}}}))
    shutil.copytree(calibrated.path(RUN), calibrated.path("results/other"), ignore=shutil.ignore_patterns("data"))
    answer(calibrated.folder, f"{RUN}/data/val.jsonl", "results/other/eval/shards/1-of-1.jsonl", 3)
    target = "results/compare/shapes_9+other/report.html"
    calibrated.run("--allowed-rules", *AFTER_PREDICT, "--", target, "results/other/report.html")
    calibrated.run("--report", "all.zip")  # as documented, without targets
    with zipfile.ZipFile(calibrated.path("all.zip")) as archive:
        pages = [name for name in archive.namelist() if "/data/raw/" in name and name.endswith("/report.html")]
    assert len(pages) == 3  # both runs and the comparison
    result = read_json(calibrated.path("results/compare/shapes_9+other/compare.json"))
    assert [run["name"] for run in result["runs"]] == ["shapes_9", "other"]
    assert result["lvis"]["differences"].keys() == {"other"}
    assert '<section id="training">' in calibrated.path(target).read_text()
    assert not calibrated.path("results/other/data").exists()


def test_a_named_run_converts_nothing_again(finished):
    before = finished.changes
    finished.change(
        merge(before, {"runs": {"other": {"records_from": "shapes_9", "recipe": {"training": {"max_steps": 2}}}}})
    )
    try:
        planned = finished.planned("results/other/eval.json", "results/compare/shapes_9+other/report.html")
        done = finished.run("--dry-run", "results/othr/eval.json", check=False)
    finally:
        finished.change(before)
    assert planned == dict.fromkeys(("train", "merge", "predict", "gather", "evaluate", "compare"), 1)
    assert "unknown run 'othr', did you mean 'other'" in done.stdout + done.stderr


def test_two_recipes_on_lvis_are_planned_on_one_conversion(finished):
    planned = finished.planned("results/lora/eval.json", "results/lvis_768/eval.json")
    shared = ("download", "convert_resize", "coord_tokenize")
    assert {rule: planned[rule] for rule in (*shared, "train")} == {**dict.fromkeys(shared, 2), "train": 2}


def test_a_comparison_plans_both_chains(finished):
    planned = finished.planned("results/compare/lvis_768+lvis_1024/report.html")
    assert planned["train"] == planned["evaluate"] == 2 and planned["compare"] == 1 and planned["expand_vocab"] == 1
