"""YOLO datasets: folders and lists, boxes and polygons; every bad file and line is an error or counted."""

import folder_cases as cases
import pytest
from folder_cases import boxes, provided, skipped, write
from format_fuzz import CASES_IN_CI, fuzz

from coordexp.datasets.download import local_annotations_sha256, provide
from coordexp.datasets.formats.yolo import label_name
from coordexp.runtime.errors import DataError

EXPECTED = [
    ("a.jpg", "cat", [40, 15, 20, 20], 0),
    ("a.jpg", "dog", [5, 5, 10, 10], 0),
    ("b c.JPG", "dog", [0, 0, 20, 20], 0),
    ("b c.JPG", "cat", [0, 0, 40, 80], 0),
]


def test_boxes_and_polygons_become_pixels_and_an_image_without_labels_has_no_objects(tmp_path):
    content = provided(cases.yolo(tmp_path / "own"), tmp_path / "own")
    assert boxes(content) == EXPECTED
    names = [(i["file_name"], i["width"], i["height"]) for i in content["images"]]
    assert names == [(f"images/train/{name}", *size) for name, size in sorted(cases.SIZES.items())]
    polygon = content["annotations"][2]
    assert polygon["segmentation"] == [[0, 0, 20, 0, 20, 20]] and polygon["area"] == 200
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


@pytest.mark.parametrize(
    "data",
    [
        "path: .\ntrain: images/train\nnames: {0: cat, 1: dog}\nnc: 2\n",
        "path: /content/other\ntrain: ../images/train\nnames:\n  1: dog\n  0: cat\n",
        "\ufefftrain: [images\\train]\r\nnames: ['cat', \"dog\"]\r\n",
        "path: images\ntrain: train/\nnames: [cat, dog]",
    ],
)
def test_forms_of_data_yaml(tmp_path, data):
    assert boxes(provided(cases.yolo(tmp_path / "own", data=data), tmp_path / "own")) == EXPECTED


@pytest.mark.parametrize("prefix", ["./images/train/", "images/train/", "images\\train\\", "{root}/images/train/"])
def test_lists_of_images(tmp_path, prefix):
    root = tmp_path / "own"
    entry = cases.yolo(root, data="train: train.txt\nnames: [cat, dog]\n")
    lines = [prefix.format(root=root) + name for name in ("a.jpg", "b c.JPG", "empty.png")]
    write(root / "train.txt", "\ufeff" + "\r\n\r\n".join(lines))
    write(root / "labels/train/of another split.txt", "0 .5 .5 1 1")
    assert boxes(provided(entry, root))[2:] == EXPECTED[2:]


def test_labels_next_to_images_and_folders_within_a_split(tmp_path):
    root = tmp_path / "own"
    entry = cases.yolo(root, {}, "train: data\nnames: [yes, no]\n")
    cases.draw(root / "data", {"x/a.jpg": (100, 50), "b.jpg": (10, 10)})
    write(root / "data/x/a.txt", "1 .5 .5 .2 .4")
    write(root / "data/classes.txt", "yes\nno\n")
    content = provided(entry, root)
    assert boxes(content) == [("a.jpg", "no", [40, 15, 20, 20], 0)] and len(content["images"]) == 2


def test_of_labels_with_keypoints_the_boxes_are_read(tmp_path):
    data = "train: images/train\nnames: [cat]\nkpt_shape: [2, 3]\n"
    entry = cases.yolo(tmp_path / "own", {"a.txt": "0 .5 .5 .2 .4 .1 .1 2 .2 .2 1\n"}, data)
    assert boxes(provided(entry, tmp_path / "own")) == EXPECTED[:1]


def test_the_last_folder_called_images_becomes_labels():
    assert label_name("images/train/a.b.jpg") == "labels/train/a.b.txt"
    assert label_name("images/images/a.jpg") == "images/labels/a.txt"
    assert label_name("my_images/a.jpg") == "my_images/a.txt"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 .5 .5 .1 .1", "unknown class index"),
        ("-1 .5 .5 .1 .1", "unknown class index"),
        ("0.5 .5 .5 .1 .1", "class index is not an integer"),
        ("cat .5 .5 .1 .1", "not a number"),
        ("0 nan .5 .1 .1", "non-finite number"),
        ("0 .5 .5 inf .1", "non-finite number"),
        ("0 .5 .5 -.1 .1", "negative size"),
        ("0 50 25 20 20", "not normalised"),
        ("0 0 0 50 0 50 50", "not normalised"),
        ("0,.5,.5,.1,.1", "not a number"),
        ("0 .5 .5 .1", "wrong number of values"),
        ("0 .5 .5 .1 .1 .9", "wrong number of values"),
        ("0 1_0 .5 .1 .1", "not a number"),
    ],
)
def test_a_bad_line_is_an_error_with_its_line_or_counted(tmp_path, line, reason):
    root = tmp_path / "own"
    entry = cases.yolo(root, {**cases.YOLO_LABELS, "a.txt": f"0 .5 .5 .2 .4\n\n{line}\n"})
    with pytest.raises(DataError, match=rf"labels/train/a\.txt:3: {reason}"):
        provided(entry, root)
    content = provided(entry, root, "skip")
    assert skipped(content, root) == [("annotation", reason, "labels/train/a.txt", 3)]
    assert boxes(content) == [EXPECTED[0], *EXPECTED[2:]]


