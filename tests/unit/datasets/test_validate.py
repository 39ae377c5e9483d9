"""Validation of record files: every violation with its line."""

import json

import msgspec
import pytest
from dataset_cases import annotation_entry, convert_to, draw_image, image_entry, write_dataset

from coordexp.datasets.tokenize import tokenize
from coordexp.datasets.validate import Problem, validate
from coordexp.records import Record
from coordexp.runtime.errors import DataError


def valid_file(tmp_path, space="pixel", count=3):
    """A valid file of `count` records with their images."""
    images = [image_entry(i) for i in range(1, count + 1)]
    boxes = [annotation_entry(i, i, [10 + i, 20, 30, 40]) for i in range(1, count + 1)]
    convert_to(write_dataset(tmp_path, images, boxes), tmp_path / "out")
    if space == "token":
        tokenize(tmp_path / "out" / "train.jsonl", tmp_path / "out" / "train.coord.jsonl")
        return tmp_path / "out" / "train.coord.jsonl"
    return tmp_path / "out" / "train.jsonl"


def edit(path, line, change):
    """Apply `change` to the JSON of one line of the file."""
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    change(rows[line - 1])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("space", ["pixel", "token"])
def test_a_valid_file_has_no_problems(tmp_path, space):
    assert validate(valid_file(tmp_path, space), open_images=True) == []


def set_box(box):
    return lambda row: row["objects"][0].update(bbox_2d=box)


VIOLATIONS = {
    "text": (lambda row: row.update(width="640"), "record", "Expected `int`"),
    "unknown field": (lambda row: row.update(boxes=[]), "record", "unknown field `boxes`"),
    "two images": (lambda row: row.update(images=["a.jpg", "b.jpg"]), "images", "expected one path, found 2"),
    "absolute": (lambda row: row.update(images=["/a.jpg"]), "images", "relative to this file"),
    "absent": (lambda row: row.update(images=["images/no.jpg"]), "images", "does not exist"),
    "size": (lambda row: row.update(width=0), "width/height", "positive sizes, found 0x"),
    "no description": (lambda row: row["objects"][0].update(desc=" "), "objects[0].desc", "is empty"),
    "a token": (lambda row: row["objects"][0].update(desc="a <|coord_5|>"), "objects[0].desc", "contains '<|'"),
    "no geometry": (lambda row: row["objects"][0].pop("bbox_2d"), "objects[0].bbox_2d/poly", "exactly one"),
    "three numbers": (set_box([1, 2, 3]), "objects[0].bbox_2d", "expected 4 numbers, found 3"),
    "outside": (set_box([1, 2, 9999, 30]), "objects[0].bbox_2d", "x in 0.."),
    "turned": (set_box([50, 2, 40, 30]), "objects[0].bbox_2d", "x1 < x2"),
    "tokens": (set_box(["<|coord_1|>"] * 4), "objects[0].bbox_2d", "finite numbers in pixel space"),
    "elsewhere": (set_box([1, 2, 4, 5]), "objects[0].norm", "from the coordinates by"),
    "norm": (lambda row: row["objects"][0].update(norm=[0, 0, 2, 1]), "objects[0].norm", "in [0, 1]"),
    "short norm": (lambda row: row["objects"][0].update(norm=[0, 0]), "objects[0].norm", "expected 4 numbers"),
    "unit": (lambda row: row.update(coord_space="norm1000", objects=[]), "coord_space", "that of line 1 is 'pixel'"),
    "twice": (lambda row: row["metadata"].update(image_id=1), "metadata.image_id", "is also the id of line 1"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_every_violation_is_reported_with_its_line(tmp_path, name):
    change, field, words = VIOLATIONS[name]
    path = valid_file(tmp_path)
    edit(path, 2, change)
    problems = [p for p in validate(path) if (p.line, p.field) == (2, field)]
    assert len(problems) == 1, validate(path)
    assert words in problems[0].problem
    assert all(p.line == 2 for p in validate(path))


def test_all_problems_are_listed(tmp_path):
    path = valid_file(tmp_path)
    edit(path, 1, set_box([1, 2, 4, 5]))
    edit(path, 3, lambda row: row.update(images=["no.jpg"]))
    edit(path, 3, lambda row: row["objects"][0].update(desc=""))
    with path.open("a") as handle:
        handle.write("{broken\n")
    problems = validate(path)
    assert [(p.line, p.field) for p in problems] == [
        (1, "objects[0].norm"),
        (3, "objects[0].desc"),
        (3, "images"),
        (4, "record"),
    ]
    assert str(problems[2]) == "line 3: images: no.jpg does not exist"


def test_tokens_must_be_those_of_the_norm_by_either_codec(tmp_path):
    path = valid_file(tmp_path, "token")
    source = tmp_path / "out" / "train.jsonl"
    tokenize(source, tmp_path / "out" / "legacy.jsonl", "norm1000_legacy")
    assert validate(tmp_path / "out" / "legacy.jsonl") == []
    edit(path, 2, lambda row: row["objects"][0]["bbox_2d"].__setitem__(0, "<|coord_3|>"))
    (problem,) = validate(path)
    assert (problem.line, problem.field) == (2, "objects[0].norm")
    assert "is quantised to" in problem.problem


def test_images_are_opened_on_request(tmp_path):
    path = valid_file(tmp_path)
    folder = tmp_path / "out" / "images" / "images"
    (folder / "0001.jpg").write_bytes((folder / "0001.jpg").read_bytes()[:2000])
    draw_image(40, 30).save(folder / "0003.jpg")
    assert validate(path) == []
    problems = validate(path, open_images=True)
    assert [p.line for p in problems] == [1, 3]
    assert "truncated" in problems[0].problem
    assert "40x30" in problems[1].problem


def test_empty_and_missing_files(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    assert validate(tmp_path / "empty.jsonl") == [Problem(0, "file", "has no records")]
    with pytest.raises(DataError, match=r"no\.jsonl: file not found"):
        validate(tmp_path / "no.jsonl")


def test_text_and_number_ids_are_different_images(tmp_path):
    path = valid_file(tmp_path)
    edit(path, 2, lambda row: row["metadata"].update(image_id="1"))
    assert validate(path) == []
    assert msgspec.json.decode(path.read_bytes().splitlines()[1], type=Record).metadata.image_id == "1"
