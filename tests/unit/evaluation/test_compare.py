"""Paired comparison of runs: compare.json."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from evaluation_cases import Case, generated

from coordexp.evaluation.compare import Run, compare, compare_evaluated, run_from_eval
from coordexp.evaluation.compare_results import CompareResult, Difference, ImageChanges, load_compare
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions
from coordexp.evaluation.results import schema
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import sha256_file

OPTIONS = EvaluateOptions(bootstrap=60)


def worse(case: Case) -> Case:
    """The same run without the detections of one category and with a false positive in every third image."""
    other = copy.deepcopy(case)
    for i, (image_id, found) in enumerate(case.detections.items()):
        other.detections[image_id] = [row for row in found if row[0] != "thing0"]
        if i % 3 == 0:
            other.detections[image_id].append(("thing1", [1, 1, 9, 9], 1.0))
    return other


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    case = generated(0, lvis=True, noise=2, images=90)
    good, annotations = case.write(folder / "good")
    bad, _ = worse(case).write(folder / "bad")
    runs = [Run("good", good), Run("bad", bad)]
    return folder, runs, annotations, compare(runs, annotations, OPTIONS, dataset="generated", split="val")


def test_compare_json_matches_its_schema_and_the_returned_value(compared, tmp_path):
    _, runs, annotations, _ = compared
    out = tmp_path / "compare.json"
    result = compare(runs, annotations, OPTIONS, dataset="generated", split="val", out=out)
    jsonschema.validate(json.loads(out.read_text()), schema(CompareResult))
    assert load_compare(out) == result


def test_values_are_those_of_evaluate(compared):
    _, runs, annotations, result = compared
    for run in runs:
        single = evaluate(run.predictions, annotations, OPTIONS, dataset="generated", split="val")
        for protocol in ("coco", "lvis"):
            found, expected = result.protocols[protocol].runs[run.name], single.protocols[protocol]
            assert found["AP"].value == pytest.approx(expected.metrics["AP"], abs=1e-12)
            assert found["F1_50_micro"].value == expected.f1.all_predictions.micro.iou_50
            assert found["AP"].interval == expected.intervals.values["AP"]


def test_real_difference_is_significant_and_attributed(compared):
    *_, result = compared
    change = result.coco.differences["bad"]
    ap = change.metrics["AP"]
    low, high = ap.interval
    assert low < ap.difference < high < 0 and ap.p <= 2 / 60
    assert change.categories[0].name == "thing0" and change.categories[0].run == 0.0
    assert change.images.worse > change.images.better
    assert change.images.better + change.images.worse + change.images.equal == 90


def test_pairing_narrows_the_interval(compared):
    *_, result = compared
    block = result.coco
    unpaired = sum(np.diff(block.runs[run]["AP"].interval)[0] for run in ("good", "bad"))
    assert np.diff(block.differences["bad"].metrics["AP"].interval)[0] < 0.8 * unpaired


def test_run_compared_with_itself(compared):
    _, runs, annotations, _ = compared
    twice = [runs[0], Run("again", runs[0].predictions)]
    result = compare(twice, annotations, OPTIONS, dataset="generated", split="val")
    for row in result.lvis.differences["again"].metrics.values():
        assert row == Difference(difference=0.0, interval=(0.0, 0.0), p=1.0)
    assert result.lvis.differences["again"].images == ImageChanges(better=0, worse=0, equal=90)


def test_runs_on_different_images_are_refused(compared, tmp_path):
    _, runs, annotations, _ = compared
    part = tmp_path / "part.jsonl"
    part.write_text("".join(line + "\n" for line in runs[1].predictions.read_text().splitlines()[:20]))
    options = EvaluateOptions(bootstrap=0, subset=True)
    with pytest.raises(DataError, match="predicted different images"):
        compare([runs[0], Run("part", part)], annotations, options, dataset="generated", split="val")


@pytest.mark.parametrize("names", [["one"], ["same", "same"]])
def test_two_runs_of_different_names_are_required(compared, names):
    _, runs, annotations, _ = compared
    with pytest.raises(DataError, match="cannot compare"):
        compare([Run(n, runs[0].predictions) for n in names], annotations, OPTIONS, dataset="generated", split="val")


def test_changed_files_are_refused(compared):
    folder, runs, annotations, _ = compared
    evaluate(
        runs[0].predictions, annotations, OPTIONS, dataset="generated", split="val", out=folder / "good" / "eval.json"
    )
    run, ground_truth = run_from_eval(folder / "good" / "eval.json")
    assert (run, ground_truth) == (runs[0], annotations)
    copied = folder / "good" / "copy.jsonl"
    copied.write_text(runs[0].predictions.read_text())
    evaluate(copied, annotations, OPTIONS, dataset="generated", split="val", out=folder / "good" / "eval.json")
    copied.write_text(copied.read_text() + "\n")
    with pytest.raises(DataError, match="has changed since the evaluation"):
        run_from_eval(folder / "good" / "eval.json")


def test_files_of_other_folders_are_found_again_without_their_paths(compared, tmp_path, monkeypatch):
    """eval.json names no folders of users; the hashes decide which file is meant."""
    _, runs, annotations, _ = compared
    monkeypatch.setenv("HOME", str(tmp_path.parents[1] / "home"))
    predictions, out = tmp_path / "eval" / runs[0].predictions.name, tmp_path / "eval.json"
    predictions.parent.mkdir()
    predictions.write_bytes(runs[0].predictions.read_bytes())
    evaluate(predictions, annotations, OPTIONS, dataset="generated", split="val", out=out)
    assert str(tmp_path.parent) not in out.read_text() and str(annotations.parent) not in out.read_text()
    content = json.loads(out.read_text())
    for entry in content["inputs"].values():
        entry["path"] = f".../{Path(entry['path']).name}"
    out.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"\.\.\./annotations.json is missing"):
        run_from_eval(out)
    assert run_from_eval(out, annotations=annotations)[0].predictions == predictions
    (tmp_path / annotations.name).write_bytes(annotations.read_bytes())
    assert run_from_eval(out)[1] == tmp_path / annotations.name


def test_comparing_evaluated_runs(compared, tmp_path):
    _, runs, annotations, result = compared
    paths = [tmp_path / run.name / "eval.json" for run in runs]
    for run, path in zip(runs, paths, strict=True):
        evaluate(run.predictions, annotations, OPTIONS, dataset="generated", split="val", out=path)
    assert compare_evaluated(paths) == result
    _, other = generated(1, lvis=True, images=90).write(tmp_path)
    content = json.loads(paths[1].read_text())
    content["inputs"]["annotations"] = {"path": str(other), "sha256": sha256_file(other), "bytes": 1}
    paths[1].write_text(json.dumps(content))
    with pytest.raises(DataError, match="different annotations"):
        compare_evaluated(paths)
