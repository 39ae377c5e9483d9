"""Annotation files found and decoded element by element, against a plain json.loads."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordexp.datasets import json_spans as scan
from coordexp.datasets.annotation_index import build_index, read_images, read_segmentations
from coordexp.datasets.categories import Category, category_ids, descriptions, load_categories, pretty
from coordexp.datasets.json_spans import element_spans, find_elements, read_spans
from coordexp.runtime import tuning
from coordexp.runtime.errors import DataError

SHARED = Path(__file__).parents[3].parent / "shared" / "photos" / "annotations"
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9999, 9999) | st.text('ab"\\[]{}_yY,: \n', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('k"\\]}', max_size=4), inner, max_size=3),
    max_leaves=8,
)
elements = st.lists(st.dictionaries(st.text('ab"\\', max_size=4), values, max_size=4), max_size=5)


@given(elements, elements, values, st.sampled_from([None, 1]), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_spans_are_the_elements_whatever_the_file_holds(tmp_path_factory, first, second, other, indent, chunk):
    path = tmp_path_factory.mktemp("scan") / "file.json"
    path.write_text(json.dumps({"info": other, "images": first, "more": [other], "annotations": second}, indent=indent))
    usual, tuning.JSON_READ_BYTES = tuning.JSON_READ_BYTES, chunk
    try:
        spans = element_spans(path, ("images", "annotations"))
    finally:
        tuning.JSON_READ_BYTES = usual
    data = path.read_bytes()
    for name, expected in (("images", first), ("annotations", second)):
        assert [json.loads(data[a:b]) for a, b in spans[name].tolist()] == expected


@pytest.mark.parametrize("text", ['{"images": [{"id": 1', '{"images": [{"id": "1}]}'])
def test_a_file_that_is_cut_off_is_an_error(tmp_path, text):
    (tmp_path / "cut.json").write_text(text)
    with pytest.raises(DataError, match=r"cut.json.*ends before its last bracket"):
        element_spans(tmp_path / "cut.json", ("images",))


@pytest.mark.parametrize("text", ["", "[1, 2]", "GIF89a"])
def test_a_file_that_is_something_else_is_an_error(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(DataError, match="not an annotation file"):
        element_spans(tmp_path / "other.json", ("images",))


def test_spans_are_read_in_the_order_given(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(200)))
    import numpy as np

    spans = np.array([[150, 160], [0, 5], [3, 9], [190, 200]])
    fd = os.open(path, os.O_RDONLY)
    for gap in (0, 1000):
        assert read_spans(fd, spans, gap) == [bytes(range(a, b)) for a, b in spans.tolist()]
    os.close(fd)


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


def emptied(value, limit, depth=0):
    """A copy in which every list and map of an element that is written in more than `limit` bytes is empty."""
    if depth == 1 and len(json.dumps(value)) - 1 > limit and isinstance(value, dict | list):
        return type(value)()
    inner = value.items() if isinstance(value, dict) and depth == 0 else ()
    return {k: emptied(v, limit, depth + 1) for k, v in inner} if depth == 0 else value


@given(elements, st.integers(0, 40), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_bulk_is_the_inside_of_long_lists_and_maps(tmp_path_factory, found, limit, chunk):
    path = tmp_path_factory.mktemp("scan") / "file.json"
    path.write_text(json.dumps({"images": [], "annotations": found}))
    usual = scan.BULK, tuning.JSON_READ_BYTES
    scan.BULK, tuning.JSON_READ_BYTES = limit, chunk
    try:
        annotations = find_elements(path, ("annotations",))["annotations"]
    finally:
        scan.BULK, tuning.JSON_READ_BYTES = usual
    data = bytearray(path.read_bytes())
    for a, b in annotations.bulk.tolist():
        data[a:b] = b" " * (b - a)
    assert [json.loads(data[a:b]) for a, b in annotations.spans.tolist()] == [emptied(e, limit) for e in found]


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


def test_duplicates_and_orphans_are_lost_and_named(tmp_path):
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


def test_a_broken_element_does_not_hide_its_neighbours(tmp_path):
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
def test_real_files_are_read_as_json_reads_them(name):
    data = json.loads((SHARED / name).read_text())
    index = build_index(SHARED / name)
    images, grouped = read_all(index)
    assert [i.id for i in images] == [i["id"] for i in data["images"]]
    assert [i.neg_category_ids for i in images] == [i.get("neg_category_ids", []) for i in data["images"]]
    for i, own in zip(images, grouped, strict=True):
        expected = [a for a in data["annotations"] if a["image_id"] == i.id]
        assert own.ids.tolist() == [a["id"] for a in expected]
        assert own.categories.tolist() == [a["category_id"] for a in expected]
        assert own.boxes.tolist() == [a["bbox"] for a in expected]
        assert own.crowd.tolist() == [bool(a.get("iscrowd")) for a in expected]
        with (SHARED / name).open("rb") as handle:
            outlines = read_segmentations(handle.fileno(), own)
        assert [json.loads(o) for o in outlines] == [a["segmentation"] for a in expected]


def write_categories(tmp_path, categories) -> Path:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    return path


def test_categories_of_both_layouts(tmp_path):
    lvis = {"id": 3, "name": "baseball_bat", "synonyms": ["baseball_bat", "bat"], "frequency": "c", "def": "a club"}
    coco = {"id": 4, "name": "stop sign", "supercategory": "outdoor"}
    assert load_categories(write_categories(tmp_path, [lvis, coco])) == [
        Category(3, "baseball_bat", ["baseball_bat", "bat"], "c"),
        Category(4, "stop sign"),
    ]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"id": 5}, r"categories\[1\]: category 5 has no name"),
        ({"id": 5, "name": " "}, "category 5 has no name"),
        ({"id": 3, "name": "again"}, "category id 3 is repeated"),
        ({"id": "x", "name": "y"}, "category x"),
    ],
)
def test_a_bad_category_is_named_or_left_out(tmp_path, bad, problem):
    path = write_categories(tmp_path, [{"id": 3, "name": "cat"}, bad])
    with pytest.raises(DataError, match=problem):
        load_categories(path)
    assert [c.name for c in load_categories(path, "skip")] == ["cat"]


def test_no_categories_is_an_error(tmp_path):
    with pytest.raises(DataError, match="categories: the list is missing or empty"):
        load_categories(write_categories(tmp_path, []))


def test_descriptions_are_reversible():
    table = [Category(1, "baseball_bat"), Category(2, "stop sign"), Category(3, "bow_(weapon)")]
    assert pretty("baseball_bat") == "baseball bat"
    for style in ("pretty", "raw"):
        texts = descriptions(table, style)
        assert {category_ids(table, style)[texts[c.id]] for c in table} == {1, 2, 3}
    assert descriptions(table, "pretty")[3] == "bow (weapon)"
    with pytest.raises(DataError, match=r"1 \('hot_dog'\) and 2 \('hot dog'\) have the same description 'hot dog'"):
        descriptions([Category(1, "hot_dog"), Category(2, "hot dog")], "pretty")
    assert descriptions([Category(1, "hot_dog"), Category(2, "hot dog")], "raw") == {1: "hot_dog", 2: "hot dog"}
