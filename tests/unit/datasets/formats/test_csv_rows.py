"""CSV datasets: columns, units and categories as configured; every bad row is an error with its line or counted."""

import folder_cases as cases
import pytest
from folder_cases import boxes, provided, skipped, write
from format_fuzz import CASES_IN_CI, fuzz

from coordexp.runtime.errors import ConfigError, DataError

EXPECTED = [
    ("a.jpg", "cat", [40, 15, 20, 20], 0),
    ("a.jpg", "dog", [5, 5, 10, 10], 0),
    ("b c.JPG", "dog", [0, 0, 20, 20], 1),
    ("b c.JPG", "cat", [0, 0, 40, 80], 0),
]
OPEN_IMAGES = """ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf
a,xclick,/m/01yrx,1,0.4,0.6,0.3,0.7,0,0
a,xclick,/m/0bt9lr,1,0.05,0.15,0.1,0.3,-1,1
"""
OPEN_IMAGES_ENTRY = {
    "columns": {
        "image": "ImageID",
        "category": "LabelName",
        "box": ["XMin", "YMin", "XMax", "YMax"],
        "crowd": "IsGroupOf",
    },
    "units": "normalised",
    "categories": None,
    "class_descriptions": "class-descriptions-boxable.csv",
    "image_suffix": ".jpg",
}


def test_an_image_without_box_has_no_objects(tmp_path):
    content = provided(cases.csv(tmp_path / "own"), tmp_path / "own")
    assert boxes(content) == EXPECTED
    assert [(i["file_name"], i["width"], i["height"]) for i in content["images"]][2] == ("empty.png", 32, 32)


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({"delimiter": ";"}, cases.CSV_ROWS.replace(",", ";")),
        ({}, b"\xef\xbb\xbf" + cases.CSV_ROWS.replace("\n", "\r\n").encode()),
        ({"header": ["image", "category", "x1", "y1", "x2", "y2", "group"]}, cases.CSV_ROWS.partition("\n")[2]),
        ({"image_dirs": {"train": ["other", "."]}}, cases.CSV_ROWS.replace("a.jpg", '".\\images\\a.jpg"')),
        ({"box": "xywh"}, cases.CSV_ROWS.replace("60,35", "20,20").replace("15,15", "10,10")),
        ({"box": "cxcywh"}, cases.CSV_ROWS.replace("40,15,60,35", "50,25,20,20").replace("5,5,15,15", "10,10,10,10")),
    ],
)
def test_forms_of_files(tmp_path, change, rows):
    root = tmp_path / "own"
    entry = {**cases.csv(root, rows), **change}
    (root / "other").mkdir()
    assert boxes(provided(entry, root, "skip"))[:2] == EXPECTED[:2]


