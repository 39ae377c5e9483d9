"""Inspection of a folder: counts, sizes, and the facts that look wrong."""

import json

import pytest
from dataset_cases import draw_image, write_dataset

from coordexp.datasets.inspect_folder import choices, inspect, suspicious
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
    assert suspicious([facts]) == ["train: 2 categories have fewer than 10 boxes: baseball_bat (6), cat (6)"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda c: c["annotations"][0].update(bbox=[150, 0, 30, 30]), "train: 1 boxes reach outside their image"),
        (lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 30]), "train: 1 boxes have no area"),
        (lambda c: c["images"][0].update(file_name="away.jpg"), "train: 1 images are missing, away.jpg for example"),
        (lambda c: c["annotations"][0].update(bbox="x"), "train: 1 entries cannot be used, 1: Expected"),
        (lambda c: c["categories"].append({"id": 9, "name": "dog"}), "train: 1 categories have no boxes, dog"),
        (
            lambda c: [a.update(bbox=[0.1, 0.2, 0.3, 0.4]) for a in c["annotations"]],
            "train: 12 of 12 boxes are within 0..1: normalised, not in pixels?",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[0.1, 0.2, 0.3, 0.4]),
            "train: 1 of 12 boxes are within 0..1: normalised, not in pixels?",
        ),
        (lambda c: c.pop("images"), "train: cannot be read: "),
    ],
)
def test_suspicious_facts_are_named(entry, tmp_path, change, line):
    changed(tmp_path, change)
    assert any(found.startswith(line) for found in suspicious(inspect("mine", entry)))


def test_an_image_that_cannot_be_opened_is_named(entry, tmp_path):
    (tmp_path / "images/0002.jpg").write_bytes(b"no image")
    assert "train: 1 images cannot be opened, 0002.jpg for example" in suspicious(inspect("mine", entry))


def test_images_with_the_same_bytes_are_found_within_and_across_splits(entry, tmp_path):
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 160, "height": 120} for n in (11, 12)]
    boxes = [{"id": n, "image_id": n, "category_id": 7, "bbox": [0, 0, 9, 9]} for n in (11, 12)]
    content = json.loads((tmp_path / "annotations.json").read_text())
    (tmp_path / "test.json").write_text(json.dumps({**content, "images": images, "annotations": boxes}))
    draw_image(160, 120, seed=99).save(tmp_path / "images/12.jpg")
    (tmp_path / "images/11.jpg").write_bytes((tmp_path / "images/0003.jpg").read_bytes())
    (tmp_path / "images/0005.jpg").write_bytes((tmp_path / "images/0004.jpg").read_bytes())
    entry["annotations"]["test"], entry["image_dirs"]["test"] = "test.json", ["images"]
    lines = suspicious(inspect("mine", entry, workers=2))
    assert "train: 1 images are copies of others in this split" in lines
    assert "train and test: 1 images are the same, 0003.jpg and 11.jpg for example" in lines


def test_categories_that_training_does_not_have_are_named(entry, tmp_path):
    content = json.loads((tmp_path / "annotations.json").read_text())
    (tmp_path / "val.json").write_text(json.dumps(content))
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 3]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    entry["annotations"]["val"], entry["image_dirs"]["val"] = "val.json", ["images"]
    assert "val: 1 categories have boxes here but none in train, cat for example" in suspicious(inspect("mine", entry))


def test_an_unknown_format_and_an_empty_folder_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="unknown dataset format 'cocoo', did you mean 'coco'"):
        choices(tmp_path, "cocoo")
    with pytest.raises(ConfigError, match="the folder is empty"):
        choices(tmp_path)
