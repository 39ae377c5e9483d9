"""Annotation files that are not strict JSON: conversion and evaluation accept and refuse the same ones."""

import json

import pytest
from dataset_cases import convert_to, pixel_records, write_dataset

from coordexp.datasets.json_spans import element_spans
from coordexp.evaluation.ground_truth import load_ground_truth
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import read_json, sha256_file, write_json

TOO_LARGE = "9223372036854775807|is not in images"


def as_map(text):
    content = json.loads(text)
    return json.dumps(content | {"annotations": {str(a["id"]): a for a in content["annotations"]}}).encode()


EDITS = {
    "trailing comma in a list": (lambda t: t.replace(b"}]", b"},]", 1), "malformed.* at byte"),
    "trailing comma in an entry": (lambda t: t.replace(b'"width": 160', b'"width": 160,,', 1), "at byte"),
    "text after the object": (lambda t: t + b" x", "trailing characters at byte"),
    "single quotes": (lambda t: t.replace(b'"info"', b"'info'"), "at byte"),
    "number in a list": (lambda t: t.replace(b'"annotations": [', b'"annotations": [7, '), r"annotations\[0\]"),
    "list as a map": (as_map, "annotations"),
    "NaN outside the entries": (lambda t: t.replace(b'"info": {}', b'"info": {"x": NaN}'), "NaN .* at byte"),
    "NaN in an unused field": (lambda t: t.replace(b'"area"', b'"x": NaN, "area"', 1), "malformed"),
    "NaN in a segmentation": (lambda t: t.replace(b"[[11.4", b"[[NaN" + b", 1" * 200, 1), "malformed"),
    "area as text": (lambda t: t.replace(b'"area": 2400', b'"area": "2400"', 1), "area"),
    "latin-1": (lambda t: t.replace(b'"0001.jpg"', b'"caf\xe9.jpg"'), "not UTF-8 at byte"),
    "truncated character": (lambda t: t + b"\xc3", "not UTF-8 at byte"),
    "truncated file": (lambda t: t[:-30], "last bracket is closed"),
    "id of 2^63": (lambda t: t.replace(b'"id": 5,', b'"id": 9223372036854775808,', 1), TOO_LARGE),
    "id of 2^70": (lambda t: t.replace(b'"id": 5,', b'"id": 1180591620717411303424,', 1), TOO_LARGE),
    "category of 2^63": (lambda t: t.replace(b'"category_id": 7', b'"category_id": 9223372036854775808', 1), TOO_LARGE),
    "nested": (lambda t: t.replace(b'"info": {}', b'"info": ' + b"[" * 9999 + b"]" * 9999), "nested too deeply"),
    "empty file": (lambda t: b"", "empty"),
}


@pytest.mark.parametrize("case", EDITS)
def test_conversion_and_evaluation_refuse_the_same_files(tmp_path, case):
    edit, message = EDITS[case]
    annotations = damaged(tmp_path, edit)
    with pytest.raises(DataError, match=message) as by_conversion:
        convert_to(tmp_path / "train.source.json", tmp_path / "out")
    with pytest.raises(DataError, match=message) as by_evaluation:
        load_ground_truth(annotations)
    assert str(annotations) in str(by_conversion.value)
    assert str(annotations) in str(by_evaluation.value)


@pytest.mark.parametrize("case", ["NaN in an unused field", "NaN in a segmentation", "area as text", "id of 2^70"])
def test_conversion_and_evaluation_skip_the_same_entries(tmp_path, case):
    annotations = damaged(tmp_path, EDITS[case][0])
    stats = convert_to(tmp_path / "train.source.json", tmp_path / "out", on_bad="skip")
    ground_truth = load_ground_truth(annotations, "skip")
    assert stats["objects"]["written"] == ground_truth.num_objects
    assert stats["images"]["written"] == ground_truth.num_images


def test_a_byte_order_mark_is_read_by_both(tmp_path):
    annotations = damaged(tmp_path, lambda text: b"\xef\xbb\xbf" + text)
    assert convert_to(tmp_path / "train.source.json", tmp_path / "out")["objects"]["written"] == 12
    assert load_ground_truth(annotations).num_objects == 12


def test_booleans_and_whole_floats_are_integers_as_in_pycocotools(tmp_path):
    def edit(text):
        content = json.loads(text)
        for annotation in content["annotations"]:
            annotation |= {"iscrowd": False, "image_id": float(annotation["image_id"]), "category_id": 7.0}
        for image in content["images"]:
            image |= {"width": 160.0, "neg_category_ids": [3.0]}
        return json.dumps(content).encode()

    annotations = damaged(tmp_path, edit)
    assert convert_to(tmp_path / "train.source.json", tmp_path / "out")["objects"]["written"] == 12
    assert pixel_records(tmp_path / "out")[0].metadata.neg_category_ids == [3]
    assert load_ground_truth(annotations).num_objects == 12


def test_the_offset_of_an_invalid_byte_is_that_in_the_file(tmp_path):
    annotations = damaged(tmp_path, lambda t: b"\xef\xbb\xbf" + t.replace(b'"0004.jpg"', b'"caf\xe9.jpg"'))
    with pytest.raises(DataError, match=f"byte {annotations.read_bytes().index(0xE9)};"):
        load_ground_truth(annotations)


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(DataError, match="found a folder"):
        load_ground_truth(tmp_path / "x.json")


def damaged(folder, edit):
    """The annotation file of a small dataset whose bytes are edited; its manifest is `train.source.json`."""
    write_dataset(folder)
    path = folder / "annotations.json"
    before = path.read_bytes()
    path.write_bytes(edit(before))
    assert path.read_bytes() != before
    manifest = folder / "train.source.json"
    write_json(manifest, read_json(manifest) | {"annotations_sha256": sha256_file(path)})
    return path


def test_a_list_that_occurs_twice_is_refused(tmp_path):
    file = tmp_path / "twice.json"
    file.write_text('{"images": [{"id": 1}], "annotations": [], "categories": [], "annotations": [{"id": 1}]}')
    with pytest.raises(DataError, match="annotations: the key occurs twice"):
        element_spans(file, ("images", "annotations"))
