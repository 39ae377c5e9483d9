"""Paired comparison of runs, from files to compare.json and its page."""

from __future__ import annotations

import copy
import json

import jsonschema
import numpy as np
import pytest
from evaluation_cases import Case, generated

from coordexp.evaluation import EvaluateOptions, evaluate
from coordexp.evaluation import detections as columns
from coordexp.evaluation import external_predictions as foreign
from coordexp.evaluation import ground_truth as ground_truth_file
from coordexp.evaluation.bootstrap import interval, replicates, two_sided_p
from coordexp.evaluation.compare import SCHEMA, Run, compare, compare_evaluated, run_of
from coordexp.evaluation.label_mapping import LabelMap
from coordexp.evaluation.protocol import Protocol
from coordexp.reporting import write_comparison
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import sha256_file

OPTIONS = EvaluateOptions(bootstrap=60)


def worse(case: Case) -> Case:
    """The same run without the detections of its first category and with a wrong one in every third image."""
    other = copy.deepcopy(case)
    for i, (image_id, found) in enumerate(case.detections.items()):
        other.detections[image_id] = [row for row in found if row[0] != "thing0"]
        if i % 3 == 0:
            other.detections[image_id].append(("thing1", [1, 1, 9, 9], 1.0))
    return other


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    case = generated(0, lvis=True, noise=2, images=90)
    good, annotations = case.write(folder / "good")
    bad, _ = worse(case).write(folder / "bad")
    runs = [Run("good", good), Run("bad", bad)]
    return folder, runs, annotations, compare(runs, annotations, OPTIONS, dataset="made", split="val")


def test_values_are_those_of_evaluate(made):
    _, runs, annotations, result = made
    jsonschema.validate(result, json.loads(SCHEMA.read_text()))
    for run in runs:
        single = evaluate(run.predictions, annotations, OPTIONS, dataset="made", split="val")
        for protocol in ("coco", "lvis"):
            found = result[protocol]["runs"][run.name]
            assert found["AP"]["value"] == pytest.approx(single[protocol]["metrics"]["AP"], abs=1e-12)
            assert found["F1_50_micro"]["value"] == single[protocol]["f1"]["all_predictions"]["micro"]["0.50"]
            assert found["AP"]["interval"] == single[protocol]["intervals"]["values"]["AP"]


def test_a_real_difference_is_seen_and_located(made):
    *_, result = made
    change = result["coco"]["differences"]["bad"]
    ap = change["metrics"]["AP"]
    low, high = ap["interval"]
    assert low < ap["difference"] < high < 0 and ap["p"] <= 2 / 60
    assert change["categories"][0]["name"] == "thing0" and change["categories"][0]["run"] == 0.0
    assert change["images"]["worse"] > change["images"]["better"]
    assert sum(change["images"].values()) == 90


def test_pairing_narrows_the_interval(made):
    *_, result = made
    block = result["coco"]
    alone = sum(np.diff(block["runs"][run]["AP"]["interval"])[0] for run in ("good", "bad"))
    assert np.diff(block["differences"]["bad"]["metrics"]["AP"]["interval"])[0] < 0.8 * alone


def test_a_run_against_itself(made):
    _, runs, annotations, _ = made
    twice = [runs[0], Run("again", runs[0].predictions)]
    result = compare(twice, annotations, OPTIONS, dataset="made", split="val")
    for row in result["lvis"]["differences"]["again"]["metrics"].values():
        assert row == {"difference": 0.0, "interval": [0.0, 0.0], "p": 1.0}
    assert result["lvis"]["differences"]["again"]["images"] == {"better": 0, "worse": 0, "equal": 90}


def test_other_images_are_refused(made, tmp_path):
    _, runs, annotations, _ = made
    part = tmp_path / "part.jsonl"
    part.write_text("".join(line + "\n" for line in runs[1].predictions.read_text().splitlines()[:20]))
    options = EvaluateOptions(bootstrap=0, subset=True)
    with pytest.raises(DataError, match="predicted other images"):
        compare([runs[0], Run("part", part)], annotations, options, dataset="made", split="val")


@pytest.mark.parametrize("names", [["one"], ["same", "same"]])
def test_names_must_differ_and_be_two(made, names):
    _, runs, annotations, _ = made
    with pytest.raises(DataError, match="cannot compare"):
        compare([Run(n, runs[0].predictions) for n in names], annotations, OPTIONS, dataset="made", split="val")


