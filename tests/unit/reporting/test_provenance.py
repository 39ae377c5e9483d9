"""Provenance: the code of every stage, and what the manifest holds."""

from __future__ import annotations

import re

import pytest
from evaluation_cases import generated

import coordexp
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions
from coordexp.records import software_file
from coordexp.reporting.provenance import provenance, selection, stage_codes
from coordexp.runtime.code_identity import code_identity
from coordexp.runtime.io import sha256_file, write_json
from coordexp.runtime.software import revision

LOSS = "coordexp.losses.criterion"


def trained_with(version, code):
    """Part of a training manifest: the code that trained."""
    return {"code": {"coordexp": version, "code": code, "modules": [LOSS]}}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    predictions, annotations = generated(0, lvis=False, images=3).write(tmp_path_factory.mktemp("run"))
    return evaluate(predictions, annotations, EvaluateOptions(bootstrap=0), dataset="generated", split="val")


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ({}, (None, None, None)),
        (trained_with("0.0.9", "0" * 16), ("0.0.9", "0" * 16, False)),
        (trained_with("0.1.0", code_identity(LOSS)), ("0.1.0", code_identity(LOSS), True)),
    ],
)
def test_code_of_every_stage(result, manifest, expected):
    training, evaluation, report = stage_codes(manifest, result)
    assert training == ("training", *expected)
    assert evaluation == ("evaluation", coordexp.__version__, result.code, True)
    assert (report.stage, report.current) == ("report", True)


def test_predictions_are_by_the_processes_that_made_them(tmp_path):
    predictions, annotations = generated(0, lvis=False, images=3).write(tmp_path)
    current = {"software": {"coordexp": "0.0.8"}, "revision": {"commit": "a" * 40, "changed_files": 0}}
    own = {"code": code_identity("coordexp.inference.predict"), "score_options": {"samples": 4}}
    made_by = [current | {"code": "0" * 16}, current | own]
    write_json(software_file(predictions), made_by)
    result = evaluate(predictions, annotations, EvaluateOptions(bootstrap=0), dataset="generated", split="val")
    stages = stage_codes({}, result)
    assert [stage.stage for stage in stages] == ["training", "prediction", "prediction", "evaluation", "report"]
    assert [(stage.version, stage.current) for stage in stages[1:3]] == [("0.0.8", False), ("0.0.8", True)]
    assert result.inputs.predictions.made_by[1].score_options == {"samples": 4}
    assert result.software["numpy"] and result.revision.keys() == {"commit", "changed_files"}


def test_manifest_and_calibration_are_included(tmp_path):
    write_json(tmp_path / "train_manifest.json", {"step": 3})
    write_json(tmp_path / "calibration.json", {"method": "isotonic"})
    found = provenance(tmp_path / "train_manifest.json", tmp_path / "calibration.json")
    assert found["training"] == {"step": 3} and found["calibration"] == {"method": "isotonic"}
    assert found["training_manifest_sha256"] == sha256_file(tmp_path / "train_manifest.json")
    assert "calibration" not in provenance(tmp_path / "train_manifest.json")


def test_no_revision_outside_a_repository(tmp_path):
    assert revision(tmp_path) == {"commit": None, "changed_files": None}


def trained(best, val_jsonl="data/val.coord.jsonl"):
    return {"step": 1200, "best": best, "recipe": {"custom": {"val_jsonl": val_jsonl}}}


BEST = {"metric": "AP", "value": 0.5, "last_step": 3000}


@pytest.mark.parametrize(
    ("training", "reported", "expected"),
    [
        ({}, "val", None),
        (
            trained(None),
            "val",
            "step 1,200, the last one .*; no checkpoint was selected. The results are on val",
        ),
        (trained(BEST), "test", "step 1,200 of 3,000, selected by AP on val. The results are on test."),
        (trained(BEST) | {"recipe": {"custom": {}}}, None, r"selected by AP\."),
        (
            trained(BEST),
            "val",
            "on val. The results are on the same split and therefore optimistic: .*predict.split: test",
        ),
        (trained(BEST, "a/val_tiny.coord.jsonl"), "val", "on val_tiny. The results are on the same split"),
    ],
)
def test_which_split_selected_the_checkpoint_and_which_is_reported(training, reported, expected):
    text = selection(training, reported)
    assert text is None if expected is None else re.search(expected, text)
