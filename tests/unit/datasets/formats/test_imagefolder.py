"""ImageFolder: metadata as JSON lines or CSV, objects in two shapes, declared box forms and units."""

import json

import pytest
from format_cases import boxes, image_folder, json_lines, provided, skipped

from coordexp.runtime.errors import DataError

ENTRY = {"format": "imagefolder", "metadata": {"train": "images/metadata.jsonl"}}


def row(bboxes, categories, name="a.jpg"):
    return {"file_name": name, "objects": {"bbox": bboxes, "categories": categories}}


@pytest.fixture
def read(tmp_path):
    image_folder(tmp_path)

    def read(*lines, **options):
        (tmp_path / "images" / "metadata.jsonl").write_bytes(json_lines(*lines))
        return provided(tmp_path, {**ENTRY, **options})

    return read


def test_numbers_are_indices_of_the_declared_names(read):
    content = read(row([[10, 20, 20, 30], [1, 2, 3, 4]], [1, 0]), row([], [], "sub/b.jpg"), categories=["cat", "dog"])
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert boxes(content) == {"a.jpg": [("dog", (10, 20, 20, 30)), ("cat", (1, 2, 3, 4))], "sub/b.jpg": []}


def test_names_need_no_declaration(read):
    assert boxes(read(row([[10, 20, 20, 30]], ["cat"])))["a.jpg"] == [("cat", (10, 20, 20, 30))]


FORMS = {
    "xywh, pixels": ({}, [40, 60, 80, 30]),
    "xyxy, pixels": ({"box_form": "xyxy"}, [40, 60, 120, 90]),
    "xywh, fractions": ({"box_unit": "fractions"}, [0.25, 0.5, 0.5, 0.25]),
    "xyxy, thousandths": ({"box_form": "xyxy", "box_unit": "norm1000"}, [250, 500, 750, 750]),
}


@pytest.mark.parametrize("case", FORMS)
def test_the_form_and_unit_of_boxes_are_declared(case, read):
    options, box = FORMS[case]
    assert boxes(read(row([box], ["cat"]), **options))["a.jpg"] == [("cat", (40, 60, 80, 30))]


def test_keys_are_declared_and_objects_may_be_a_list(read):
    value = {"file_name": "a.jpg", "objects": [{"box": [1, 2, 3, 4], "name": "cat"}]}
    assert boxes(read(value, bbox_key="box", category_key="name"))["a.jpg"] == [("cat", (1, 2, 3, 4))]


def test_csv_metadata_has_objects_as_json(tmp_path):
    image_folder(tmp_path)
    objects = json.dumps({"bbox": [[10, 20, 20, 30]], "categories": ["cat"]}).replace('"', '""')
    text = f'\ufefffile_name,"text",objects\r\na.jpg,"two\r\nlines","{objects}"\r\n\r\nc.png,,"{objects}"\r\n'
    (tmp_path / "images" / "metadata.csv").write_bytes(text.encode())
    content = provided(tmp_path, {**ENTRY, "metadata": {"train": "images/metadata.csv"}})
    assert boxes(content) == {"a.jpg": [("cat", (10, 20, 20, 30))], "c.png": [("cat", (10, 20, 20, 30))]}


BAD_CSV = {
    "another delimiter": (b"file_name;objects\na.jpg;{}\n", "metadata.csv:1: columns are missing"),
    "empty": (b"", "metadata.csv:1: columns are missing"),
    "only a header": (b"file_name,objects\n", "metadata.csv: the file has no entries"),
    "an unclosed quote": (b'file_name,objects\na.jpg,"{\n', "metadata.csv:2: not a CSV file"),
    "not UTF-8": (b"file_name,objects\na.jpg,\xff\n", "metadata.csv:2: not UTF-8"),
    "too few columns": (b"file_name,objects\na.jpg\n", "metadata.csv:2: invalid entry: expected 2 columns, found 1"),
    "no objects": (b"file_name,objects\na.jpg,\n", "metadata.csv:2: no objects"),
    "not JSON": (b"file_name,objects\na.jpg,cat 1 2 3 4\n", "metadata.csv:2: not JSON"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_a_bad_csv_file_is_an_error_with_its_line(case, tmp_path):
    data, words = BAD_CSV[case]
    image_folder(tmp_path)
    (tmp_path / "images" / "metadata.csv").write_bytes(data)
    with pytest.raises(DataError, match=words):
        provided(tmp_path, {**ENTRY, "metadata": {"train": "images/metadata.csv"}})


BAD = {
    "an unknown class index": (
        row([[1, 2, 3, 4]], [2]),
        "annotation",
        "unknown category",
        r"objects\.categories\[0\]: 2",
    ),
    "a negative class index": (row([[1, 2, 3, 4]], [-1]), "annotation", "unknown category", "-1"),
    "an unknown name": (row([[1, 2, 3, 4]], ["cow"]), "annotation", "unknown category", "cow"),
    "no category": (row([[1, 2, 3, 4]], [None]), "annotation", "missing category", "None"),
    "a negative size": (row([[9, 2, -3, 4]], [0]), "annotation", "negative size", "not negative"),
    "NaN": (row([[9, float("nan"), 3, 4]], [0]), "annotation", "non-finite box", "nan"),
    "lists of different lengths": (row([[9, 2, 3, 4]], []), "image", "invalid entry", "1 boxes and 0 categories"),
    "no boxes": ({"file_name": "a.jpg", "objects": {"categories": []}}, "image", "invalid entry", "bbox"),
    "no objects": ({"file_name": "a.jpg"}, "image", "no objects", "None"),
    "no file name": ({"objects": {"bbox": [], "categories": []}}, "image", "invalid entry", "file_name"),
    "a missing image": (row([], [], "z.jpg"), "image", "missing image", "z"),
    "a file outside": (row([], [], "../../a.jpg"), "image", "file name outside the image folders", ""),
    "two rows for one image": (row([], [], "c.png"), "image", "several entries for one image", ""),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_an_error_with_its_line_or_a_counted_skip(case, read):
    bad, kind, reason, words = BAD[case]
    good, names = row([[1, 2, 3, 4]], [1], "c.png"), ["cat", "dog"]
    with pytest.raises(DataError, match=rf"metadata\.jsonl:2: {reason}(.|\n)*{words}"):
        read(good, bad, categories=names)
    content = read(good, bad, categories=names, on_bad="skip")
    assert skipped(content) == [(kind, reason, 2)]
    assert boxes(content)["c.png"] == [("dog", (1, 2, 3, 4))]


def test_numbers_without_names_are_bad(read):
    with pytest.raises(DataError, match="0 is a number; declare the category names"):
        read(row([[1, 2, 3, 4]], [0]))


def test_boxes_beyond_the_declared_unit_are_bad(read):
    with pytest.raises(DataError, match=r"box outside its unit: objects\.bbox\[0\]: expected x in 0\.\.1 "):
        read(row([[0.1, 0.2, 0.95, 0.1]], ["cat"]), box_unit="fractions")
