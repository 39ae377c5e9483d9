"""The index of an annotation file: annotations by image, and every element that cannot be used."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        assert (getattr(whole.annotations_of(0, 50), column) == getattr(small.annotations_of(0, 50), column)).all()


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


def reference(content):
    """(ids of the images, annotations of each, (field, id, problem) of the others) of a decoded file without errors."""

    def comparable(*lists):
        return [[str(i) for i in ids] if any(isinstance(j, str) for js in lists for j in js) else ids for ids in lists]

    images, annotations = content["images"], content["annotations"]
    ids, invalid, grouped = comparable([a["id"] for a in annotations])[0], [], {}
    unique = comparable([i["id"] for i in images])[0]
    invalid += [("images", v, "duplicate image id") for n, v in enumerate(unique) if v in unique[:n]]
    known, owners = comparable([i["id"] for i in images], [a["image_id"] for a in annotations])
    orphans = []
    for n, (annotation, own, owner) in enumerate(zip(annotations, ids, owners, strict=True)):
        if own in ids[:n]:
            invalid.append(("annotations", own, "duplicate annotation id"))
        elif owner not in known:
            orphans.append(("annotations", own, f"image_id {owner!r} is not in images"))
        else:
            grouped.setdefault(owner, []).append((own, annotation["bbox"], annotation["category_id"]))
    found = {image: grouped.get(image, []) for image in known}
    return list(found.values()), invalid + orphans


some_ids = st.integers(1, 6) | st.sampled_from(["1", "2", "b", "\u00e9"])
id_pairs = st.lists(st.tuples(st.integers(0, 25), st.integers(1, 7)), max_size=25)
mixed_pairs = st.lists(st.tuples(st.integers(0, 25) | some_ids, some_ids), max_size=25)


@given(st.lists(st.integers(1, 6), min_size=1) | st.lists(some_ids, min_size=1), id_pairs | mixed_pairs)
@settings(deadline=None, max_examples=60)
def test_the_index_is_that_of_a_plain_loop_whatever_the_sizes_of_its_parts(tmp_path_factory, images, annotations):
    entries = [annotation_entry(i, owner, bbox=[n, 1, 2, 3]) for n, (i, owner) in enumerate(annotations)]
    path = write(tmp_path_factory.mktemp("index"), [image_entry(i) for i in images], entries)
    expected, invalid = reference(json.loads(path.read_text()))
    with pytest.MonkeyPatch.context() as patch:
        for name, size in {"ELEMENTS_PER_BLOCK": 3, "ROWS_PER_BLOCK": 4, "KEYS_IN_MEMORY": 5}.items():
            patch.setattr(tuning, name, size)
        index = build_index(path)
    _, grouped = read_all(index)
    found = [list(zip(g.ids.tolist(), g.boxes.tolist(), g.categories.tolist(), strict=True)) for g in grouped]
    assert found == expected
    assert [(field, element.id, element.problem) for field, element in index.invalid] == invalid


@pytest.mark.parametrize("kind", [int, str])
def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch, kind):
    for name in ("ELEMENTS_PER_BLOCK", "ROWS_PER_BLOCK", "KEYS_IN_MEMORY"):
        monkeypatch.setattr(tuning, name, 500)
    monkeypatch.setattr(tuning, "JSON_READ_BYTES", 1 << 14)
    monkeypatch.setattr(tuning, "JSON_RANGE_BYTES", 1 << 16)
    peaks = []
    for count in (2_000, 8_000):
        annotations = [annotation_entry(kind(-k), kind(1 + k * 7 % (count // 4))) for k in range(count)]
        path = write(tmp_path, [image_entry(kind(1 + k)) for k in range(count // 4)], annotations)
        tracemalloc.start()
        index = build_index(path, folder=tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (len(index.annotations_of(0, len(index))), index.invalid) == (count, [])
    assert peaks[1] - peaks[0] < 3 * 6_000  # bytes


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
