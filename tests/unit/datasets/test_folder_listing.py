"""The listing of a folder: splits in names, and the folders that hold the images of an annotation file."""

import pytest

from coordexp.datasets.folder_listing import FolderListing, split_of, without_split
from coordexp.runtime.errors import ConfigError


def listed(tmp_path, *files):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    return FolderListing(tmp_path)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("annotations/instances_train2017.json", "train"),
        ("valid/_annotations.coco.json", "val"),
        ("labels/test/0001.txt", "test"),
        ("VisDrone2019-DET-val", "val"),
        ("trainval.json", "train"),
        ("constraint.json", None),
        ("training/val.json", "val"),
    ],
)
def test_a_word_in_a_path_names_the_split(path, split):
    assert split_of(path) == split


def test_files_of_one_kind_differ_by_their_split_only():
    assert without_split("a/instances_train2017.json") == without_split("a/instances_val2017.json")
    assert without_split("a/instances_train2017.json") != without_split("a/captions_train2017.json")


def test_hidden_files_and_folders_are_left_out(tmp_path):
    assert listed(tmp_path, "a.jpg", ".b.jpg", ".cache/c.jpg", "d/e.PNG").images == ["a.jpg", "d/e.PNG"]


def test_the_folder_of_images_is_the_one_of_the_same_split(tmp_path):
    listing = listed(tmp_path, "images/train/1.jpg", "images/val/1.jpg", "images/val/2.jpg", "3.jpg")
    assert listing.folders_of_images(["1.jpg"], "labels_val.json") == ["images/val"]
    assert listing.folders_of_images(["1.jpg"], "labels_train.json") == ["images/train"]
    assert listing.folders_of_images(["val/1.jpg", "val/2.jpg"]) == ["images"]
    assert listing.folders_of_images(["3.jpg", "4.jpg"]) == ["."]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="not a folder"):
        FolderListing(tmp_path / "nothing")
