"""PASCAL VOC datasets: lists and folders, one-based pixels, difficult objects; BCCD to the last box."""

import os
from pathlib import Path

import folder_cases as cases
import pytest
from folder_cases import boxes, provided, skipped, voc_object, voc_xml, write
from format_fuzz import CASES_IN_CI, fuzz

from coordexp.datasets.download import provide
from coordexp.runtime.errors import ConfigError, DataError

EXPECTED = [
    ("a.jpg", "cat", [40, 15, 20, 20], 0),
    ("a.jpg", "dog", [5, 5, 10, 10], 0),
    ("b c.JPG", "dog", [0, 0, 20, 20], 1),
    ("b c.JPG", "cat", [0, 0, 40, 80], 0),
]
BCCD = Path(os.environ.get("COORDEXP_BCCD", Path(__file__).parents[5] / "shared/bccd"))


def test_one_based_inclusive_pixels_become_edges_and_difficult_objects_are_ignored(tmp_path):
    content = provided(cases.voc(tmp_path / "own"), tmp_path / "own")
    assert boxes(content) == EXPECTED
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "b c.JPG", "empty.png"]


def test_zero_based_edges_and_difficult_objects_are_kept_on_request(tmp_path):
    entry = {**cases.voc(tmp_path / "own"), "one_based": False, "difficult": "keep"}
    found = boxes(provided(entry, tmp_path / "own"))
    assert found[0] == ("a.jpg", "cat", [41, 16, 19, 19], 0) and found[2] == ("b c.JPG", "dog", [1, 1, 19, 19], 0)


def test_annotations_next_to_images_as_roboflow_exports_them(tmp_path):
    root = tmp_path / "own"
    entry = cases.voc(root)
    (root / "JPEGImages").rename(root / "train")
    for file in (root / "Annotations").iterdir():
        file.rename(root / "train" / file.name)
    content = provided({**entry, "splits": {"train": "train"}, "images": None}, root)
    assert boxes(content) == EXPECTED and len(content["images"]) == 3


def test_images_are_found_by_their_annotation_file_if_filename_names_none(tmp_path):
    root = tmp_path / "own"
    entry = cases.voc(root)
    write(root / "Annotations/a.xml", voc_xml("C:\\data\\A.BMP", (0, 0), voc_object("cat", (41, 16, 60, 35))))
    assert boxes(provided(entry, root))[0] == EXPECTED[0]


def test_lists_with_flags_byte_order_mark_and_windows_line_ends(tmp_path):
    root = tmp_path / "own"
    entry = cases.voc(root)
    write(root / "ImageSets/Main/train.txt", "\ufeffa  1\r\nb c -1\r\n\r\nempty  0")
    assert boxes(provided(entry, root)) == EXPECTED


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (voc_object("fox", (1, 1, 2, 2)), "unknown category"),
        (voc_object("cat", (1, 1, "NaN", 2)), "non-finite number"),
        (voc_object("cat", (1, 1, "x", 2)), "not a number"),
        (voc_object("cat", (9, 1, 2, 2)), "swapped corners"),
        (voc_object("cat", (0, 1, 2, 2)), "coordinate below 1"),
        (voc_object("cat", (900, 1, 901, 2)), "box outside the image"),
        (voc_object("cat", (1, 1, 2, 2), "maybe"), "invalid value of difficult"),
        ("<object><name>cat</name></object>\n", "object without a box"),
        (voc_object("cat", (1, 1, 2, 2)).replace("<ymin>1", "<xmin>1</xmin><ymin>1"), "invalid object"),
    ],
)
def test_a_bad_object_is_an_error_with_its_line_or_counted(tmp_path, item, reason):
    root = tmp_path / "own"
    entry = cases.voc(root)
    write(root / "Annotations/empty.xml", voc_xml("empty.png", (32, 32), item))
    with pytest.raises(DataError, match=rf"Annotations/empty\.xml:4: {reason}"):
        provided(entry, root)
    content = provided(entry, root, "skip")
    assert skipped(content, root) == [("annotation", reason, "Annotations/empty.xml", 4)]
    assert boxes(content) == EXPECTED and len(content["images"]) == 3


