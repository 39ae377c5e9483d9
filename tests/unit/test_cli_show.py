"""`coordexp show`: the annotations of one image, from every kind of input."""

import json

import numpy as np
import pytest
from folder_cases import SIZES, voc, yolo
from PIL import Image

from coordexp.cli import main


def drawn(path):
    return np.asarray(Image.open(path))


def test_records_of_every_space_show_the_same_boxes(shapes_data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["show", str(shapes_data / "train.jsonl"), "--index", "1"]) == 0
    printed = capsys.readouterr().out
    record = json.loads((shapes_data / "train.jsonl").read_text().splitlines()[1])
    assert f"{len(record['objects'])} objects" in printed
    assert all(f"  {o['desc']}: [" in printed for o in record["objects"])
    plain = np.asarray(Image.open(shapes_data / record["images"][0]))
    assert (drawn("show.png") != plain).any()
    assert main(["show", str(shapes_data / "train.coord.jsonl"), "--index", "1", "--out", "tokens.png"]) == 0
    assert (drawn("tokens.png") == drawn("show.png")).all()
    assert main(["show", str(shapes_data / "train.jsonl"), "--index", "9999"]) == 2
    assert "--index: no such image; expected '0 to 23'" in capsys.readouterr().err


@pytest.mark.parametrize(("dataset", "file"), [(yolo, "labels/train/a.txt"), (voc, "Annotations/a.xml"), (voc, ".")])
def test_a_dataset_is_found_from_its_folder_or_a_file_in_it(dataset, file, tmp_path, capsys):
    dataset(tmp_path / "parts")
    assert main(["show", str(tmp_path / "parts" / file), "--out", str(tmp_path / "out.png")]) == 0
    printed = capsys.readouterr().out
    assert f"a.jpg: {SIZES['a.jpg'][0]}x{SIZES['a.jpg'][1]} pixels, 2 objects" in printed
    assert "  cat: [40.0, 15.0, 60.0, 35.0]" in printed


def test_the_annotation_file_of_one_image_shows_that_image(tmp_path, capsys):
    yolo(tmp_path / "parts")
    assert main(["show", str(tmp_path / "parts/labels/train/b c.txt"), "--out", str(tmp_path / "out.png")]) == 0
    assert "b c.JPG: 40x80 pixels" in capsys.readouterr().out


def test_a_coco_file_with_its_images(tmp_path, capsys):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 2, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [4, 2, 10, 10], "area": 100, "iscrowd": 0},
    ]
    images = [{"id": 1, "file_name": "a.png", "width": 40, "height": 20}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    command = ["show", str(tmp_path / "coco.json"), "--images", str(tmp_path), "--out", str(tmp_path / "out.png")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "  cat: [4.0, 2.0, 14.0, 12.0]" in printed and "problem: annotation 2: " in printed


def test_predictions_are_drawn_over_the_image_of_their_record(shapes_data, tmp_path, capsys):
    record = json.loads((shapes_data / "train.jsonl").read_text().splitlines()[2])
    found = [{"desc": "cat", "norm": [0, 0, 0.5, 0.5], "score": s} for s in (0.9, 0.1)]
    row = {"image_id": record["metadata"]["image_id"], "source_width": 1, "source_height": 1, "protocol": "open"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row | {"finish": "stop", "text": "", "detections": found}))
    command = ["show", str(tmp_path / "p.jsonl"), "--records", str(shapes_data / "train.jsonl")]
    assert main([*command, "--score-threshold", "0.5", "--out", str(tmp_path / "out.png")]) == 0
    printed = capsys.readouterr().out
    assert record["images"][0] in printed and "1 objects" in printed and " 0.900" in printed


def test_an_unknown_file_is_an_error(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("nothing")
    assert main(["show", str(tmp_path / "notes.txt")]) == 2
    assert "no annotations that a format recognises" in capsys.readouterr().err
