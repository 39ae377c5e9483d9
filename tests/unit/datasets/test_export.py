"""Export: records and predictions in the formats of other tools, and back through the formats that read them."""

import json
from xml.etree import ElementTree

import pytest
from dataset_cases import convert_to
from format_cases import SIZES, boxes, image_folder, json_lines, provided

from coordexp.cli import main
from coordexp.datasets.export import EXPORT_FORMATS, export, open_export
from coordexp.datasets.export_objects import fiftyone_fields, fiftyone_samples, supervision_detections
from coordexp.runtime.errors import ConfigError, DataError

TRUTH = {
    "a.jpg": [("cat", (10.25, 20.5, 30, 40.125)), ("big dog", (100, 60, 60, 60))],
    "sub/b.jpg": [("cat", (0, 0, 200, 100))],
    "c.png": [],
}


@pytest.fixture
def data(tmp_path):
    """A folder of images, and the records of the annotations TRUTH."""
    image_folder(tmp_path)
    lines = []
    for name, objects in TRUTH.items():
        instances = [{"bbox": [x, y, x + w, y + h], "category": label} for label, (x, y, w, h) in objects]
        size = dict(zip(("width", "height"), SIZES[name], strict=True))
        lines.append({"filename": name, **size, "detection": {"instances": instances}})
    (tmp_path / "train.jsonl").write_bytes(json_lines(*lines))
    files = {"annotations": {"train": "train.jsonl"}, "image_dirs": {"train": ["images"]}}
    provided(tmp_path, {"format": "odvg", "categories": ["cat", "big dog"], **files})
    convert_to(tmp_path / "work" / "train.source.json", tmp_path / "out")
    return tmp_path


@pytest.fixture
def predictions(data):
    """A file of predictions for two of the images."""
    found = [("cat", [0.1, 0.2, 0.3, 0.4], 0.9), ("zebra", [0, 0, 0.5, 1], 0.2), ("cat", [0.5, 0.5, 0.5, 0.9], 0.8)]
    detections = [{"desc": desc, "norm": norm, "score": score} for desc, norm, score in found]
    rest = {"protocol": "", "finish": "stop", "text": ""}
    lines = [{"image_id": 1, "source_width": 160, "source_height": 120, "detections": detections, **rest}]
    lines += [{"image_id": 3, "source_width": 64, "source_height": 64, "detections": [], **rest}]
    (data / "predictions.jsonl").write_bytes(json_lines(*lines))
    return data / "predictions.jsonl"


BACK = {
    "coco": {"annotations": {"train": "annotations.json"}, "image_dirs": {"train": ["images"]}},
    "yolo": {"splits": {"train": "train"}},
    "odvg": {
        "annotations": {"train": "annotations.jsonl"},
        "image_dirs": {"train": ["images"]},
        "label_map": "label_map.json",
    },
    "voc": {
        "splits": {"train": "ImageSets/Main/default.txt"},
        "categories": ["cat", "big dog"],
        "one_based": True,
        "images": "images",
    },
}


@pytest.mark.parametrize("target", BACK)
def test_exported_records_are_read_again_as_the_same_boxes(target, data):
    counts = export(data / "out" / "train.jsonl", target, data / "back", image_dirs=[data / "images"])
    assert counts == {"images": 3, "boxes": 3}
    content = provided(data / "back", {"format": target, **BACK[target]})
    found = {name.removeprefix("images/"): rows for name, rows in boxes(content).items()}
    assert set(found) == set(TRUTH)
    for name, rows in TRUTH.items():
        assert [label for label, _ in found[name]] == [label for label, _ in rows]
        for (_, box), (_, expected) in zip(found[name], rows, strict=True):
            assert box == pytest.approx(expected, abs=0.02)


