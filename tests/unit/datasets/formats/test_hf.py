"""Hugging Face datasets on disk, written by the real library: images become files, class names are those of the set."""

import json
import struct

import pytest
from dataset_cases import draw_image
from format_cases import boxes, provided, skipped
from format_fuzz import CASES_IN_CI, fuzz

from coordexp.runtime.errors import ConfigError, DataError

datasets = pytest.importorskip("datasets")
ENTRY = {"format": "hf", "folders": {"train": "set/train"}}
NAMES = ["cat", "dog"]


def features(label, image=None):
    objects = {"bbox": datasets.List(datasets.List(datasets.Value("float32"))), "category": datasets.List(label)}
    return datasets.Features({"image": image or datasets.Image(), "objects": objects})


LABEL = datasets.ClassLabel(names=NAMES)


def save(root, rows, kind=None):
    images, objects = zip(*rows, strict=True)
    objects = [{"bbox": bbox, "category": category} for bbox, category in objects]
    data = datasets.Dataset.from_dict({"image": list(images), "objects": objects}, features=kind or features(LABEL))
    datasets.DatasetDict({"train": data}).save_to_disk(root / "set")


def test_images_are_written_once_and_numbers_have_the_names_of_the_dataset(tmp_path):
    photo, other = draw_image(160, 120), draw_image(64, 48, 1).convert("RGBA")
    save(tmp_path, [(photo, ([[10, 20, 20, 30]], [1])), (other, ([], []))])
    content = provided(tmp_path, ENTRY)
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert boxes(content) == {"000000001.png": [("dog", (10, 20, 20, 30))], "000000002.png": []}
    assert [(i["width"], i["height"]) for i in content["images"]] == [(160, 120), (64, 48)]
    written = tmp_path / "work" / "raw" / "images" / "train"
    assert sorted(path.name for path in written.iterdir()) == ["000000001.png", "000000002.png"]
    assert provided(tmp_path, ENTRY) == content


def test_the_bytes_of_an_image_file_are_kept(tmp_path):
    draw_image(160, 120).save(tmp_path / "a.jpg")
    save(tmp_path, [({"bytes": (tmp_path / "a.jpg").read_bytes(), "path": "../../x/a.jpg"}, ([], []))])
    provided(tmp_path, ENTRY)
    written = tmp_path / "work" / "raw" / "images" / "train" / "000000001.jpg"
    assert written.read_bytes() == (tmp_path / "a.jpg").read_bytes()


def test_names_in_place_of_numbers_and_a_list_of_objects_are_read(tmp_path):
    item = {"bbox": datasets.List(datasets.Value("float32")), "category": datasets.Value("string")}
    kind = datasets.Features({"image": datasets.Image(), "objects": datasets.List(item)})
    rows = {"image": [draw_image(160, 120)], "objects": [[{"bbox": [1, 2, 3, 4], "category": "cow"}]]}
    datasets.Dataset.from_dict(rows, features=kind).save_to_disk(tmp_path / "set" / "train")
    assert boxes(provided(tmp_path, ENTRY)) == {"000000001.png": [("cow", (1, 2, 3, 4))]}


BAD = {
    "no bytes": (({"bytes": b"", "path": None}, ([], [])), "image", "missing image"),
    "damaged bytes": (({"bytes": b"\xff\xd8\xffnothing", "path": None}, ([], [])), "image", "unreadable image"),
    "lists of different lengths": ((None, ([[1, 2, 3, 4]], [])), "image", "invalid entry"),
    "NaN": ((None, ([[float("nan"), 2, 3, 4]], [0])), "annotation", "non-finite box"),
    "a negative size": ((None, ([[1, 2, -3, 4]], [0])), "annotation", "negative size"),
    "an unknown class": ((None, ([[1, 2, 3, 4]], [None])), "annotation", "missing category"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_an_error_with_its_row_or_a_counted_skip(case, tmp_path):
    (image, objects), kind, reason = BAD[case]
    photo = draw_image(160, 120)
    save(tmp_path, [(photo, ([[1, 2, 3, 4]], [0])), (image or photo, objects)])
    with pytest.raises(DataError, match=rf"set/train:2: {reason}"):
        provided(tmp_path, ENTRY)
    content = provided(tmp_path, {**ENTRY, "on_bad": "skip"})
    assert skipped(content) == [(kind, reason, 2)] and boxes(content)["000000001.png"] == [("cat", (1, 2, 3, 4))]


def test_numbers_need_names(tmp_path):
    save(tmp_path, [(draw_image(160, 120), ([[1, 2, 3, 4]], [1]))], features(datasets.Value("int64")))
    with pytest.raises(DataError, match="declare the category names"):
        provided(tmp_path, ENTRY)
    assert boxes(provided(tmp_path, {**ENTRY, "categories": NAMES}))["000000001.png"] == [("dog", (1, 2, 3, 4))]


def test_a_folder_of_several_splits_is_an_error_that_lists_them(tmp_path):
    save(tmp_path, [(draw_image(16, 12), ([], []))])
    with pytest.raises(DataError, match=r"several splits; expected \['train'\]"):
        provided(tmp_path, {**ENTRY, "folders": {"train": "set"}})


def test_other_columns_are_an_error_that_lists_them(tmp_path):
    save(tmp_path, [(draw_image(16, 12), ([], []))])
    with pytest.raises(
        ConfigError, match=r"datasets\.mine\.image_column: no such column; expected \['image', 'objects'\]"
    ):
        provided(tmp_path, {**ENTRY, "image_column": "photo"})


def test_files_outside_the_folder_are_not_read(tmp_path):
    save(tmp_path, [(draw_image(16, 12), ([], []))])
    state = tmp_path / "set" / "train" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "_data_files": [{"filename": "../../other.arrow"}]}))
    with pytest.raises(DataError, match=r"state\.json: _data_files: missing file, or file outside the folder"):
        provided(tmp_path, ENTRY)


def test_a_damaged_dataset_is_an_error(tmp_path):
    save(tmp_path, [(draw_image(16, 12), ([], []))])
    [arrow] = (tmp_path / "set" / "train").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(DataError, match="not a dataset"):
        provided(tmp_path, ENTRY)


def fuzzed(root):
    """A saved dataset of two images, whose Arrow file and descriptions are mutated."""
    rows = [(draw_image(48, 32, n), ([[1, 2, 30, 20], [5.5, 6, 20, 20.25]], [0, 1])) for n in range(2)]
    save(root, rows)
    return ENTRY


def test_mutated_files_give_no_traceback(tmp_path):
    outcomes = fuzz(fuzzed, tmp_path, CASES_IN_CI)
    assert outcomes["read"] + outcomes["skipped"] > 0 and outcomes["refused"] > 0, outcomes


def test_rows_beyond_the_end_of_a_column_are_refused(tmp_path):
    """Reading them would end the process: pyarrow follows offsets without a check."""
    fuzzed(tmp_path)
    [arrow] = (tmp_path / "set" / "train").glob("*.arrow")
    data, offsets = arrow.read_bytes(), struct.pack("<3i", 0, 2, 4)  # two objects per image
    assert offsets in data
    arrow.write_bytes(data.replace(offsets, struct.pack("<3i", 0, 2, 2**30)))
    with pytest.raises(DataError, match="not a dataset"):
        provided(tmp_path, ENTRY)


@pytest.mark.soak
def test_five_hundred_mutated_files_give_no_traceback(tmp_path):
    fuzz(fuzzed, tmp_path, 500, seed=1)