def test_run_of_refuses_changed_files(made):
    folder, runs, annotations, _ = made
    evaluate(runs[0].predictions, annotations, OPTIONS, dataset="made", split="val", out=folder / "good" / "eval.json")
    run, ground_truth = run_of(folder / "good" / "eval.json")
    assert (run, ground_truth) == (runs[0], annotations)
    copied = folder / "good" / "copy.jsonl"
    copied.write_text(runs[0].predictions.read_text())
    evaluate(copied, annotations, OPTIONS, dataset="made", split="val", out=folder / "good" / "eval.json")
    copied.write_text(copied.read_text() + "\n")
    with pytest.raises(DataError, match="has changed since the evaluation"):
        run_of(folder / "good" / "eval.json")


def test_runs_with_an_eval_json(made, tmp_path):
    _, runs, annotations, result = made
    paths = [tmp_path / run.name / "eval.json" for run in runs]
    for run, path in zip(runs, paths, strict=True):
        evaluate(run.predictions, annotations, OPTIONS, dataset="made", split="val", out=path)
    assert compare_evaluated(paths) == result
    _, other = generated(1, lvis=True, images=90).write(tmp_path)
    content = json.loads(paths[1].read_text())
    content["inputs"]["annotations"] = {"path": str(other), "sha256": sha256_file(other), "bytes": 1}
    paths[1].write_text(json.dumps(content))
    with pytest.raises(DataError, match="different annotations"):
        compare_evaluated(paths)


def test_page(made, tmp_path):
    folder, runs, annotations, result = made
    compare(runs, annotations, OPTIONS, dataset="made", split="val", out=folder / "compare.json")
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n')
    write_comparison(tmp_path / "page.html", compare_json=folder / "compare.json", train_logs={"good": log})
    page = (tmp_path / "page.html").read_text()
    difference = result["lvis"]["differences"]["bad"]["metrics"]["AP50"]["difference"]
    assert f"{difference:+.3f}" in page and "bad against good" in page and 'id="training"' in page
    with pytest.raises(DataError, match="none of the runs"):
        write_comparison(tmp_path / "no.html", compare_json=folder / "compare.json", train_logs={"other": log})


def test_intervals_and_p_values_of_known_samples():
    replicates = np.arange(101) / 100
    assert interval(0.5, replicates) == pytest.approx([0.025, 0.975])
    assert interval(0.4, replicates) == pytest.approx([0.0, 0.775])  # reflected and cut at the limit
    assert interval(0.0, -replicates, (-1.0, 1.0)) == pytest.approx([0.0, 0.975])
    assert interval(0.5, np.array([np.nan])) is None and interval(float("nan"), replicates) is None
    assert two_sided_p(1.0, np.array([0.0, 0.5, 1.0, 2.5])) == 0.5
    assert two_sided_p(1.0, np.ones(100)) == 0.01
    assert two_sided_p(-1.0, -np.ones(100)) == 0.01
    assert two_sided_p(0.0, np.zeros(5)) == 1.0


@pytest.mark.slow
def test_intervals_hold_the_value_of_the_population(tmp_path):
    case = generated(7, lvis=True, images=3000, noise=3)
    rng = np.random.default_rng(0)
    for image_id, found in case.detections.items():
        case.detections[image_id] = [(desc, box, float(rng.uniform())) for desc, box, _ in found]
    predictions, annotations = case.write(tmp_path)
    ground_truth = ground_truth_file.load(annotations)
    found, _ = columns.collect(foreign.read(predictions, ground_truth), ground_truth, LabelMap(ground_truth.categories))
    whole = Protocol("coco", ground_truth, found, 100).statistic(np.ones(3000, dtype=int))
    held = dict.fromkeys(whole, 0)
    for seed in range(60):
        keep = np.zeros(3000, dtype=bool)
        keep[rng.choice(3000, 100, replace=False)] = True
        rows = found.take(keep[found.image]).renumbered(np.cumsum(keep) - 1)
        part = Protocol("coco", ground_truth.restricted(keep), rows, 100)
        values, drawn = part.statistic(np.ones(100, dtype=int)), replicates(part.statistic, 100, 50, seed)
        for name in held:
            low, high = interval(values[name], drawn[name])
            held[name] += low <= whole[name] <= high
    # 95 % of 60 are 57; 50 replicates and 100 images make it a little less
    assert min(held.values()) >= 49, held
