"""The index of an annotation file: annotations by image, and every element that cannot be used."""

import json
import os
from pathlib import Path

import pytest

from coordexp.datasets import json_spans as scan
from coordexp.datasets.annotation_index import build_index, read_images, read_segmentations
from coordexp.datasets.json_spans import element_spans
from coordexp.runtime import tuning
from coordexp.runtime.errors import DataError

SHARED = Path(__file__).parents[3].parent / "shared" / "photos" / "annotations"


def write(tmp_path, images, annotations) -> Path:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return path


def image_entry(i):
    return {"id": i, "file_name": f"{i}.jpg", "width": 10, "height": 10}


def annotation_entry(i, image_id, **more):
    return {"id": i, "image_id": image_id, "category_id": 1, "bbox": [0, 0, 5, 5], **more}


def read_all(index):
    """(images, rows of each image)."""
    fd = os.open(index.path, os.O_RDONLY)
    try:
        return read_images(fd, index, 0, len(index)), [index.annotations_of(i, i + 1) for i in range(len(index))]
    finally:
        os.close(fd)


def ids_of(grouped):
    return [own.ids.tolist() for own in grouped]


@pytest.mark.parametrize("kind", [int, str])
def test_annotations_come_with_their_image_in_file_order(tmp_path, kind):
    owners = [kind(k) for k in (30, 10, 30, 20, 10, 30)]
    annotations = [annotation_entry(k, owner) for k, owner in enumerate(owners)]
    index = build_index(write(tmp_path, [image_entry(kind(k)) for k in (20, 30, 10, 40)], annotations))
    images, grouped = read_all(index)
    assert [i.id for i in images] == [kind(k) for k in (20, 30, 10, 40)]
    assert ids_of(grouped) == [[3], [0, 2, 5], [1, 4], []]
    assert index.invalid == []


def test_blocks_and_chunks_make_no_difference(tmp_path, monkeypatch):
    path = write(tmp_path, [image_entry(k) for k in range(50)], [annotation_entry(k, k * 7 % 50) for k in range(300)])
    whole = build_index(path)
    monkeypatch.setattr(tuning, "ELEMENTS_PER_BLOCK", 7)
    small = build_index(path)
    for column in ("ids", "categories", "boxes", "crowd", "spans", "offsets"):
        assert (getattr(whole.annotations, column) == getattr(small.annotations, column)).all()
    assert whole.annotations.image_index.tolist() == sorted(whole.annotations.image_index.tolist())


@pytest.mark.parametrize("bulk", [0, 30, 10**6])
def test_columns_are_the_same_with_and_without_bulk(tmp_path, monkeypatch, bulk):
    """At 0 every box is bulk too: the block is then read in full."""
    rings = [[[float(k)] * (2 * k) for k in range(n)] for n in (0, 3, 9)]
    rle = {"size": [10, 10], "counts": "long" * 50}
    outlines = [*rings, rle, None]
    box = [0.123456789, 1, 2, 3]
    annotations = [annotation_entry(k, 1 + k % 2, segmentation=o, bbox=box) for k, o in enumerate(outlines)]
    annotations.append(annotation_entry(9, 1, bbox=[1, 2, 3]))
    monkeypatch.setattr(scan, "BULK", bulk)
    index = build_index(write(tmp_path, [image_entry(1), image_entry(2)], annotations))
    _, grouped = read_all(index)
    assert ids_of(grouped) == [[0, 2, 4], [1, 3]]
    assert all(found == box for own in grouped for found in own.boxes.tolist())
    assert [(b.id, "bbox" in b.problem) for _, b in index.invalid] == [(9, True)]
    with open(index.path, "rb") as handle:
        read = [json.loads(o) for own in grouped for o in read_segmentations(handle.fileno(), own)]
    assert read == [outlines[k] for k in (0, 2, 4, 1, 3)]


