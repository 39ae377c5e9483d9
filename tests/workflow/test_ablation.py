"""The ablation as a target: a base in text integers, arms from it, numbers paired by seed."""

import pytest
from running import SMALL, Workflow

from coordexp.runtime.config_io import merge
from coordexp.runtime.io import read_json, read_jsonl

STEPS = {"training": {"max_steps": 2, "per_device_train_batch_size": 4, "save_steps": 2, "logging_steps": 1}}
CHANGES = {
    "ablation": {
        "base": STEPS,
        "arms": ["text", "sets"],
        "seeds": [1],
        "decode": ["argmax", "expectation"],
        "starts": ["base"],
        "overrides": {"base": STEPS},
    }
}
FOLDER = "results/ablation/shapes_9"


@pytest.fixture(scope="module")
def ablation(tmp_path_factory) -> Workflow:
    workflow = Workflow(tmp_path_factory.mktemp("ablation"), merge(SMALL, CHANGES))
    workflow.run(f"{FOLDER}/summary.json")
    return workflow


@pytest.mark.e2e
def test_every_cell_of_the_grid_has_its_numbers(ablation):
    summary = read_json(ablation.path(f"{FOLDER}/summary.json"))
    found = {(row["start"], row["arm"], row["decode"]) for row in summary["rows"]}
    arms = {("text", "argmax"), ("sets", "argmax"), ("sets", "expectation")}
    assert found == {("base", *arm) for arm in arms}
    assert all(row["numbers"]["cpu_seconds_per_step"]["mean"] > 0 for row in summary["rows"])
    pairs = {(d["arm"], d["minus"], d["decode"]) for d in summary["differences"]}
    assert pairs == {("sets", "text", "argmax"), ("sets", "text", "expectation")}


@pytest.mark.e2e
def test_the_base_never_saw_a_coordinate_token(ablation):
    rows = [row for row in read_jsonl(ablation.path("results/ablation/base-1/train/log.jsonl")) if "loss" in row]
    assert rows and all(row.get("ce", 0) == 0 for row in rows)
    assert "<|coord_0|>" not in ablation.path("results/ablation/base-1/train/adapter/tokenizer.json").read_text()
    assert ablation.path("results/ablation/models/base-1-coordexp/coord_tokens.json").is_file()


@pytest.mark.e2e
def test_the_page_asks_for_nothing(ablation):
    page = ablation.path(f"{FOLDER}/summary.html").read_text()
    assert "<svg" in page and "http" not in page.replace("http-equiv", "")
