"""Calibration on held-out pictures and the comparison of runs, by real Snakemake on answers made from the truth."""

import shutil

import pytest
from running import answer

from coordexp.io import read_json, read_jsonl, read_records
from coordexp.recipe import merge

RUN = "results/shapes_9"
TARGETS = (f"{RUN}/eval.json", f"{RUN}/report.html")
AFTER_PREDICT = ("gather", "calibrate", "evaluate", "report", "compare")


def changed(base: dict, **calibrate: object) -> dict:
    return merge(base, {"calibrate": {"held_out": 12, "method": "logistic", **calibrate}})


@pytest.fixture(scope="module")
def calibrated(finished, tmp_path_factory):
    """The finished demo, asked for calibration, with shards of answers as a trained model would give them."""
    folder = tmp_path_factory.mktemp("calibrated")
    shutil.copytree(finished.folder, folder, dirs_exist_ok=True)
    workflow = type(finished)(folder, changed(finished.changes))
    workflow.run(f"{RUN}/data/held_out.jsonl")
    answer(folder, f"{RUN}/data/held_out.jsonl", f"{RUN}/held_out/shards/1-of-1.jsonl", 1)
    answer(folder, f"{RUN}/data/val.jsonl", f"{RUN}/eval/shards/1-of-1.jsonl", 2)
    workflow.run("--allowed-rules", *AFTER_PREDICT, "--", *TARGETS)
    return workflow


def test_calibration_trains_on_the_rest_and_predicts_the_held_out_pictures(finished):
    before = finished.changes
    finished.change(changed(before))
    try:
        planned = finished.planned(*TARGETS)
    finally:
        finished.change(before)
    again = {"hold_out", "train", "curves", "merge", "calibrate", "evaluate", "report"}
    assert planned == {**dict.fromkeys(again, 1), "predict": 2, "gather": 2}


def test_scores_are_learnt_from_pictures_that_training_does_not_see(calibrated):
    held, rest = (
        {record.metadata.image_id for record in read_records(calibrated.path(f"{RUN}/data/{name}"), space)}
        for name, space in (("held_out.jsonl", "pixel"), ("train_rest.coord.jsonl", "token"))
    )
    assert len(held) == 12 and len(rest) == 12 and not held & rest
    fitted = read_json(calibrated.path(f"{RUN}/calibration.json"))
    assert fitted["method"] == "logistic" and fitted["fitted"]["pictures"] == 12
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


def test_runs_are_compared_by_their_names(calibrated):
    other = calibrated.path("results/shapes_4")
    shutil.copytree(calibrated.path(RUN), other, dirs_exist_ok=True)
    answer(calibrated.folder, f"{RUN}/data/val.jsonl", "results/shapes_4/eval/shards/1-of-1.jsonl", 3)
    target = "results/compare/shapes_9+shapes_4/report.html"
    calibrated.run("--allowed-rules", *AFTER_PREDICT, "--", target)
    result = read_json(calibrated.path("results/compare/shapes_9+shapes_4/compare.json"))
    assert [run["name"] for run in result["runs"]] == ["shapes_9", "shapes_4"]
    assert result["lvis"]["differences"].keys() == {"shapes_4"}
    assert "Loss over training steps" in calibrated.path(target).read_text()


def test_a_comparison_plans_both_chains(finished):
    planned = finished.planned("results/compare/lvis_768+lvis_1024/report.html")
    assert planned["train"] == planned["evaluate"] == 2 and planned["compare"] == 1 and planned["expand_vocab"] == 1
