"""Every format recognises its own folders, and none of the others."""

import json

import pytest

from coordexp.datasets.folder_listing import FolderListing, group_by_split
from coordexp.datasets.formats import FORMATS, open_format


def jsonl(*rows):
    return "\n".join(map(json.dumps, rows)) + "\n"


BOXES = {"bbox": [[0, 0, 9, 9]]}
TURNS = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": '{"bbox_2d": [1, 2, 3, 4], "label": "cat"}'}]
XML = """<annotation><filename>a.jpg</filename><object><name>{}</name>
<bndbox><xmin>{}</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"""
FOLDERS = {
    "voc": {
        "Annotations/a.xml": XML.format("cat", 0),
        "Annotations/b.xml": XML.format("dog", 3),
        "ImageSets/Main/train.txt": "a\n",
        "ImageSets/Main/trainval.txt": "a\nb\n",
        "ImageSets/Main/val.txt": "b\n",
        "ImageSets/Main/cat_train.txt": "a 1\n",
        "JPEGImages/a.jpg": "",
    },
    "yolo": {
        "data.yaml": "train: ../train/images\nval: ../valid/images\ntest:\nnames: [cat]\n",
        "train/images/a.jpg": "",
        "train/labels/a.txt": "0 .5 .5 .1 .1\n",
    },
    "csv": {
        "train/_annotations.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,9,9,cat,1,1,2,2\n",
        "test/_annotations.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,9,9,dog,1,1,2,2\n",
        "train/a.jpg": "",
        "test/a.jpg": "",
    },
    "odvg": {
        "train_od.jsonl": jsonl({"filename": "a.jpg", "height": 9, "width": 9, "detection": {"instances": []}}),
        "label_map.json": '{"0": "cat"}',
        "images/a.jpg": "",
    },
    "ms_swift": {
        "train.jsonl": jsonl({"messages": [], "images": ["images/a.jpg"], "objects": BOXES}),
        "val.jsonl": jsonl({"messages": [], "images": ["images/a.jpg"], "objects": BOXES}),
        "images/a.jpg": "",
    },
    "qwen": {"train.json": json.dumps([{"image": "a.jpg", "conversations": TURNS}], indent=1), "images/a.jpg": ""},
    "imagefolder": {
        f"{split}/metadata.jsonl": jsonl({"file_name": "a.jpg", "objects": {**BOXES, "category": [0]}})
        for split in ("train", "validation")
    },
    "hf": {f"{split}/{name}": "{}" for split in ("train", "test") for name in ("state.json", "dataset_info.json")},
}
EXPECTED = {
    "voc": {
        "splits": {"train": "ImageSets/Main/train.txt", "val": "ImageSets/Main/val.txt"},
        "categories": ["cat", "dog"],
        "annotations": "Annotations",
        "images": "JPEGImages",
        "one_based": False,
    },
    "yolo": {"data": "data.yaml", "splits": {"train": "train", "val": "val"}},
    "csv": {
        "boxes": {"train": "train/_annotations.csv", "test": "test/_annotations.csv"},
        "image_dirs": {"train": ["train"], "test": ["test"]},
        "columns": {"image": "filename", "category": "class", "box": ["xmin", "ymin", "xmax", "ymax"]},
        "box": "xyxy",
        "units": "pixel",
        "categories": ["cat", "dog"],
    },
    "odvg": {
        "annotations": {"train": "train_od.jsonl"},
        "image_dirs": {"train": ["images"]},
        "label_map": "label_map.json",
    },
    "ms_swift": {
        "annotations": {"train": "train.jsonl", "val": "val.jsonl"},
        "image_dirs": {"train": ["."], "val": ["."]},
    },
    "qwen": {"annotations": {"train": "train.json"}, "image_dirs": {"train": ["images"]}, "box_unit": "norm1000"},
    "imagefolder": {
        "metadata": {"train": "train/metadata.jsonl", "val": "validation/metadata.jsonl"},
        "category_key": "category",
    },
    "hf": {"folders": {"train": "train", "test": "test"}},
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_recognised_by_its_own_format_alone(name, tmp_path):
    for file, text in FOLDERS[name].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    listing = FolderListing(tmp_path)
    found = {other: FORMATS[other].detect(listing) for other in FORMATS.names()}
    assert [other for other, proposals in found.items() if proposals] == [name]
    assert found[name][0].options == EXPECTED[name]
    for proposal in found[name]:
        open_format("mine", {"format": name, "root": str(tmp_path), **proposal.options})


def test_a_unit_that_the_files_do_not_state_is_left_to_the_user(tmp_path):
    (tmp_path / "train.json").write_text(FOLDERS["qwen"]["train.json"])
    units = [p.options["box_unit"] for p in FORMATS["qwen"].detect(FolderListing(tmp_path))]
    assert units == ["norm1000", "pixels", "resized_pixels"]


def test_voc_files_do_not_say_where_pixels_are_counted_from(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.xml").write_text(XML.format("cat", 1))
        (tmp_path / split / "a.jpg").write_text("")
    found = [proposal.options for proposal in FORMATS["voc"].detect(FolderListing(tmp_path))]
    assert [options["one_based"] for options in found] == [True, False]
    assert found[0]["splits"] == {"train": "train", "val": "valid"} and found[0]["images"] is None


def test_open_images_is_recognised_by_its_columns(tmp_path):
    columns = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"{split}1.jpg").write_text("")
        row = f"{split}1,x,/m/01g317,1,0.1,0.2,0.3,0.4,0,0,0"
        (tmp_path / f"oidv6-{split}-annotations-bbox.csv").write_text(f"{columns}\n{row}\n")
    (tmp_path / "class-descriptions-boxable.csv").write_text("/m/01g317,Person\n")
    [proposal] = FORMATS["csv"].detect(FolderListing(tmp_path))
    assert proposal.options["image_dirs"] == {"train": ["train"], "val": ["validation"]}
    assert proposal.options["columns"]["box"] == ["XMin", "YMin", "XMax", "YMax"]
    assert proposal.options["class_descriptions"] == "class-descriptions-boxable.csv"
    assert (proposal.options["units"], proposal.options["image_suffix"]) == ("normalised", ".jpg")


@pytest.mark.parametrize(
    ("paths", "groups"),
    [
        (["a_train.json", "b_val.json"], [{"train": "a_train.json", "val": "b_val.json"}]),
        (["all.json"], [{"train": "all.json"}]),
        (["a.json", "b.json"], [{"train": "a.json"}, {"train": "b.json"}]),
        (
            ["x_train.json", "x_test.json", "y_train.json"],
            [{"train": "x_train.json", "test": "x_test.json"}, {"train": "y_train.json"}],
        ),
        ([], []),
    ],
)
def test_files_of_one_kind_are_one_data_set(paths, groups):
    assert group_by_split(paths) == groups
