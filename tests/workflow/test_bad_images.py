"""An unreadable evaluation image, and one without objects: which are evaluated, by real Snakemake."""

import json

import pytest
from running import SMALL, Workflow, answer

from coordexp.datasets.download import provide
from coordexp.runtime.config_io import merge
from coordexp.runtime.io import read_json

RUN = "results/own_9"
RULES = ("download", "convert_resize", "gather", "evaluate")


@pytest.fixture
def workflow(tmp_path):
    """The user's own folder: of its six val images the first is damaged and the second has no objects."""
    root = tmp_path / "own"
    source = provide("shapes", SMALL["datasets"]["shapes"], "val", root, root / "val.source.json")
    content = read_json(root / source.annotations)
    first, second = (image["id"] for image in content["images"][:2])
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] != second]
    (root / source.annotations).write_text(json.dumps(content))
    next((root / source.image_dirs[0]).rglob(content["images"][0]["file_name"])).write_bytes(b"no image")
    entry = {"format": "lvis", "root": str(root), "annotations": {"val": source.annotations}}
    changes = {
        "data": {"on_bad": "skip", "keep_empty": False},
        "datasets": {"own": {**entry, "image_dirs": {"val": source.image_dirs}}},
        "runs": {"own": {"model": "tiny", "recipe": "config/train/full_tiny.yaml"}},
    }
    (tmp_path / "work").mkdir()
    made = Workflow(tmp_path / "work", merge(SMALL, changes))
    made.run("--allowed-rules", *RULES, "--", f"{RUN}/data/val.jsonl")
    objects = [row for row in content["annotations"] if row["image_id"] == first]
    return made, len(content["images"]), len(objects)


def test_unreadable_images_are_not_evaluated_and_empty_ones_are(workflow):
    made, listed, objects = workflow
    answer(made.folder, f"{RUN}/data/val.jsonl", f"{RUN}/eval/shards/1-of-1.jsonl", 1)
    made.run("--allowed-rules", *RULES, "--", f"{RUN}/eval.json")
    counts = read_json(made.path(f"{RUN}/eval.json"))["counts"]
    assert (counts["images"], counts["images_annotated"]) == (listed - 1, listed)
    assert (counts["images_without_record"], counts["objects_without_record"]) == (1, objects)
    assert counts["images_without_objects"] == 1
    assert counts["subset_note"] == f"1 of {listed} annotated images have no record and are not scored"
