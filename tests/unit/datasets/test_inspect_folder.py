"""Inspection of a folder: counts, sizes, and the facts that look wrong."""

import json

import pytest
from dataset_cases import draw_image, write_dataset

from coordexp.datasets.inspect_folder import choices, inspect, possible_problems
from coordexp.runtime.errors import ConfigError


@pytest.fixture
def entry(tmp_path):
    write_dataset(tmp_path, format="coco")
    return {
        "format": "coco",
        "root": str(tmp_path),
        "annotations": {"train": "annotations.json"},
        "image_dirs": {"train": ["images"]},
    }


def changed(tmp_path, change):
    path = tmp_path / "annotations.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_every_image_box_and_category_is_counted(entry):
    [facts] = inspect("mine", entry)
    assert (len(facts.sizes), facts.boxes_of.tolist(), dict(facts.categories)) == (
        6,
        [2] * 6,
        {"baseball_bat": 6, "cat": 6},
    )
    assert sorted({round(size) for size in facts.box_sizes}) == [30, 49]
    assert {file.size for file in facts.files} == {(160, 120)}
    assert possible_problems([facts]) == ["train: categories with fewer than 10 boxes: 2, baseball_bat (6), cat (6)"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda c: c["annotations"][0].update(bbox=[150, 0, 30, 30]), "train: boxes that extend beyond the image: 1"),
        (lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 30]), "train: boxes without area: 1"),
        (lambda c: c["images"][0].update(file_name="away.jpg"), "train: missing images: 1, for example away.jpg"),
        (lambda c: c["annotations"][0].update(bbox="x"), "train: unusable entries: 1, for example 1: Expected"),
        (
            lambda c: c["categories"].append({"id": 9, "name": "dog"}),
            "train: categories without boxes: 1, for example dog",
        ),
        (
            lambda c: [a.update(bbox=[0.1, 0.2, 0.3, 0.4]) for a in c["annotations"]],
            "train: boxes within 0..1 (normalised instead of in pixels?): 12 of 12",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[0.1, 0.2, 0.3, 0.4]),
            "train: boxes within 0..1 (normalised instead of in pixels?): 1 of 12",
        ),
        (lambda c: c.pop("images"), "train: cannot be read: "),
    ],
)
def test_possible_problems_are_named(entry, tmp_path, change, line):
    changed(tmp_path, change)
    assert any(found.startswith(line) for found in possible_problems(inspect("mine", entry)))


def test_an_image_that_cannot_be_opened_is_named(entry, tmp_path):
    (tmp_path / "images/0002.jpg").write_bytes(b"no image")
    assert "train: images that cannot be opened: 1, for example 0002.jpg" in possible_problems(inspect("mine", entry))


def test_images_with_the_same_bytes_are_found_within_and_across_splits(entry, tmp_path):
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 160, "height": 120} for n in (11, 12)]
    boxes = [{"id": n, "image_id": n, "category_id": 7, "bbox": [0, 0, 9, 9]} for n in (11, 12)]
    content = json.loads((tmp_path / "annotations.json").read_text())
    (tmp_path / "test.json").write_text(json.dumps({**content, "images": images, "annotations": boxes}))
    draw_image(160, 120, seed=99).save(tmp_path / "images/12.jpg")
    (tmp_path / "images/11.jpg").write_bytes((tmp_path / "images/0003.jpg").read_bytes())
    (tmp_path / "images/0005.jpg").write_bytes((tmp_path / "images/0004.jpg").read_bytes())
    entry["annotations"]["test"], entry["image_dirs"]["test"] = "test.json", ["images"]
    lines = possible_problems(inspect("mine", entry, workers=2))
    assert "train: copies of other images of the split: 1" in lines
    assert "train and test: images in both: 1, for example 0003.jpg and 11.jpg" in lines


def test_categories_that_training_does_not_have_are_named(entry, tmp_path):
    content = json.loads((tmp_path / "annotations.json").read_text())
    (tmp_path / "val.json").write_text(json.dumps(content))
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 3]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    entry["annotations"]["val"], entry["image_dirs"]["val"] = "val.json", ["images"]
    assert "val: categories without boxes in train: 1, for example cat" in possible_problems(inspect("mine", entry))


def test_an_unknown_format_and_an_empty_folder_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="unknown dataset format 'cocoo', did you mean 'coco'"):
        choices(tmp_path, "cocoo")
    with pytest.raises(ConfigError, match="the folder is empty"):
        choices(tmp_path)