def test_duplicates_and_orphans_are_listed(tmp_path):
    annotations = [annotation_entry(1, 1), annotation_entry(2, 99), annotation_entry(1, 2), annotation_entry(3, 2)]
    index = build_index(write(tmp_path, [image_entry(1), image_entry(2), image_entry(1)], annotations))
    assert [(f, b.id, b.problem) for f, b in index.invalid] == [
        ("images", 1, "duplicate image id"),
        ("annotations", 1, "duplicate annotation id"),
        ("annotations", 2, "image_id 99 is not in images"),
    ]
    images, grouped = read_all(index)
    assert [i.id for i in images] == [1, 2]
    assert ids_of(grouped) == [[1], [3]]


def test_an_invalid_element_does_not_hide_its_neighbours(tmp_path):
    annotations = [
        annotation_entry(1, 1),
        annotation_entry(2, 1, bbox=[0, 0, 5]),
        annotation_entry(3, 1, bbox=[float("nan")] * 4),
        annotation_entry(4, 1),
    ]
    index = build_index(write(tmp_path, [image_entry(1)], annotations))
    _, (own,) = read_all(index)
    assert own.ids.tolist() == [1, 4]
    assert own.boxes.tolist() == [[0, 0, 5, 5]] * 2
    assert [(f, b.id, b.image_id) for f, b in index.invalid] == [("annotations", 2, 1), ("annotations", 3, 1)]
    assert "bbox" in index.invalid[0][1].problem
    assert "invalid" in index.invalid[1][1].problem


def test_missing_lists_and_an_empty_image_list_are_errors(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text('{"images": [], "annotations": []}')
    with pytest.raises(DataError, match="images: the list is empty"):
        build_index(path)
    path.write_text('{"images": [{"id": 1}]}')
    with pytest.raises(DataError, match="annotations: the list is missing"):
        build_index(path)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/photos")
@pytest.mark.parametrize(
    "name", ["instances_train2017.json", "instances_val2017.json", "lvis_v1_train.json", "lvis_v1_val.json"]
)
def test_real_files_are_read_as_a_json_parser_reads_them(name):
    data = json.loads((SHARED / name).read_text())
    index = build_index(SHARED / name)
    images, grouped = read_all(index)
    assert [i.id for i in images] == [i["id"] for i in data["images"]]
    assert [i.neg_category_ids or [] for i in images] == [i.get("neg_category_ids", []) for i in data["images"]]
    for i, own in zip(images, grouped, strict=True):
        expected = [a for a in data["annotations"] if a["image_id"] == i.id]
        assert own.ids.tolist() == [a["id"] for a in expected]
        assert own.categories.tolist() == [a["category_id"] for a in expected]
        assert own.boxes.tolist() == [a["bbox"] for a in expected]
        assert own.crowd.tolist() == [bool(a.get("iscrowd")) for a in expected]
        with (SHARED / name).open("rb") as handle:
            outlines = read_segmentations(handle.fileno(), own)
        assert [json.loads(o) for o in outlines] == [a["segmentation"] for a in expected]


@pytest.mark.parametrize("text", ["plain", 'a }, { "b": [} c', "\\\\", '"}, {"'])
def test_a_large_file_is_scanned_in_ranges_or_whole_with_the_same_result(tmp_path, monkeypatch, text):
    """Texts that look like the space between elements make a cut fail its proof: then one range is the file."""
    annotations = [annotation_entry(k, k % 40, note=text * (k % 7), parts=[{"a": {}}, {"b": 1}]) for k in range(400)]
    path = write(tmp_path, [image_entry(k) for k in range(40)], annotations)
    expected = element_spans(path, ("images", "annotations"))
    ranges = []
    monkeypatch.setattr(tuning, "JSON_RANGE_BYTES", 999)
    monkeypatch.setattr(tuning, "JSON_READ_BYTES", 400)

    def counting(function, items):
        ranges.append(len(list(items)))
        return map(function, items)

    found = element_spans(path, ("images", "annotations"), counting)
    assert ranges[0] > 20
    for name, spans in expected.items():
        assert (found[name] == spans).all()
