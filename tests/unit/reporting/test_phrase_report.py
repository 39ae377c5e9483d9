"""The report of a run that answers phrases: metrics, counts by number of targets, and examples with their outcome."""

import re

import pytest
from evaluation_cases import PhraseCase, annotation, categories, image
from report_cases import report_inputs

from coordexp.evaluation.results import load_eval
from coordexp.reporting.report import write_report


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    asked = {"the left <b>": [1], "both": [1, 2], "a cow": [], "the right": [2]}
    listed = [{"text": text, "annotation_ids": ids} for text, ids in asked.items()]
    case = PhraseCase([image(1) | {"phrases": listed}], [], categories(1))
    case.annotations = [annotation(1, 1, [10, 10, 100, 100]), annotation(2, 1, [300, 10, 100, 100])]
    case.detections = {1: [("both", [10, 10, 110, 110], 0.9), ("both", [300, 10, 400, 110], 0.8)]}
    case.detections[1] += [("a cow", [0, 0, 50, 50], 0.5), ("the right", [10, 10, 110, 110], 0.5)]
    phrases = [{"text": text, "objects": [i - 1 for i in ids]} for text, ids in asked.items()]
    files = report_inputs(case, folder, phrases={1: phrases})
    write_report(folder / "report.html", **files)
    return (folder / "report.html").read_text(), load_eval(folder / "eval.json").phrases


def test_metrics_and_counts_on_the_page_are_those_of_eval_json(page):
    text, block = page
    for name, value in block.metrics.items():
        shown = "–" if value is None else f"{value:.3f}"
        assert f"<tr><td>{name}</td><td>{shown}</td>" in text
    assert (
        "<tr><td>several</td><td>1</td><td>2</td><td>2</td><td>2</td><td>0</td><td>0</td><td>1</td><td>0</td></tr>"
        in text
    )
    assert f"<tr><td>largest object</td><td>{block.baselines['largest_object']:.3f}</td></tr>" in text


def test_examples_show_targets_and_answers_with_their_outcome(page):
    text, _ = page
    figures = dict(re.findall(r"alt=\"“(.+?)”: (.+?)\"", text))
    assert figures["both"] == "2 correct, 0 wrong, 0 of 2 missed"
    assert figures["a cow"] == "0 correct, 1 wrong, 0 of 0 missed"
    assert figures["the right"] == "0 correct, 1 wrong, 1 of 1 missed"
    assert figures["the left &lt;b&gt;"] == "0 correct, 0 wrong, 1 of 1 missed" and "<b>”" not in text
    assert text.index("Exact answers") < text.index("Other answers")


def test_page_is_self_contained(page):
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page[0])
