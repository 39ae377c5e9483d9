"""A sweep as a target: trials are ordinary runs, share training runs where they can, and end in one summary."""

import pytest
from running import SMALL, Workflow

from coordexp.runtime.config_io import merge
from coordexp.runtime.io import read_json, read_jsonl

STEPS = {"training": {"max_steps": 2, "per_device_train_batch_size": 4, "save_steps": 2, "logging_steps": 1}}
CHANGES = {
    "runs": {
        "text_base": {
            "records_from": "shapes_9",
            "recipe": {"extends": "config/ablation/base.yaml", **STEPS},
            "vocab": {"init": "none"},
            "train": {"processes": 1},
        }
    },
    "models": {"text_base": {"source": "run", "run": "text_base"}},
    "sweeps": {
        "objectives": {
            "run": "shapes_9",
            "seeds": [1],
            "seed_weights": True,
            "axes": {
                "objective": {
                    "text": {"recipe": {"extends": "config/ablation/text.yaml", **STEPS}},
                    "sets": {"recipe": {"extends": "config/ablation/sets.yaml", **STEPS}},
                },
                "predict.decode": ["argmax", "expectation"],
                "start": {"base": {"model": "text_base", "train": {"processes": 1}}},
            },
            "exclude": [{"objective": "text", "predict.decode": "expectation"}],
        }
    },
}
FOLDER = "results/sweeps/objectives"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Workflow:
    workflow = Workflow(tmp_path_factory.mktemp("sweep"), merge(SMALL, CHANGES))
    workflow.run(f"{FOLDER}/summary.json")
    return workflow


@pytest.mark.e2e
def test_every_combination_has_its_numbers(sweep):
    summary = read_json(sweep.path(f"{FOLDER}/summary.json"))
    rows = {row["variant"]: row["numbers"] for row in summary["rows"]}
    assert set(rows) == {"text_argmax_base", "sets_argmax_base", "sets_expectation_base"}
    assert all(numbers["cpu_seconds_per_step"]["mean"] > 0 for numbers in rows.values())
    assert summary["baseline"] == "text_argmax_base"
    assert {row["variant"] for row in summary["differences"]} == {"sets_argmax_base", "sets_expectation_base"}


@pytest.mark.e2e
def test_trials_that_differ_in_prediction_alone_share_a_training(sweep):
    assert sweep.path(f"{FOLDER}/sets_argmax_base-seed1/train/log.jsonl").is_file()
    assert not sweep.path(f"{FOLDER}/sets_expectation_base-seed1/train").exists()
    assert sweep.path(f"{FOLDER}/sets_expectation_base-seed1/eval.json").is_file()


@pytest.mark.e2e
def test_the_text_base_is_trained_without_coordinate_tokens(sweep):
    base = sweep.path("results/text_base-seed1")
    rows = [row for row in read_jsonl(base / "train/log.jsonl") if "loss" in row]
    assert rows and all(row.get("ce", 0) == 0 for row in rows)
    assert "<|coord_0|>" not in (base / "train/adapter/tokenizer.json").read_text()
    assert sweep.path("results/models/text_base-seed1-coordexp/coord_tokens.json").is_file()


@pytest.mark.e2e
def test_the_page_needs_no_network(sweep):
    page = sweep.path(f"{FOLDER}/summary.html").read_text()
    assert "<svg" in page and 'src="http' not in page and 'href="http' not in page