def test_a_box_without_area_is_left_to_the_conversion(tmp_path):
    entry = cases.yolo(tmp_path / "own", {"a.txt": "0 .5 .5 0 .4\n"})
    assert boxes(provided(entry, tmp_path / "own")) == [("a.jpg", "cat", [50, 15, 0, 20], 0)]


def broken_folder(root):
    """A split with one problem of each kind that concerns files; returns the entry and what is counted."""
    entry = cases.yolo(root, data="train: images/train\nnames: [cat, dog]")
    write(root / "labels/train/lost.txt", "0 .5 .5 .1 .1\n1 .5 .5 .1 .1\n")
    write(root / "labels/train/empty.txt", b"0 .5 .5 .1 .1\n\xff\xfe\n0 .5 .5 .1 .1\n")
    write(root / "images/train/a.png", (root / "images/train/empty.png").read_bytes())
    write(root / "images/train/damaged.jpg", b"no image")
    return entry, [
        ("image", "label file shared by two images", "images/train/a.png", None),
        ("image", "unreadable image", "images/train/damaged.jpg", None),
        ("annotation", "not UTF-8", "labels/train/empty.txt", 2),
        ("image", "missing image", "labels/train/lost.txt", None),
        ("annotation", "image skipped", "labels/train/lost.txt", 1),
        ("annotation", "image skipped", "labels/train/lost.txt", 2),
    ]


def test_every_bad_file_is_an_error_or_counted(tmp_path):
    root = tmp_path / "own"
    entry, expected = broken_folder(root)
    assert skipped(provided(entry, root, "skip"), root) == expected
    with pytest.raises(DataError, match=r"6 problems[\s\S]*label file shared by two images[\s\S]*lost\.txt"):
        provided(entry, root)


def test_bad_lines_of_a_list(tmp_path):
    root = tmp_path / "own"
    entry = cases.yolo(root, data="train: lists/train.txt\nnames: [cat, dog]\n")
    lines = ("./../x.jpg", "images/train/a.jpg", "images/train/none.jpg", "/etc/a.jpg", "images/train/a.jpg")
    write(root / "lists/train.txt", "\n".join(lines))
    assert skipped(provided(entry, root, "skip"), root) == [
        ("image", "path outside the folder", "lists/train.txt", 1),
        ("image", "missing image", "lists/train.txt", 3),
        ("image", "path outside the folder", "lists/train.txt", 4),
        ("image", "image listed twice", "lists/train.txt", 5),
    ]


def test_a_changed_label_is_a_changed_dataset(tmp_path):
    root = tmp_path / "own"
    for data in ("train: images/train\nnames: [cat, dog]\n", "train: list.txt\nnames: [cat, dog]\n"):
        entry = {**cases.yolo(root, data=data), "root": str(root)}
        write(root / "list.txt", "images/train/a.jpg\n")
        source = provide("own", entry, "train", tmp_path / "raw", tmp_path / "train.source.json")
        manifest = tmp_path / "train.source.json"
        assert local_annotations_sha256("own", entry, "train", manifest) == source.original_sha256
        write(root / "labels/train/a.txt", "0 .5 .5 .2 .3\n")
        assert local_annotations_sha256("own", entry, "train", manifest) != source.original_sha256


def test_the_output_is_deterministic(tmp_path):
    first, second = (provided(cases.yolo(tmp_path / name), tmp_path / name) for name in ("one", "two"))
    assert first == second


def test_mutated_files_never_cause_a_traceback(tmp_path):
    assert sum(fuzz(cases.yolo, tmp_path, CASES_IN_CI).values()) == CASES_IN_CI


@pytest.mark.soak
def test_500_mutated_files_never_cause_a_traceback(tmp_path):
    assert sum(fuzz(cases.yolo, tmp_path, 500, seed=1).values()) == 500
