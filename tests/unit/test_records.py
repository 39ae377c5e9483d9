"""What happens to records after the conversion: coordinate tokens, the tiny split, validation."""

import json

import msgspec
import numpy as np
import pytest
from dataset_cases import annotation_entry, convert_to, draw_image, image_entry, make_record, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from coordexp.datasets.splits import calibration_split, tiny
from coordexp.datasets.tokenize import to_tokens, tokenize
from coordexp.datasets.validate import Problem, validate
from coordexp.geometry.norm1000 import encode_box, encode_poly
from coordexp.records import Metadata, Object, Record, coord_bin, read_records
from coordexp.runtime.errors import ConfigError, DataError
from coordexp.runtime.io import write_jsonl


@given(st.lists(st.floats(0, 0.99), min_size=4, max_size=4))
def test_tokens_come_from_the_unrounded_geometry(values):
    x1, y1, x2, y2 = (
        min(values[0], values[2]),
        min(values[1], values[3]),
        max(values[0], values[2]),
        max(values[1], values[3]),
    )
    norm = [x1, y1, max(x2, x1 + 0.005), max(y2, y1 + 0.005)]
    coarse = Object("cat", 7, norm, bbox_2d=[0, 0, 3, 2])  # rounded to nearly nothing
    (obj,) = to_tokens(Record(["a.jpg"], 4, 4, "pixel", [coarse], Metadata(1, 4, 4))).objects
    assert [coord_bin(t) for t in obj.bbox_2d] == encode_box(norm)
    assert obj.norm == norm


def test_polygons_and_the_legacy_codec():
    norm = [0.1, 0.1, 0.9, 0.2, 0.5, 0.8]
    poly = Object("cat", 7, norm, poly=[64, 48, 576, 96, 320, 384])
    box = Object("cat", 7, [100 / 640, 100 / 480, 200 / 640, 200 / 480], bbox_2d=[100, 100, 200, 200])
    source = Record(["a.jpg"], 640, 480, "pixel", [poly, box], Metadata(1, 640, 480))
    first, second = to_tokens(source, "norm1000_legacy").objects
    assert [coord_bin(t) for t in first.poly] == encode_poly(norm, "norm1000_legacy", (640, 480))
    assert [coord_bin(t) for t in second.bbox_2d] == [156, 208, 313, 418]
    assert [coord_bin(t) for t in to_tokens(source).objects[1].bbox_2d] == [156, 208, 312, 416]


def test_tokenizing_changes_nothing_else_and_never_happens_twice(tmp_path):
    convert_to(write_dataset(tmp_path), tmp_path / "out")
    source, tokens = tmp_path / "out" / "train.jsonl", tmp_path / "out" / "train.coord.jsonl"
    assert tokenize(source, tokens) == 6
    for before, after in zip(read_records(source, "pixel"), read_records(tokens, "token"), strict=True):
        assert (before.images, before.width, before.metadata) == (after.images, after.width, after.metadata)
        assert [(o.desc, o.norm) for o in before.objects] == [(o.desc, o.norm) for o in after.objects]
    with pytest.raises(DataError, match=r"train.coord.jsonl:1: coord_space: expected 'pixel', found 'token'"):
        tokenize(tokens, tmp_path / "twice.jsonl")
    assert not (tmp_path / "twice.jsonl").exists()


def test_the_tiny_split_is_the_same_in_every_space(tmp_path):
    rows = [make_record(i) for i in range(40)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    tokenize(tmp_path / "a.jsonl", tmp_path / "a.coord.jsonl")
    assert tiny(tmp_path / "a.jsonl", tmp_path / "t.jsonl", 10, 17) == 10
    assert tiny(tmp_path / "a.coord.jsonl", tmp_path / "t.coord.jsonl", 10, 17, "token") == 10
    ids = [
        [r.metadata.image_id for r in read_records(tmp_path / n, s)]
        for n, s in (("t.jsonl", "pixel"), ("t.coord.jsonl", "token"))
    ]
    assert ids[0] == ids[1] == sorted(ids[0])
    assert tiny(tmp_path / "a.jsonl", tmp_path / "all.jsonl", 99, 17) == 40
    assert tiny(tmp_path / "a.jsonl", tmp_path / "other.jsonl", 10, 18) == 10
    assert [r.metadata.image_id for r in read_records(tmp_path / "other.jsonl", "pixel")] != ids[0]
    with pytest.raises(DataError, match="expected 'token', found 'pixel'"):
        tiny(tmp_path / "a.jsonl", tmp_path / "no.jsonl", 10, 17, "token")
    with pytest.raises(ConfigError, match=r"data.tiny.*found 0"):
        tiny(tmp_path / "a.jsonl", tmp_path / "no.jsonl", 0, 17)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=40, unique=True), st.integers(1, 10), st.data())