def test_the_boxes_of_open_images(tmp_path):
    root = tmp_path / "own"
    entry = {**cases.csv(root, OPEN_IMAGES), **OPEN_IMAGES_ENTRY}
    write(root / "class-descriptions-boxable.csv", '/m/0bt9lr,Dog\n/m/01yrx,"Cat, domestic"\n')
    content = provided(entry, root)
    assert boxes(content) == [
        ("a.jpg", "Cat, domestic", [40, 15, 20, 20], 0),
        ("a.jpg", "Dog", [5, 5, 10, 10], 1),
    ]
    assert content["categories"] == [{"id": 1, "name": "Dog"}, {"id": 2, "name": "Cat, domestic"}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.jpg,fox,1,1,2,2,", "unknown category"),
        ("a.jpg,cat,1,1,nan,2,", "non-finite number"),
        ("a.jpg,cat,1,1,,2,", "not a number"),
        ("a.jpg,cat,9,1,2,2,", "swapped corners"),
        ("a.jpg,cat,900,1,901,2,", "box outside the image"),
        ("a.jpg,cat,1,1,2,2,perhaps", "invalid value of the crowd column"),
        ("a.jpg,cat,1,1,2,2", "wrong number of columns"),
        ("a.jpg;cat;1;1;2;2;", "wrong number of columns"),
    ],
)
def test_a_bad_row_is_an_error_with_its_line_or_counted(tmp_path, row, reason):
    root = tmp_path / "own"
    entry = cases.csv(root, f"{cases.CSV_ROWS}{row}\n")
    with pytest.raises(DataError, match=rf"train\.csv:7: {reason}"):
        provided(entry, root)
    content = provided(entry, root, "skip")
    assert skipped(content, root) == [("annotation", reason, "train.csv", 7)] and boxes(content) == EXPECTED


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.jpg", "missing image"),
        ("../own/images/a.jpg", "path outside the folder"),
        ("/etc/a.jpg", "path outside the folder"),
        ("C:\\a.jpg", "path outside the folder"),
        ("damaged.jpg", "unreadable image"),
        ("", "no file name"),
    ],
)
def test_a_bad_image_is_an_error_or_counted_once_with_all_its_boxes(tmp_path, name, reason):
    root = tmp_path / "own"
    entry = cases.csv(root, f"{cases.CSV_ROWS}{name},cat,1,1,2,2,\n{name},dog,1,1,2,2,\n")
    write(root / "images/damaged.jpg", b"no image")
    with pytest.raises(DataError, match=rf"train\.csv:7: {reason}"):
        provided(entry, root)
    found = skipped(provided(entry, root, "skip"), root)
    assert found[0] == ("image", reason, "train.csv", 7)
    assert found[1:] == [("annotation", "image skipped", "train.csv", line) for line in (7, 8)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("", r"train\.csv: the file is empty"),
        (cases.CSV_ROWS.replace(",", "\t"), r"train\.csv:1: columns are missing or repeated.*'image' once"),
        ("image,image,category,x1,y1,x2,y2,group\n", "columns are missing or repeated.*'image' once"),
        (cases.CSV_ROWS.encode() + b"\xe4.jpg,cat,1,1,2,2,\n", r"train\.csv:7: not UTF-8"),
        (f'{cases.CSV_ROWS}"a.jpg,cat,1,1,2,2,\n', r"train\.csv:7: not CSV"),
        (b"\x00", r"train\.csv:1: not a text file"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, rows, words):
    with pytest.raises(DataError, match=words):
        provided(cases.csv(tmp_path / "own", rows), tmp_path / "own", "skip")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("/m/1,Cat\n/m/2,cat\n", r"names\.csv:2: name\[1\]: two categories have the same name"),
        ("/m/1,Cat\n/m/1,Dog\n", r"names\.csv:2: invalid row"),
        ("/m/1\n", r"names\.csv:1: invalid row"),
        ("", r"names\.csv: name: no categories"),
    ],
)
def test_invalid_class_descriptions(tmp_path, names, words):
    root = tmp_path / "own"
    entry = {**cases.csv(root), "categories": None, "class_descriptions": "names.csv"}
    write(root / "names.csv", names)
    with pytest.raises(DataError, match=words):
        provided(entry, root)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"categories": None}, "expected either categories or class_descriptions"),
        ({"units": "normalized"}, "units"),
        ({"box": "x1y1x2y2"}, "box"),
        ({"delimiter": ",,"}, "delimiter"),
        ({"image_dirs": {"train": []}}, "at least one folder"),
    ],
)
def test_invalid_options(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        provided({**cases.csv(tmp_path / "own"), **change}, tmp_path / "own")


def test_normalised_boxes_in_pixels_and_the_reverse_are_refused(tmp_path):
    entry = cases.csv(tmp_path / "own")
    with pytest.raises(DataError, match=r"train\.csv:2: not normalised"):
        provided({**entry, "units": "normalised"}, tmp_path / "own")


def test_mutated_files_never_cause_a_traceback(tmp_path):
    assert sum(fuzz(cases.csv, tmp_path, CASES_IN_CI).values()) == CASES_IN_CI


@pytest.mark.soak
def test_500_mutated_files_never_cause_a_traceback(tmp_path):
    assert sum(fuzz(cases.csv, tmp_path, 500, seed=1).values()) == 500
