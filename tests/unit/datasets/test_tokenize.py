"""Stage `coord_tokenize`: tokens come from the unrounded geometry, and only once."""

import pytest
from dataset_cases import convert_to, write_dataset
from hypothesis import given
from hypothesis import strategies as st

from coordexp.datasets.tokenize import to_tokens, tokenize
from coordexp.geometry.norm1000 import encode_box, encode_poly
from coordexp.records import Metadata, Object, Record, coord_bin, read_records
from coordexp.runtime.errors import DataError


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
