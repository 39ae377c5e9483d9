"""Every way of dropping an image or object is reported on the console, with its number and reason."""

import json

import pytest
from dataset_cases import annotation_entry, balanced, convert_to, draw_image, image_entry, write_dataset

from coordexp.datasets.download import provide

BOX = [40, 30, 60, 60]
DROPPED_OBJECTS = {
    "an unknown category": (annotation_entry(2, 1, BOX, category_id=99), "unknown category"),
    "a crowd": (annotation_entry(2, 1, BOX, iscrowd=1), "crowd"),
    "a box without area": (annotation_entry(2, 1, [40, 30, 0, 60]), "empty box"),
    "a box of negative size": (annotation_entry(2, 1, [40, 30, -5, 60]), "empty box"),
    "a box outside the image": (annotation_entry(2, 1, [500, 500, 5, 5]), "box outside the image"),
    "a normalised box": (annotation_entry(2, 1, [0.1, 0.2, 0.3, 0.4]), "box within 0..1, not in pixels"),
    "a box of three numbers": ({**annotation_entry(2, 1, BOX), "bbox": [1, 2, 3]}, "invalid annotation"),
    "a repeated id": (annotation_entry(1, 1, BOX), "duplicate annotation id"),
    "an unknown image": (annotation_entry(2, 99, BOX), "annotation of an unknown image"),
}


def reported(manifest, out, capfd, **options) -> str:
    """The line about dropped data on the console."""
    stats = convert_to(manifest, out, on_bad="skip", **options)
    assert balanced(stats)
    [line] = [line for line in capfd.readouterr().err.splitlines() if " dropped: " in line]
    return line


@pytest.mark.parametrize("case", DROPPED_OBJECTS)
def test_a_dropped_object_is_reported(tmp_path, capfd, case):
    bad, reason = DROPPED_OBJECTS[case]
    manifest = write_dataset(tmp_path, [image_entry(1)], [annotation_entry(1, 1, BOX), bad])
    assert f"test/train: 1 of 2 objects dropped: {reason} (1 objects)" in reported(manifest, tmp_path / "out", capfd)


DROPPED_IMAGES = {
    "a missing file": ({}, lambda path: path.unlink(), "missing image"),
    "an unreadable file": ({}, lambda path: path.write_bytes(b"no image"), "unreadable image"),
    "a file of another size": ({}, lambda path: draw_image(50, 80).save(path), "size differs from the annotation"),
    "a file with too many pixels": ({}, lambda path: None, "too many pixels"),
    "an entry without size": ({"width": "wide"}, lambda path: None, "invalid image entry"),
    "an image without area": ({"width": 0}, lambda path: None, "impossible size"),
    "an entry without name": ({"file_name": None}, lambda path: None, "no file name"),
    "the file of another entry": ({"file_name": "0001.jpg"}, lambda path: None, "image listed twice"),
    "a repeated id": ({"id": 1}, lambda path: None, "duplicate image id"),
}


@pytest.mark.parametrize("case", DROPPED_IMAGES)
def test_a_dropped_image_is_reported_with_its_objects(tmp_path, capfd, case):
    change, damage, reason = DROPPED_IMAGES[case]
    manifest = write_dataset(tmp_path, [image_entry(1), image_entry(2)], [annotation_entry(k, k, BOX) for k in (1, 2)])
    path = tmp_path / "annotations.json"
    content = json.loads(path.read_text())
    content["images"][1] |= change
    manifest = rewrite(tmp_path, content)
    damage(tmp_path / "images" / "0002.jpg")
    if reason == "too many pixels":
        draw_image(400, 300).save(tmp_path / "images" / "0002.jpg")
    line = reported(manifest, tmp_path / "out", capfd, max_pixels=20_000)
    assert "1 of 2 images and 1 of 2 objects dropped: " in line
    assert f"{reason} (1 images)" in line


def rewrite(folder, content):
    """The manifest of the dataset in `folder` with another annotation file."""
    (folder / "train.source.json").unlink()
    return write_dataset(folder, content["images"], content["annotations"])


def test_dropped_images_without_objects_are_reported(tmp_path, capfd):
    manifest = write_dataset(tmp_path, [image_entry(1), image_entry(2)], [annotation_entry(1, 1, BOX)])
    line = reported(manifest, tmp_path / "out", capfd, keep_empty=False)
    assert "1 of 2 images dropped: no objects (1 images)" in line


def csv_lines(folder):
    (folder / "train.csv").write_text("image,category,x1,y1,x2,y2\n0001.jpg,cat,9,9,80,80\n0001.jpg,cat,9,x,80,80\n")
    columns = {"image": "image", "category": "category", "box": ["x1", "y1", "x2", "y2"]}
    options = {"boxes": {"train": "train.csv"}, "image_dirs": {"train": ["images"]}, "columns": columns}
    return {"format": "csv", "box": "xyxy", "units": "pixel", "categories": ["cat"], **options}, "not a number"


def yolo_lines(folder):
    (folder / "labels").mkdir()
    (folder / "labels" / "0001.txt").write_text("0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n")
    (folder / "data.yaml").write_text("train: images\nnames: [cat]\n")
    return {"format": "yolo", "data": "data.yaml", "splits": {"train": "train"}}, "unknown class index"


def odvg_lines(folder):
    instances = [{"bbox": [9, 9, 80, 80], "category": "cat"}, {"bbox": [80, 9, 9, 80], "category": "cat"}]
    entry = {"filename": "0001.jpg", "width": 160, "height": 120, "detection": {"instances": instances}}
    (folder / "train.jsonl").write_text(json.dumps(entry) + "\n")
    options = {"annotations": {"train": "train.jsonl"}, "image_dirs": {"train": ["images"]}}
    return {"format": "odvg", **options}, "swapped corners"


@pytest.mark.parametrize("write", [csv_lines, yolo_lines, odvg_lines])
def test_a_skipped_line_of_a_format_is_reported(tmp_path, capfd, write):
    (tmp_path / "images").mkdir()
    draw_image(160, 120).save(tmp_path / "images" / "0001.jpg")
    entry, reason = write(tmp_path)
    manifest = tmp_path / "raw" / "train.source.json"
    provide("own", {**entry, "root": str(tmp_path), "on_bad": "skip"}, "train", tmp_path / "raw", manifest)
    line = reported(manifest, tmp_path / "out", capfd)
    assert f"own/train: 1 of 2 objects dropped: {reason} (1 objects)" in line
