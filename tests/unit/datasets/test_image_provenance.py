"""The folder of a split's images: kept, emptied or refused, by what made the images in it."""

import os

import pytest

from coordexp.datasets.image_provenance import MARKER, prepare_images_dir, provenance_of_records, read_provenance
from coordexp.runtime.errors import DataError

SPLIT = {"dataset": "pets", "split": "train"}
MADE_FROM = {"image_dirs": ["/data"], "factor": 32}


def test_images_made_alike_are_kept_and_others_removed(tmp_path):
    folder = prepare_images_dir(tmp_path / "images", SPLIT, MADE_FROM)
    (folder / "a.jpg").touch()
    assert prepare_images_dir(folder, SPLIT, MADE_FROM) == folder and (folder / "a.jpg").exists()
    prepare_images_dir(folder, SPLIT, MADE_FROM | {"factor": 28})
    assert not (folder / "a.jpg").exists()
    assert read_provenance(folder) == SPLIT | {"factor": 28}


def test_a_folder_of_something_else_is_refused_and_unchanged(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.txt").touch()
    with pytest.raises(DataError, match="not created by CoordExp"):
        prepare_images_dir(tmp_path / "own", SPLIT, MADE_FROM)
    folder = prepare_images_dir(tmp_path / "images", SPLIT, MADE_FROM)
    with pytest.raises(DataError, match="belongs to another split"):
        prepare_images_dir(folder, SPLIT | {"split": "val"}, MADE_FROM)
    assert (tmp_path / "own" / "a.txt").exists() and read_provenance(folder)["split"] == "train"


def test_a_kill_before_the_marker_exists_leaves_a_folder_that_is_accepted(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: os._exit(1))
        child = os.fork()
        if not child:
            prepare_images_dir(folder, SPLIT, MADE_FROM)
        os.waitpid(child, 0)
    assert len(list(folder.iterdir())) == 1
    prepare_images_dir(folder, SPLIT, MADE_FROM)
    assert [file.name for file in folder.iterdir()] == [MARKER]


def test_a_kill_while_other_images_are_removed_leaves_the_marker(tmp_path, monkeypatch):
    folder = prepare_images_dir(tmp_path / "images", SPLIT, MADE_FROM)
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "1.jpg").touch()
    with monkeypatch.context() as patch:
        patch.setattr("coordexp.datasets.image_provenance.write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_images_dir(folder, SPLIT, MADE_FROM | {"factor": 28})
    assert read_provenance(folder) == SPLIT | {"factor": 32}
    prepare_images_dir(folder, SPLIT, MADE_FROM | {"factor": 28})
    assert [file.name for file in folder.iterdir()] == [MARKER]


def test_records_have_the_provenance_of_the_images_they_name(tmp_path):
    for split in ("train", "val"):
        prepare_images_dir(tmp_path / "images" / split, SPLIT | {"split": split}, MADE_FROM)
    records = tmp_path / "train.jsonl"
    records.write_text('{"images": ["images/train/deep/a.jpg"]}\nnot a record\n')
    assert [made["split"] for made in provenance_of_records(records)] == ["train"]
