"""Streaming annotation files: complete or absent, readable by every COCO reader, with every skipped line."""

import json

import pytest
from dataset_cases import balanced, convert_to, draw_image, source_of

from coordexp.datasets.annotation_index import build_index
from coordexp.datasets.annotation_writer import AnnotationWriter
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import write_json

CATEGORIES = [{"id": 1, "name": "cat"}]


def fill(writer, images=2):
    writer.set_categories(CATEGORIES)
    for n in range(1, images + 1):
        writer.add_image({"id": n, "file_name": f"{n}.jpg", "width": 160, "height": 120})
        writer.add_annotation({"id": n, "image_id": n, "category_id": 1, "bbox": [1, 2, 30, 40]})


def written_with_skips(folder, on_bad, lines, images=None):
    """The source of two images, a line of the file `lines` that was skipped, and an image of the file `images`."""
    (folder / "images").mkdir()
    for n in (1, 2):
        draw_image(160, 120, n).save(folder / "images" / f"{n}.jpg")
    with AnnotationWriter(folder / "a.json", on_bad) as writer:
        fill(writer)
        writer.skip("annotation", "unknown category", lines, 7, "'zebra'")
        if images:
            writer.skip("image", "missing image", images)
    return source_of(folder / "a.json", ["images"], "coco")


def test_the_file_is_coco_json(tmp_path):
    with AnnotationWriter(tmp_path / "a.json", info={"description": "test"}) as writer:
        fill(writer)
    content = json.loads((tmp_path / "a.json").read_text())
    assert list(content) == ["info", "licenses", "images", "annotations", "categories"]
    assert content["info"] == {"description": "test"} and content["categories"] == CATEGORIES
    assert [image["id"] for image in content["images"]] == [a["image_id"] for a in content["annotations"]] == [1, 2]
    assert (writer.image_count, writer.annotation_count) == (2, 2)


def test_an_exception_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), AnnotationWriter(tmp_path / "a.json") as writer:
        fill(writer)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_bad_line_is_an_error_with_file_and_line_at_the_end(tmp_path):
    words = r"^boxes\.csv:7: unknown category: 'zebra'\n  -> .*on_bad: skip"
    with pytest.raises(DataError, match=words):
        written_with_skips(tmp_path, "error", "boxes.csv")
    assert not (tmp_path / "a.json").exists()


def test_several_bad_lines_are_one_error(tmp_path):
    words = r"^2 problems:\n  boxes\.csv:7: unknown category: 'zebra'\n  list\.txt: missing image\n  -> "
    with pytest.raises(DataError, match=words):
        written_with_skips(tmp_path, "error", "boxes.csv", "list.txt")


def test_skipped_lines_are_counted_and_listed_by_the_conversion(tmp_path):
    source = written_with_skips(tmp_path, "skip", "boxes.csv", "list.txt")
    assert [(s.kind, s.file, s.line) for s in build_index(tmp_path / "a.json").skipped] == [
        ("annotation", "boxes.csv", 7),
        ("image", "list.txt", None),
    ]
    write_json(tmp_path / "train.source.json", source)
    stats = convert_to(tmp_path / "train.source.json", tmp_path / "out")
    assert balanced(stats) and (stats["images"]["listed"], stats["objects"]["listed"]) == (3, 3)
    assert stats["objects"]["dropped"] == {"unknown category": 1}
    assert stats["images"]["dropped"] == {"missing image": 1}
    assert {
        "kind": "annotation",
        "reason": "unknown category",
        "file": "boxes.csv",
        "line": 7,
        "detail": "'zebra'",
    } in [dict(item) for item in stats["skipped"]]
