"""Generated phrases: their answers agree with a reading of the text against the annotated boxes; every option."""

import collections
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from coordexp.datasets.formats import open_format
from coordexp.runtime.errors import ConfigError

WORDS = {"leftmost": (0, -1), "rightmost": (0, 1), "topmost": (1, -1), "bottommost": (1, 1)}
RELATIONS = {"to the left of": (0, -1), "to the right of": (0, 1), "above": (1, -1), "below": (1, 1)}
COLORS, KINDS = ("red", "green", "blue", "yellow"), ("square", "triangle")


def made(folder, split="train", **options):
    entry = {"format": "shapes_refer", "splits": {split: {"count": 60, "seed": 3, **options}}}
    source = open_format("shapes_refer", entry).provide(split, folder, folder)
    return source, json.loads(Path(source.annotations).read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made(tmp_path_factory.mktemp("refer"), count=150)[1]


def phrases(data):
    """(phrase, annotations of its image) of every phrase."""
    own = collections.defaultdict(list)
    for annotation in data["annotations"]:
        own[annotation["image_id"]].append(annotation)
    return [(phrase, own[image["id"]]) for image in data["images"] for phrase in image["phrases"]]


def read(text, shapes, names):
    """Ids of the shapes that a phrase describes, by its words and the boxes alone."""
    match = re.fullmatch(rf"the (.+) ({'|'.join(RELATIONS)}) the (.+)", text)
    if match:
        noun, relation, other = match.groups()
        if other.split()[-1] == "one":
            other = f"{other.removesuffix('one')}{noun.split()[-1]}"
        (anchor,) = matching(other, shapes, names)
        axis, direction = RELATIONS[relation]
        return {
            shape["id"]
            for shape in matching(noun, shapes, names)
            if shape is not anchor and direction * (center(shape, axis) - center(anchor, axis)) > 0
        }
    first, *rest = text.split()
    if first == "all":
        rest[-1] = rest[-1].removesuffix("s")
        return {shape["id"] for shape in matching(" ".join(rest), shapes, names)}
    if rest[0] in WORDS:
        axis, direction = WORDS[rest[0]]
        found = matching(" ".join(rest[1:]), shapes, names)
        return {max(found, key=lambda shape: direction * center(shape, axis))["id"]} if found else set()
    return {shape["id"] for shape in matching(" ".join(rest), shapes, names)}


def matching(noun, shapes, names):
    words = noun.split()
    return [shape for shape in shapes if all(w in ("shape", *attributes(shape, names)) for w in words)]


def attributes(shape, names):
    size = "small" if max(shape["bbox"][2:]) < 0.26 * 96 else "large"
    return (size, *names[shape["category_id"]].split("_"))


def center(shape, axis):
    return shape["bbox"][axis] + shape["bbox"][axis + 2] / 2


def test_every_phrase_is_answered_as_a_reader_would(data):
    names = {category["id"]: category["name"] for category in data["categories"]}
    kinds = collections.Counter()
    for phrase, shapes in phrases(data):
        assert read(phrase["text"], shapes, names) == set(phrase["annotation_ids"]), phrase
        kinds[min(len(phrase["annotation_ids"]), 2)] += 1
        kinds["extreme"] += any(word in phrase["text"].split() for word in WORDS)
        kinds["relation"] += any(f" {word} " in phrase["text"] for word in RELATIONS)
    total = kinds[0] + kinds[1] + kinds[2]
    assert 500 < total <= 600 and min(kinds["extreme"], kinds["relation"]) > 60
    assert kinds[0] / total == pytest.approx(0.2, abs=0.06) and kinds[2] / total == pytest.approx(0.15, abs=0.06)


def test_compared_positions_differ_clearly(data):
    names = {category["id"]: category["name"] for category in data["categories"]}
    for phrase, shapes in phrases(data):
        word = phrase["text"].split()[1]
        if word in WORDS and phrase["annotation_ids"]:
            axis, direction = WORDS[word]
            others = matching(" ".join(phrase["text"].split()[2:]), shapes, names)
            first, second = sorted(direction * center(shape, axis) for shape in others)[-2:][::-1]
            assert first - second >= 0.1 * 96 - 0.02


def test_shapes_are_complete_and_do_not_touch(tmp_path):
    source, data = made(tmp_path, count=20, objects=(4, 4))
    for image in data["images"]:
        assert Image.open(Path(source.image_dirs[0]) / image["file_name"]).size == (96, 96)
    for a in data["annotations"]:
        assert min(a["bbox"]) >= 0 and a["bbox"][0] + a["bbox"][2] <= 96 and a["bbox"][1] + a["bbox"][3] <= 96


def test_same_options_same_bytes_and_a_larger_count_only_adds(tmp_path):
    _, few = made(tmp_path / "a", count=5)
    _, more = made(tmp_path / "b", count=9)
    assert few["images"] == more["images"][:5]
    assert made(tmp_path / "c", count=5)[1] == few
    assert (tmp_path / "a/images/train/000003.png").read_bytes() == (
        tmp_path / "b/images/train/000003.png"
    ).read_bytes()


def test_fractions_of_phrases_are_options(tmp_path):
    _, absent = made(tmp_path / "absent", count=10, absent=1.0, several=0.0)
    assert all(not phrase["annotation_ids"] for phrase, _ in phrases(absent))
    _, several = made(tmp_path / "several", count=10, absent=0.0, several=1.0, phrases=1, objects=(4, 5))
    assert all(len(phrase["annotation_ids"]) > 1 for phrase, _ in phrases(several))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objects": [3, 2]}, "smaller number first"),
        ({"small_size": [0.1, 0.4], "large_size": [0.3, 0.5]}, "two separate ranges"),
        ({"several": 0.7, "absent": 0.5}, "at most 1"),
    ],
)
def test_impossible_options_are_refused(options, message, tmp_path):
    with pytest.raises((ConfigError, ValueError), match=message):
        made(tmp_path, **options)
