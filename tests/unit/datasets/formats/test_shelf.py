"""Generated shelves: deterministic, counts within the range, boxes that contain exactly what is drawn."""

import json
from pathlib import Path

import numpy as np
import pytest

from coordexp.datasets.formats import open_format
from coordexp.datasets.formats.shelf import BACKGROUND, ShelfOptions, draw_shelf, place_books
from coordexp.runtime.errors import ConfigError


def generated(folder, **options):
    """The source of a generated split below `folder`, and its annotations."""
    entry = {"format": "shelf", "splits": {"train": {"count": 6, "seed": 3, **options}}}
    source = open_format("shelf", entry).provide("train", folder, folder)
    return source, json.loads(Path(source.annotations).read_text())


def test_same_options_give_the_same_bytes_and_a_larger_count_only_adds(tmp_path):
    (_, one), (_, two), (_, more) = (generated(tmp_path / name, count=n) for name, n in (("a", 3), ("b", 3), ("c", 5)))
    assert one["annotations"] == two["annotations"] == more["annotations"][: len(one["annotations"])]
    for n in range(1, 4):
        path = f"images/train/{n:06d}.png"
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_an_image_has_one_category_and_its_boxes_do_not_overlap(tmp_path):
    source, data = generated(tmp_path)
    assert source.federated is False
    for image in data["images"]:
        found = [a for a in data["annotations"] if a["image_id"] == image["id"]]
        assert 8 <= len(found) <= 20
        assert len({a["category_id"] for a in found}) == 1
        left, top, width, height = np.array([a["bbox"] for a in found]).T
        assert left[0] >= 0 and (left[1:] > (left + width)[:-1]).all() and (left + width)[-1] <= image["width"]
        assert (width < height / 2).all() and (top > 0).all() and (top + height < image["height"]).all()


def test_a_box_contains_the_pixels_of_its_book():
    options = ShelfOptions(noise=0.0, objects=(3, 3), gap=(0.4, 0.5))
    rng = np.random.default_rng(4)
    shelf = place_books(options, rng)
    drawn = np.asarray(draw_shelf(shelf, options, rng), dtype=float)
    for x1, y1, x2, _ in shelf.boxes:
        row = np.abs(drawn[int(y1) + 4] - BACKGROUND).max(axis=-1) > 40
        columns = np.nonzero(row[int(x1) - 1 : int(x2) + 2])[0] + int(x1) - 1
        assert np.allclose([columns.min(), columns.max() + 1], [x1, x2], atol=1)


def test_a_shelf_without_books_is_drawn():
    options = ShelfOptions(objects=(0, 0))
    rng = np.random.default_rng(0)
    shelf = place_books(options, rng)
    assert shelf.boxes.shape == (0, 4) and draw_shelf(shelf, options, rng).size == (192, 64)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"gap": [0.3, 0.1]}, "gap: expected the smaller value first"),
        ({"height": [0.5, 1.0]}, "height: expected at most 0.9"),
        ({"objects": [8, 80]}, "objects: expected books at least 3 pixels wide, found 1.8 for 80 books in 192 pixels"),
    ],
)
def test_impossible_options_are_refused(options, problem):
    with pytest.raises(ConfigError, match=problem):
        open_format("shelf", {"format": "shelf", "splits": {"train": {}}, **options})