@settings(max_examples=25, deadline=None)
def test_one_more_image_takes_at_most_one_place(tmp_path_factory, ids, count, data):
    folder = tmp_path_factory.mktemp("tiny")
    added = data.draw(st.integers(0, len(ids) - 1))
    chosen = []
    for name, own in (("less", ids[:added] + ids[added + 1 :]), ("more", ids)):
        write_jsonl(folder / f"{name}.jsonl", [make_record(i) for i in own])
        tiny(folder / f"{name}.jsonl", folder / f"{name}.tiny.jsonl", count, 3)
        chosen.append({r.metadata.image_id for r in read_records(folder / f"{name}.tiny.jsonl", "pixel")})
    assert len(chosen[0] - chosen[1]) <= 1
    assert chosen[1] - chosen[0] <= {ids[added]}


def test_the_tiny_split_is_spread_over_the_file(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [make_record(i) for i in range(400)])
    tiny(tmp_path / "a.jsonl", tmp_path / "t.jsonl", 100, 17)
    ids = np.array([r.metadata.image_id for r in read_records(tmp_path / "t.jsonl", "pixel")])
    assert [15 <= ((ids >= a) & (ids < a + 100)).sum() <= 36 for a in range(0, 400, 100)] == [True] * 4


def test_held_out_images_and_the_rest_are_all_and_the_tiny_split_stays(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [make_record(i) for i in range(40)])
    tokenize(tmp_path / "a.jsonl", tmp_path / "a.coord.jsonl")
    names = ("a.jsonl", "a.coord.jsonl", "calibration.jsonl", "rest.jsonl", "rest.coord.jsonl")
    files = [tmp_path / name for name in names]
    assert calibration_split(*files, 12, 17) == 28
    held, rest, tokens = (
        [r.metadata.image_id for r in read_records(path, space)]
        for path, space in zip(files[2:], ("pixel", "pixel", "token"), strict=True)
    )
    assert len(held) == 12 and sorted(held + rest) == list(range(40)) and tokens == rest
    assert held == sorted(held) and rest == sorted(rest)
    tiny(files[0], tmp_path / "t.jsonl", 28, 17)
    assert {r.metadata.image_id for r in read_records(tmp_path / "t.jsonl", "pixel")} == set(rest)
    for count in (0, 40):
        with pytest.raises(ConfigError, match=f"calibrate.images: .*1 to 39.*found {count}"):
            calibration_split(*files, count, 17)


def valid_file(tmp_path, space="pixel", count=3):
    """A sound file of `count` records with their images."""
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
def test_a_sound_file_has_no_problems(tmp_path, space):
    assert validate(valid_file(tmp_path, space), open_images=True) == []


def set_box(box):
    return lambda row: row["objects"][0].update(bbox_2d=box)


BROKEN = {
    "text": (lambda row: row.update(width="640"), "record", "Expected `int`"),
    "unknown field": (lambda row: row.update(boxes=[]), "record", "unknown field `boxes`"),
    "two images": (lambda row: row.update(images=["a.jpg", "b.jpg"]), "images", "expected one path, found 2"),
    "absolute": (lambda row: row.update(images=["/a.jpg"]), "images", "relative to this file"),
    "absent": (lambda row: row.update(images=["images/no.jpg"]), "images", "does not exist"),
    "size": (lambda row: row.update(width=0), "width/height", "positive sizes, found 0x"),
    "no description": (lambda row: row["objects"][0].update(desc=" "), "objects[0].desc", "is empty"),
    "a token": (lambda row: row["objects"][0].update(desc="a <|coord_5|>"), "objects[0].desc", "holds '<|'"),
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


@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_rule_is_named_with_its_line(tmp_path, name):
    change, field, words = BROKEN[name]
    path = valid_file(tmp_path)
    edit(path, 2, change)
    problems = [p for p in validate(path) if (p.line, p.field) == (2, field)]
    assert len(problems) == 1, validate(path)
    assert words in problems[0].problem
    assert all(p.line == 2 for p in validate(path))


def test_all_problems_are_listed_not_the_first(tmp_path):
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
