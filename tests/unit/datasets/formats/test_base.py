"""Dataset formats: one class adds a format; options are validated; facts of the format reach the Source."""

import json
from typing import Annotated

import msgspec
import pytest
from dataset_cases import draw_image, write_dataset

from coordexp.datasets.download import annotations_sha256, local_annotations_sha256, options_for_split, provide
from coordexp.datasets.formats import (
    FORMATS,
    AnnotationWriter,
    DatasetFormat,
    FolderOptions,
    PerSplit,
    SplitFiles,
    open_format,
    per_split_options,
)
from coordexp.datasets.source import load_source
from coordexp.runtime.errors import ConfigError, DataError


class LinesOptions(FolderOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    lists: Annotated[PerSplit[str], msgspec.Meta(description="text file of each split: `image x y w h` per line")]


class LinesFormat(DatasetFormat[LinesOptions]):
    Options = LinesOptions

    def files(self, split):
        return SplitFiles((self.options.lists[split],), ("images",))

    def provide(self, split, folder, raw_dir):
        path = folder / self.options.lists[split]
        with AnnotationWriter(self.annotation_path(split, raw_dir)) as writer:
            writer.set_categories([{"id": 1, "name": "thing"}])
            for number, line in enumerate(path.read_text().splitlines(), 1):
                name, *values = line.split()
                if len(values) != 4:
                    writer.skip("annotation", "expected 5 values", path, number)
                    continue
                writer.add_image({"id": number, "file_name": name, "width": 160, "height": 120})
                writer.add_annotation(
                    {"id": number, "image_id": number, "category_id": 1, "bbox": list(map(float, values))}
                )
        return self.source(split, writer.path, [folder / "images"])


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """A dataset in a format of its own: entry, folder."""
    monkeypatch.setitem(FORMATS._items, "lines", LinesFormat)
    root = tmp_path / "mine"
    (root / "images").mkdir(parents=True)
    draw_image(160, 120).save(root / "images" / "a.jpg")
    (root / "train.txt").write_text("a.jpg 10 20 30 40\n")
    return {"format": "lines", "root": str(root), "lists": {"train": "train.txt", "val": "val.txt"}}, root


def test_a_format_is_one_registered_class(lines, tmp_path):
    entry, root = lines
    manifest = tmp_path / "work" / "train.source.json"
    source = provide("mine", entry, "train", tmp_path / "work" / "raw", manifest)
    assert (source.dataset, source.split, source.format, source.federated) == ("mine", "train", "lines", False)
    assert source.annotations == "raw/train.annotations.json" and source.image_dirs == [str(root / "images")]
    assert source.original_sha256 == annotations_sha256([root / "train.txt"])
    assert load_source(manifest) == source
    content = json.loads((manifest.parent / source.annotations).read_text())
    assert content["annotations"][0]["bbox"] == [10, 20, 30, 40]


def test_a_changed_original_is_noticed(lines, tmp_path):
    entry, root = lines
    manifest = tmp_path / "work" / "train.source.json"
    source = provide("mine", entry, "train", tmp_path / "work" / "raw", manifest)
    assert local_annotations_sha256("mine", entry, "train", manifest) == source.original_sha256
    (root / "train.txt").write_text("a.jpg 11 20 30 40\n")
    assert local_annotations_sha256("mine", entry, "train", manifest) != source.original_sha256


def test_bad_lines_are_an_error_and_leave_no_annotations(lines, tmp_path):
    entry, root = lines
    bad = "".join(f"a.jpg {n}\n" for n in range(30))
    (root / "train.txt").write_text("a.jpg 10 20 30 40\n" + bad)
    with pytest.raises(DataError, match="30 problems, the first 20 of them") as error:
        provide("mine", entry, "train", tmp_path / "work" / "raw", tmp_path / "work" / "train.source.json")
    assert str(error.value).count("expected 5 values") == 20 and "train.txt:2: " in str(error.value)
    assert not list((tmp_path / "work").rglob("*.json"))


def test_options_of_other_splits_do_not_count(lines):
    entry, _ = lines
    assert per_split_options(LinesOptions) == ["lists"]
    assert options_for_split("mine", entry, "train") == {**entry, "lists": {"train": "train.txt"}}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, r"datasets\.x\.format: required key is missing"),
        ({"format": "cocoo"}, r"datasets\.x\.format: unknown dataset format.*'cocoo'"),
        ({"format": "coco", "annotation": {}}, r"datasets\.x\.annotation: unknown key, did you mean 'annotations'"),
        ({"format": "coco", "image_dirs": {}}, r"datasets\.x\.annotations: required key is missing"),
    ],
)
def test_an_invalid_entry_is_a_configuration_error(entry, words):
    with pytest.raises(ConfigError, match=words):
        open_format("x", entry)


@pytest.mark.parametrize(("name", "federated"), [("coco", False), ("lvis", True)])
def test_coco_and_lvis_files_are_read_in_place(tmp_path, name, federated):
    write_dataset(tmp_path / "own")
    entry = {"format": name, "root": str(tmp_path / "own"), "annotations": {"val": "annotations.json"}}
    entry |= {"image_dirs": {"val": ["images"]}}
    source = provide("own", entry, "val", tmp_path / "raw", tmp_path / "val.source.json")
    assert (source.format, source.federated) == (name, federated)
    assert source.annotations == str(tmp_path / "own" / "annotations.json") and source.original_sha256 is None
    assert not (tmp_path / "raw").exists()
