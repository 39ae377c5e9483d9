"""Splits with names of their own, a derived val, and a report on test, by real Snakemake runs without a training."""

import shutil

import pytest
from running import SMALL, Workflow, answer

from coordexp.datasets.download import provide
from coordexp.records import read_records
from coordexp.runtime.config_io import merge
from coordexp.runtime.io import read_json

RUN, TEST = "results/own_9", "results/own_test"
AFTER_PREDICT = ("gather", "evaluate")


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    """A COCO dataset with the splits `trainval` and `test-dev`; `dev` is derived from the first."""
    top = tmp_path_factory.mktemp("splits")
    for split in ("train", "val"):
        source = provide("shapes", SMALL["datasets"]["shapes"], split, top / "own", top / f"{split}.source.json")
        shutil.copy(top / source.annotations, top / "own" / f"{split}.json")
    entry = {
        "format": "coco",
        "root": str(top / "own"),
        "annotations": {"trainval": "train.json", "test-dev": "val.json"},
        "image_dirs": {"trainval": ["images/train"], "test-dev": ["images/val"]},
        "derived_splits": {"dev": {"source": "trainval", "fraction": 0.25}},
    }
    roles = {"train": "trainval", "val": "dev", "test": "test-dev"}
    changes = {
        "datasets": {"own": entry},
        "runs": {
            "own": {"model": "tiny", "recipe": "config/train/full_tiny.yaml", "data": {"roles": roles}},
            "own_test": {"checkpoint_from": "own_9", "predict": {"split": "test"}},
        },
        "data": {"shards": 2},
    }
    (top / "work").mkdir()
    return Workflow(top / "work", merge(SMALL, changes))


def ids(path):
    return {record.metadata.image_id for record in read_records(path, "pixel")}


def test_the_checkpoint_is_chosen_on_val_and_test_is_reported(workflow):
    shown = workflow.run("-n", "-p", f"{TEST}/eval.json").stdout
    train = next(line for line in shown.splitlines() if "workflow_scripts.train " in line)
    assert f"--train {RUN}/data/trainval.coord.jsonl" in train and f"--val {RUN}/data/dev_tiny.coord.jsonl" in train
    predict = next(line for line in shown.splitlines() if "workflow_scripts.predict " in line)
    assert f"--records {RUN}/data/test-dev.jsonl" in predict and "own/test-dev.source.json" in predict
    assert "test-dev" not in train


def test_every_split_is_converted_and_test_is_evaluated(workflow):
    records = [f"{RUN}/data/{name}.jsonl" for name in ("trainval", "dev", "test-dev", "dev_tiny.coord")]
    workflow.run(*records)
    trainval, dev, test = (ids(workflow.path(path)) for path in records[:3])
    assert (len(trainval), len(dev), len(test)) == (18, 6, 6) and not trainval & dev
    assert "18 finished earlier" in workflow.path(f"{RUN}/logs/convert_resize.trainval.log").read_text()
    assert not workflow.path(f"{RUN}/data/shards/trainval/1-of-2").exists()
    answer(workflow.folder, records[2], f"{TEST}/eval/shards/1-of-1.jsonl", 1)
    answer(workflow.folder, records[1], f"{RUN}/eval/shards/1-of-1.jsonl", 2)
    done = workflow.run("--allowed-rules", *AFTER_PREDICT, "--", f"{TEST}/eval.json", f"{RUN}/eval.json")
    assert "warning: own_9: each coordinate token occurs" in done.stderr
    numbers, of_val = (read_json(workflow.path(f"{run}/eval.json")) for run in (TEST, RUN))
    assert (numbers["dataset"], numbers["split"], numbers["counts"]["images"]) == ("own", "test-dev", 6)
    assert of_val["split"] == "dev"


def test_another_fraction_reruns_the_splits_that_share_images(workflow):
    workflow.change(merge(workflow.changes, {"datasets": {"own": {"derived_splits": {"dev": {"fraction": 0.5}}}}}))
    targets = [f"{RUN}/data/{name}.jsonl" for name in ("trainval", "dev", "test-dev")]
    assert workflow.planned(*targets) == {"download": 2, "convert_shard": 4, "convert_resize": 2}
