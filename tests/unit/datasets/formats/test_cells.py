"""Generated cells: deterministic, counts within the ranges, boxes that contain what is drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coordexp.datasets.formats import open_format
from coordexp.datasets.formats.cells import CATEGORIES, Cell, CellsOptions, draw_cells
from coordexp.runtime.errors import ConfigError


def made(folder, split="train", **options):
    """The source of a generated split below `folder`, and its annotations."""
    entry = {"format": "cells", "splits": {split: {"count": 12, "seed": 3, "image_size": [96, 64], **options}}}
    source = open_format("cells", entry).provide(split, folder, folder)
    return source, json.loads(Path(source.annotations).read_text())


def test_same_options_give_the_same_bytes_and_a_larger_count_only_adds(tmp_path):
    (_, one), (_, two), (_, more) = (made(tmp_path / name, count=n) for name, n in (("a", 4), ("b", 4), ("c", 6)))
    assert one["annotations"] == two["annotations"] == more["annotations"][: len(one["annotations"])]
    for n in range(1, 5):
        path = f"images/train/{n:06d}.jpg"
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_counts_and_boxes_are_within_their_ranges(tmp_path):
    source, data = made(tmp_path, white=[1, 1], platelets=[0, 2], red=[2, 4])
    assert source.federated is False
    assert [c["name"] for c in data["categories"]] == list(CATEGORIES)
    for image in data["images"]:
        found = [a["category_id"] for a in data["annotations"] if a["image_id"] == image["id"]]
        assert found.count(1) == 1
        assert found.count(2) <= 2
        assert 2 <= found.count(3) <= 4
    for x, y, w, h in (a["bbox"] for a in data["annotations"]):
        assert min(x, y) >= 0
        assert min(w, h) > 0
        assert x + w <= 96.01
        assert y + h <= 64.01


def test_a_box_contains_the_pixels_that_its_cell_changes():
    options = CellsOptions(image_size=(96, 64), noise=0.0)
    cell = Cell("RBC", (40.0, 30.0), (24.0, 16.0), 0.6)
    without, drawn = (
        np.asarray(draw_cells(cells, options, np.random.default_rng(5)), dtype=float) for cells in ([], [cell])
    )
    background = without[0, 0]
    changed = np.abs(drawn - drawn[0, 0]).max(axis=-1) > 0.35 * np.abs(drawn[30, 40] - background).max()
    x1, y1, x2, y2 = cell.box
    inside = np.zeros_like(changed)
    inside[int(y1) - 1 : int(y2) + 2, int(x1) - 1 : int(x2) + 2] = True
    ys, xs = np.nonzero(changed & inside)
    assert np.allclose([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], cell.box, atol=2)


def test_a_range_in_the_wrong_order_is_refused():
    entry = {"format": "cells", "red": [4, 2], "splits": {"train": {}}}
    with pytest.raises(ConfigError, match="red: expected the smaller value first"):
        open_format("cells", entry)


def test_pixels_vary_between_images(tmp_path):
    made(tmp_path, count=3)
    means = [np.asarray(Image.open(path)).mean() for path in sorted((tmp_path / "images/train").iterdir())]
    assert len({round(mean) for mean in means}) == 3
