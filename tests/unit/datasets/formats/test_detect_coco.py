"""Folders in COCO and LVIS format are recognised by their annotation files; other JSON files are not."""

import json

import pytest
from dataset_cases import CATEGORIES

from coordexp.datasets.folder_listing import FolderListing
from coordexp.datasets.formats import FORMATS


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def annotations(*names, boxes=True, **image):
    found = [{"id": n, "image_id": n, "category_id": 7, **({"bbox": [0, 0, 9, 9]} if boxes else {})} for n in (1, 2)]
    images = [{"id": n, "file_name": name, "width": 64, "height": 64, **image} for n, name in enumerate(names, 1)]
    return {"info": {}, "images": images, "annotations": found, "categories": CATEGORIES}


def detected(folder, name="coco"):
    return [proposal.options for proposal in FORMATS[name].detect(FolderListing(folder))]


@pytest.fixture
def coco2017(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / f"annotations/instances_{split}2017.json", annotations(f"{split}.jpg"))
        write(tmp_path / f"annotations/captions_{split}2017.json", annotations(f"{split}.jpg", boxes=False))
        (tmp_path / f"{split}2017").mkdir()
        (tmp_path / f"{split}2017/{split}.jpg").write_bytes(b"")
    write(tmp_path / "package.json", {"name": "other"})
    write(tmp_path / "list.json", [1, 2])
    (tmp_path / "broken.json").write_text('{"images": [')
    return tmp_path


def test_the_folders_of_coco_2017_are_recognised(coco2017):
    files = {split: f"annotations/instances_{split}2017.json" for split in ("train", "val")}
    folders = {"train": ["train2017"], "val": ["val2017"]}
    assert detected(coco2017) == [{"annotations": files, "image_dirs": folders}]
    assert detected(coco2017, "lvis") == []


def test_two_kinds_of_annotations_are_two_proposals(coco2017):
    for split in ("train", "val"):
        write(coco2017 / f"annotations/person_keypoints_{split}2017.json", annotations(f"{split}.jpg"))
    files = [options["annotations"]["train"] for options in detected(coco2017)]
    assert files == ["annotations/instances_train2017.json", "annotations/person_keypoints_train2017.json"]


def test_splits_in_folders_of_their_own_are_one_data_set(tmp_path):
    for folder in ("train", "valid", "test"):
        write(tmp_path / folder / "_annotations.coco.json", annotations("a.jpg"))
        (tmp_path / folder / "a.jpg").write_bytes(b"")
    [options] = detected(tmp_path)
    assert options["annotations"]["val"] == "valid/_annotations.coco.json"
    assert options["image_dirs"] == {"train": ["train"], "val": ["valid"], "test": ["test"]}


def test_lvis_is_recognised_by_its_lists_of_absent_categories(tmp_path):
    write(tmp_path / "lvis_v1_train.json", annotations("a.jpg", neg_category_ids=[3]))
    (tmp_path / "a.jpg").write_bytes(b"")
    assert detected(tmp_path) == []
    assert detected(tmp_path, "lvis") == [
        {"annotations": {"train": "lvis_v1_train.json"}, "image_dirs": {"train": ["."]}}
    ]
