"""Rows of published tables: values, and the reasons for which a run is not comparable."""

from __future__ import annotations

import msgspec
import pytest
from evaluation_cases import generated

from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions
from coordexp.evaluation.published_figures import PUBLISHED_FIGURES
from coordexp.evaluation.table_protocols import BENCHMARKS, TABLE_PROTOCOLS, Benchmark, TableProtocol, table_row


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    predictions, annotations = generated(0, lvis=True, noise=1).write(tmp_path_factory.mktemp("run"))
    return evaluate(predictions, annotations, EvaluateOptions(bootstrap=0), dataset="generated", split="val")


def with_prompt(result, prompt: str):
    images = result.counts.images
    return msgspec.structs.replace(
        result, counts=msgspec.structs.replace(result.counts, prompt_protocols={prompt: images})
    )


def test_every_published_figure_belongs_to_a_table_and_names_its_source():
    for figure in PUBLISHED_FIGURES:
        assert figure.values.keys() <= TABLE_PROTOCOLS[figure.protocol].columns.keys()
        assert figure.source and figure.date and all(0 < value < 100 for value in figure.values.values())
    assert len({(figure.model, figure.protocol) for figure in PUBLISHED_FIGURES}) == len(PUBLISHED_FIGURES)
    assert {p.benchmark for p in TABLE_PROTOCOLS.values()} <= {None, *BENCHMARKS}


def test_row_has_the_values_of_the_protocol_in_percent(result):
    row = table_row(result, TABLE_PROTOCOLS["rex_omni"])
    assert row.values["F1@0.5"] == pytest.approx(100 * result.coco.f1.published.f1.iou_50)
    fixed = table_row(result, TABLE_PROTOCOLS["lvis_minival"])
    assert fixed.values["APr"] == pytest.approx(100 * result.lvis.fixed_ap.metrics["APr"])
    pointing = table_row(result, TABLE_PROTOCOLS["open"]).values["pointing"]
    assert pointing == pytest.approx(100 * result.coco.metrics["pointing_accuracy"])


def test_a_run_on_other_images_or_with_another_prompt_is_not_comparable(result):
    assert table_row(result, TABLE_PROTOCOLS["rex_omni"]).reasons == [
        "6 categories of generated, COCO val2017 has 80",
        "30 images of generated, COCO val2017 has 5,000",
        "predicted with protocol open; the table uses image_categories",
    ]


def test_a_run_of_the_same_protocol_is_comparable(result, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "coco", Benchmark("generated", 30, 6))
    assert table_row(with_prompt(result, "image_categories"), TABLE_PROTOCOLS["rex_omni"]).reasons == []
    assert table_row(result, TABLE_PROTOCOLS["open"]).reasons == []


def test_an_unknown_prompt_is_not_assumed_to_be_the_right_one(result):
    predictions = msgspec.structs.replace(result.inputs.predictions, format="rex-omni")
    inputs = msgspec.structs.replace(result.inputs, predictions=predictions)
    other = msgspec.structs.replace(with_prompt(result, "rex-omni"), inputs=inputs)
    reasons = table_row(other, TABLE_PROTOCOLS["coco_categories_in_image"]).reasons
    assert reasons == ["the prompt is not known; the table uses image_categories"]


def test_a_protocol_that_was_not_evaluated_has_no_values(result):
    without = msgspec.structs.replace(result, lvis=None, not_computed={"lvis": "no federated lists"})
    protocol: TableProtocol = TABLE_PROTOCOLS["lvis_minival"]
    row = table_row(without, protocol)
    assert set(row.values.values()) == {None} and row.reasons == ["no federated lists"]
