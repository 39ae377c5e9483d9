"""The comparison page."""

from __future__ import annotations

import pytest
from evaluation_cases import generated

from coordexp.evaluation.compare import Run, compare
from coordexp.evaluation.options import EvaluateOptions
from coordexp.reporting.comparison import write_comparison
from coordexp.runtime.errors import DataError


@pytest.fixture
def compared(tmp_path):
    case = generated(0, lvis=True, noise=2)
    good, annotations = case.write(tmp_path / "good")
    case.detections = {image_id: found[::2] for image_id, found in case.detections.items()}
    bad, _ = case.write(tmp_path / "bad")
    out, runs = tmp_path / "compare.json", [Run("good", good), Run("bad", bad)]
    return out, compare(runs, annotations, EvaluateOptions(bootstrap=9), dataset="generated", split="val", out=out)


def test_page_shows_the_differences_and_the_training_loss(compared, tmp_path):
    compare_json, result = compared
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n')
    write_comparison(tmp_path / "page.html", compare_json=compare_json, train_logs={"good": log})
    page = (tmp_path / "page.html").read_text()
    difference = result.lvis.differences["bad"].metrics["AP50"].difference
    assert f"{difference:+.3f}" in page and "bad vs. good" in page and 'id="training"' in page


def test_train_log_of_an_unknown_run_is_refused(compared, tmp_path):
    log = tmp_path / "log.jsonl"
    with pytest.raises(DataError, match="unknown run 'other'"):
        write_comparison(tmp_path / "no.html", compare_json=compared[0], train_logs={"other": log})
