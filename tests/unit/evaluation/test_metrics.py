"""The metric registry: built-in metrics, a metric from a plug-in file, and invalid metrics."""

from __future__ import annotations

import math
import sys

import pytest
from evaluation_cases import generated
from report_cases import report_inputs

from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.metrics import METRICS
from coordexp.evaluation.options import EvaluateOptions
from coordexp.reporting.report import headline, write_report
from coordexp.runtime.errors import ConfigError
from coordexp.runtime.plugins import load_plugins

PLUGIN = '''
from coordexp.evaluation.metrics import METRICS


@METRICS.register("mean_score")
def mean_score(protocol):
    """Mean score of the <em>correct</em> detections."""
    matches = protocol.matches
    return matches.score[matches.matched[:, 0]].mean()
'''


@pytest.fixture(autouse=True)
def unchanged_registry(monkeypatch):
    monkeypatch.setattr(METRICS, "_items", dict(METRICS._items))


def run(tmp_path):
    predictions, annotations = generated(0, lvis=True).write(tmp_path)
    options = EvaluateOptions(bootstrap=0)
    return evaluate(predictions, annotations, options, dataset="generated", split="val").coco


def test_built_in_metrics(tmp_path):
    block = run(tmp_path)
    expected = {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"}
    expected |= {"F1_50_micro", "F1_50_macro", "F1_micro", "precision_50", "recall_50", "pointing_accuracy"}
    expected |= {"absent_false_positives", "presence_mcc"}
    assert block.metrics.keys() == block.metric_descriptions.keys() == expected
    assert block.metrics["F1_50_micro"] == block.f1.all_predictions.micro.iou_50
    assert all(block.metric_descriptions.values())


def test_metric_of_a_plugin_appears_in_eval_json_summary_and_report(tmp_path, monkeypatch):
    plugin = tmp_path / "my_metric.py"
    plugin.write_text(PLUGIN)
    load_plugins([plugin])
    monkeypatch.delitem(sys.modules, "coordexp_plugin_my_metric")
    files = report_inputs(generated(0, lvis=True), tmp_path / "run")
    write_report(tmp_path / "report.html", **files)
    block = run(tmp_path / "again")
    assert 0 < block.metrics["mean_score"] < 1
    assert block.metric_descriptions["mean_score"] == "Mean score of the <em>correct</em> detections."
    rows = [line.split() for line in headline(files["eval_json"]).splitlines()]
    assert ["mean_score", f"{block.metrics['mean_score']:.3f}"] in [row[:2] for row in rows]
    page = (tmp_path / "report.html").read_text()
    assert f"<td>mean_score</td><td>{block.metrics['mean_score']:.3f}</td>" in page
    assert "Mean score of the &lt;em&gt;correct&lt;/em&gt; detections." in page


def test_dict_of_values_contributes_every_key(tmp_path):
    @METRICS.register("boxes")
    def boxes(protocol):
        """Boxes per image and in total."""
        return {"boxes": len(protocol.detections), "boxes_undefined": math.nan, "boxes_none": None}

    block = run(tmp_path)
    assert (block.metrics["boxes_undefined"], block.metrics["boxes_none"]) == (None, None)
    assert block.metrics["boxes"] > 0 and isinstance(block.metrics["boxes"], float)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("high", "metric 'mine': 'mine'"),
        ([1], "expected 'a number, None, or a dict"),
        (math.inf, "infinite"),
        ({"AP": 1.0}, "'AP' is already the name of another metric"),
    ],
)
def test_invalid_values_are_refused(tmp_path, value, message):
    METRICS.register("mine")(lambda protocol: value)
    with pytest.raises(ConfigError, match=message):
        run(tmp_path)


def test_two_metrics_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="a metric named 'ap' is already registered"):
        METRICS.register("ap")(lambda protocol: 0.0)