def test_category_ids_and_image_ids_are_those_of_the_records(data):
    export(data / "out" / "train.jsonl", "coco", data / "back")
    content = json.loads((data / "back" / "annotations.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "big dog"}]
    assert [image["id"] for image in content["images"]] == [1, 2, 3]
    assert not (data / "back" / "images").exists()


def test_predictions_keep_their_scores_and_new_names_get_new_ids(data, predictions):
    counts = export(predictions, "coco", data / "back", records=data / "out" / "train.jsonl", min_score=0.1)
    content = json.loads((data / "back" / "annotations.json").read_text())
    assert counts == {"images": 2, "boxes": 2, "boxes without area": 1}
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "c.png"]
    assert content["categories"][-1] == {"id": 3, "name": "zebra"}
    assert [a["score"] for a in content["annotations"]] == [0.9, 0.2]
    assert content["annotations"][0]["bbox"] == pytest.approx([16, 24, 32, 24])


def test_label_studio_tasks_have_boxes_in_per_cent(data, predictions):
    export(predictions, "label_studio", data / "back", records=data / "out" / "train.jsonl", min_score=0.5)
    tasks = json.loads((data / "back" / "tasks.json").read_text())
    assert [task["data"]["image"].rpartition("=")[2] for task in tasks] == ["images/a.jpg", "images/c.png"]
    [result] = tasks[0]["predictions"][0]["result"]
    assert result["value"] == {
        "x": pytest.approx(10),
        "y": pytest.approx(20),
        "width": pytest.approx(20),
        "height": pytest.approx(20),
        "rotation": 0,
        "rectanglelabels": ["cat"],
    }
    assert result["score"] == 0.9 and result["original_width"] == 160
    view = ElementTree.parse(data / "back" / "label_config.xml").getroot()
    assert [label.get("value") for label in view.iter("Label")] == ["cat", "big dog", "zebra"]
    assert {view.find("RectangleLabels").get("name"), view.find("Image").get("name")} == {
        result["from_name"],
        result["to_name"],
    }


def test_the_command_prints_what_it_left_out(data, predictions, capsys):
    options = ["--records", str(data / "out" / "train.jsonl"), "--min-score", "0.5", "--images", str(data / "images")]
    assert main(["export", str(predictions), "--to", "yolo", "--out", str(data / "back"), *options]) == 0
    printed = capsys.readouterr().out
    assert "images: 2" in printed and "left out: 1 boxes with a score below 0.5" in printed
    assert (data / "back" / "labels" / "a.txt").read_text() == "0 0.20000000 0.30000000 0.20000000 0.20000000\n"
    assert (data / "back" / "labels" / "c.txt").read_text() == ""


def test_crowds_are_kept_by_coco_and_counted_elsewhere(data):
    path = data / "out" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["objects"][0]["iscrowd"] = True
    path.write_bytes(json_lines(*rows))
    assert export(path, "coco", data / "a") == {"images": 3, "boxes": 3}
    assert export(path, "odvg", data / "b") == {"images": 3, "boxes": 2, "crowds": 1}
    content = json.loads((data / "a" / "annotations.json").read_text())
    assert [a["iscrowd"] for a in content["annotations"]] == [1, 0, 0]


def test_the_labels_of_an_image_in_a_folder_called_images_are_where_ultralytics_looks(data):
    path = data / "out" / "train.jsonl"
    path.write_text(path.read_text().replace('"file_name":"a.jpg"', '"file_name":"images/a.jpg"'))
    export(path, "yolo", data / "back")
    assert (data / "back" / "images" / "labels" / "a.txt").is_file()


def test_export_is_deterministic(data):
    for name in EXPORT_FORMATS:
        for copy in "ab":
            export(data / "out" / "train.jsonl", name, data / f"{name}.{copy}")
        first, second = (sorted((data / f"{name}.{copy}").rglob("*")) for copy in "ab")
        assert [p.read_bytes() for p in first if p.is_file()] == [p.read_bytes() for p in second if p.is_file()]


def test_two_images_never_share_a_file_of_labels(data):
    path = data / "out" / "train.jsonl"
    path.write_text(path.read_text().replace('"file_name":"c.png"', '"file_name":"a.png"'))
    for target in ("yolo", "voc"):
        with pytest.raises(DataError, match=r"a\.png: two images have the same name except for the suffix"):
            export(path, target, data / "back")
        assert not (data / "back").exists()


def edit(old, new, file="out/train.jsonl"):
    def change(data):
        path = data / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


BAD = {
    "a name outside": (edit('"file_name":"a.jpg"', '"file_name":"../a.jpg"'), r"train\.jsonl:1: metadata\.file_name"),
    "no name": (edit('"file_name":"a.jpg",', ""), r"train\.jsonl:1: metadata\.file_name"),
    "two ids": (edit('"desc":"big dog","category_id":2', '"desc":"cat","category_id":2'), "'cat' has two ids"),
    "one id twice": (edit('"desc":"big dog","category_id":2', '"desc":"dog","category_id":1'), "same id 1"),
    "not a record": (edit('"width":', '"wide":'), r"train\.jsonl:1: not a record"),
    "an invalid record": (edit('"desc":"big dog"', '"desc":" "'), r"train\.jsonl:1: objects\[1\]\.desc: is empty"),
    "an empty file": (lambda data: (data / "out" / "train.jsonl").write_text(""), "the file is empty"),
    "not JSON": (lambda data: (data / "out" / "train.jsonl").write_bytes(b"\xff\n"), r"train\.jsonl:1: not JSON"),
    "a missing file": (lambda data: (data / "out" / "train.jsonl").unlink(), "cannot be read"),
    "a missing image": (lambda data: (data / "images" / "c.png").unlink(), r"c\.png: image not found"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_records_are_errors_and_leave_no_folder(case, data):
    change, words = BAD[case]
    change(data)
    with pytest.raises(DataError, match=words):
        export(data / "out" / "train.jsonl", "coco", data / "back", image_dirs=[data / "images"])
    assert not (data / "back").exists()


BAD_PREDICTIONS = {
    '"image_id": 3': ('"image_id": 4', r"predictions\.jsonl:2: image_id: no record of the image"),
    "0.1, 0.2, 0.3, 0.4": ("0.1, 0.2", r"predictions\.jsonl:1: detections\.norm: not a box"),
    '"finish": "stop"': ('"finish": "never"', r"predictions\.jsonl:1: not a prediction"),
}


@pytest.mark.parametrize("old", BAD_PREDICTIONS)
def test_bad_predictions_are_errors(old, data, predictions):
    new, words = BAD_PREDICTIONS[old]
    edit(old, new, "predictions.jsonl")(data)
    with pytest.raises(DataError, match=words):
        export(predictions, "coco", data / "back", records=data / "out" / "train.jsonl")


def test_predictions_need_records_and_records_do_not(data, predictions):
    with pytest.raises(DataError, match="add --records"):
        export(predictions, "coco", data / "back")
    with pytest.raises(DataError, match="omit --records"):
        export(data / "out" / "train.jsonl", "coco", data / "back", records=data / "out" / "train.jsonl")


def test_an_existing_folder_is_not_replaced(data):
    (data / "mine").mkdir()
    (data / "mine" / "file").touch()
    with pytest.raises(DataError, match="exists and is not empty"):
        export(data / "out" / "train.jsonl", "coco", data / "mine")
    assert (data / "mine" / "file").exists()


def test_supervision_gets_the_same_boxes(data, predictions):
    supervision = pytest.importorskip("supervision")
    content = open_export(predictions, data / "out" / "train.jsonl")
    (image, found), (_, empty) = supervision_detections(content)
    assert isinstance(found, supervision.Detections) and image.file_name == "a.jpg"
    assert found.xyxy[0] == pytest.approx([16, 24, 48, 48]) and found.confidence.tolist() == pytest.approx([0.9, 0.2])
    assert found.data["class_name"].tolist() == ["cat", "zebra"] and found.class_id.tolist() == [0, 2]
    assert len(empty) == 0
    merged = supervision.Detections.merge([found, empty])
    assert len(merged[merged.confidence > 0.5]) == 1


def test_supervision_reads_the_exported_dataset(data):
    supervision = pytest.importorskip("supervision")
    export(data / "out" / "train.jsonl", "coco", data / "back", image_dirs=[data / "images"])
    folder, file = data / "back" / "images", data / "back" / "annotations.json"
    dataset = supervision.DetectionDataset.from_coco(str(folder), str(file))
    assert dataset.classes == ["cat", "big dog"] and len(dataset) == 3
    assert sum(len(annotations) for _, _, annotations in dataset) == 3


def test_fiftyone_fields_are_fractions(data):
    content = open_export(data / "out" / "train.jsonl")
    fields = fiftyone_fields(next(content.images()))
    assert [row["label"] for row in fields] == ["cat", "big dog"] and "confidence" not in fields[0]
    assert fields[0]["bounding_box"] == pytest.approx([10.25 / 160, 20.5 / 120, 30 / 160, 40.125 / 120])


def test_fiftyone_samples_hold_the_detections(data, predictions):
    fiftyone = pytest.importorskip("fiftyone")
    content = open_export(predictions, data / "out" / "train.jsonl")
    samples = list(fiftyone_samples(content, [data / "images"]))
    assert isinstance(samples[0], fiftyone.Sample) and samples[0].filepath == str(data / "images" / "a.jpg")
    assert [(d.label, d.confidence) for d in samples[0].predictions.detections] == [("cat", 0.9), ("zebra", 0.2)]


def test_a_library_that_is_not_installed_is_an_error_with_the_command(data, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fiftyone", None)
    with pytest.raises(ConfigError, match="pip install fiftyone"):
        next(fiftyone_samples(open_export(data / "out" / "train.jsonl"), [data]))
