"""Grounding from generated phrases to the report, with a few steps of training."""

import json

import pytest
from running import SMALL, Workflow

from coordexp.records import read_records

RUN = "results/refer_9"
CHANGES = {
    **SMALL,
    "datasets": {
        "refer": {
            "format": "shapes_refer",
            "splits": {"train": {"count": 12, "seed": 1}, "val": {"count": 3, "seed": 2}},
        }
    },
    "runs": {
        "refer": {
            "model": "tiny",
            "predict": {"protocol": "phrases"},
            "recipe": {
                "extends": "config/train/refer_tiny.yaml",
                "training": {"max_steps": 2, "per_device_train_batch_size": 2, "save_steps": 2, "logging_steps": 1},
                "custom": {
                    "detection_eval": {
                        "every": 2,
                        "images": 2,
                        "train_images": 1,
                        "image_use": 2,
                        "metric": "phrase_exact_50",
                        "max_new_tokens": 40,
                    }
                },
            },
        }
    },
    "predict": {"max_new_tokens": 40},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    workflow = Workflow(tmp_path_factory.mktemp("phrases"), CHANGES)
    workflow.run(f"{RUN}/report.html", f"{RUN}/eval.json")
    return workflow.folder


def test_every_phrase_is_asked_and_scored(folder):
    records = list(read_records(folder / RUN / "data/val.jsonl", "pixel"))
    phrases = [phrase for record in records for phrase in record.phrases]
    lines = [json.loads(line) for line in (folder / RUN / "eval/predictions.jsonl").read_text().splitlines()]
    asked = [len({phrase.text for phrase in record.phrases}) for record in records]
    assert [line["text"].count('{"objects":') for line in lines] == asked
    result = json.loads((folder / RUN / "eval.json").read_text())
    block = result["phrases"]
    assert block["phrases"] == len(phrases) > 0 and result["coco"] is None
    counts = {row["targets"]: row["phrases"] for row in block["by_targets"]}
    assert counts["none"] == sum(not phrase.objects for phrase in phrases)


def test_the_checkpoint_is_selected_by_a_metric_of_phrases(folder):
    manifest = json.loads((folder / RUN / "train/adapter/train_manifest.json").read_text())
    assert manifest["best"]["metric"] == "phrase_exact_50"


def test_the_report_has_the_metrics_of_phrases(folder):
    page = (folder / RUN / "report.html").read_text()
    assert "<td>accuracy_50</td>" in page and "<h3>By number of targets</h3>" in page