def test_bad_lines_of_a_list(tmp_path):
    root = tmp_path / "own"
    entry = cases.voc(root)
    write(root / "ImageSets/Main/train.txt", "a\nnone\n../a\na\nb c\n")
    (root / "JPEGImages/b c.JPG").unlink()
    assert skipped(provided(entry, root, "skip"), root) == [
        ("image", "missing annotation", "ImageSets/Main/train.txt", 2),
        ("image", "path outside the folder", "ImageSets/Main/train.txt", 3),
        ("image", "image listed twice", "ImageSets/Main/train.txt", 4),
        ("image", "missing image", "Annotations/b c.xml", None),
        ("annotation", "image skipped", "Annotations/b c.xml", 4),
        ("annotation", "image skipped", "Annotations/b c.xml", 6),
    ]


def test_bad_files_of_a_folder(tmp_path):
    root = tmp_path / "own"
    cases.draw(root / "train", dict.fromkeys(("a.jpg", "b.jpg", "b.png", "c.jpg", "d.jpg", "e.jpg"), (9, 9)))
    for name in ("a", "a copy", "b", "c", "f"):
        write(root / f"train/{name}.xml", voc_xml("a.jpg" if name == "a copy" else "none.jpg", (9, 9)))
    write(root / "train/c.XML", voc_xml("c.jpg", (9, 9)))
    write(root / "train/d.xml", b"")
    entry = {"format": "voc", "splits": {"train": "train"}, "categories": ["cat"], "one_based": False, "images": None}
    assert skipped(provided(entry, root, "skip"), root) == [
        ("image", "two annotation files for one image", "train/a.xml", None),
        ("image", "ambiguous image", "train/b.xml", None),
        ("image", "two annotation files for one image", "train/c.XML", None),
        ("image", "two annotation files for one image", "train/c.xml", None),
        ("image", "empty file", "train/d.xml", None),
        ("image", "missing image", "train/f.xml", None),
        ("image", "missing annotation", "train/e.jpg", None),
    ]


@pytest.mark.parametrize(("names", "problem"), [(["cat", "Cat"], "same name"), ([], "no categories")])
def test_categories_must_have_different_names(tmp_path, names, problem):
    with pytest.raises(DataError, match=problem):
        provided({**cases.voc(tmp_path / "own"), "categories": names}, tmp_path / "own")


def test_the_convention_of_coordinates_must_be_given(tmp_path):
    entry = cases.voc(tmp_path / "own")
    del entry["one_based"]
    with pytest.raises(ConfigError, match=r"datasets\.own\.one_based: required key is missing"):
        provided(entry, tmp_path / "own")


@pytest.mark.skipif(not BCCD.is_dir(), reason="needs a copy of BCCD (COORDEXP_BCCD)")
def test_every_box_of_bccd_is_converted(tmp_path):
    entry = {"format": "voc", "root": str(BCCD), "categories": ["RBC", "WBC", "Platelets"], "one_based": True}
    entry["splits"] = {split: f"ImageSets/Main/{split}.txt" for split in ("train", "val", "test")}
    counts, without_area = {}, []
    for split in entry["splits"]:
        provide("bccd", entry, split, tmp_path, tmp_path / f"{split}.source.json")
        content = cases.json.loads((tmp_path / f"{split}.annotations.json").read_text())
        counts[split] = (len(content["images"]), len(content["annotations"]))
        without_area += [name for name, _, box, _ in boxes(content) if box[2:] == [0, 0]]
        assert "skipped" not in content
    assert counts == {"train": (205, 2805), "val": (87, 1138), "test": (72, 945)}
    assert sorted(without_area) == ["BloodImage_00338.jpg", "BloodImage_00343.jpg"]


def test_mutated_files_never_cause_a_traceback(tmp_path):
    assert sum(fuzz(cases.voc, tmp_path, CASES_IN_CI).values()) == CASES_IN_CI


@pytest.mark.soak
def test_500_mutated_files_never_cause_a_traceback(tmp_path):
    assert sum(fuzz(cases.voc, tmp_path, 500, seed=1).values()) == 500
