"""The tiny and the calibration split: the same in every space, and stable when images are added."""

import numpy as np
import pytest
from dataset_cases import make_record
from hypothesis import given, settings
from hypothesis import strategies as st

from coordexp.datasets.splits import calibration_split, tiny_split
from coordexp.datasets.tokenize import tokenize
from coordexp.records import read_records
from coordexp.runtime.errors import ConfigError, DataError
from coordexp.runtime.io import write_jsonl


def test_the_tiny_split_is_the_same_in_every_space(tmp_path):
    rows = [make_record(i) for i in range(40)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    tokenize(tmp_path / "a.jsonl", tmp_path / "a.coord.jsonl")
    assert tiny_split(tmp_path / "a.jsonl", tmp_path / "t.jsonl", 10, 17) == 10
    assert tiny_split(tmp_path / "a.coord.jsonl", tmp_path / "t.coord.jsonl", 10, 17, "token") == 10
    ids = [
        [r.metadata.image_id for r in read_records(tmp_path / n, s)]
        for n, s in (("t.jsonl", "pixel"), ("t.coord.jsonl", "token"))
    ]
    assert ids[0] == ids[1] == sorted(ids[0])
    assert tiny_split(tmp_path / "a.jsonl", tmp_path / "all.jsonl", 99, 17) == 40
    assert tiny_split(tmp_path / "a.jsonl", tmp_path / "other.jsonl", 10, 18) == 10
    assert [r.metadata.image_id for r in read_records(tmp_path / "other.jsonl", "pixel")] != ids[0]
    with pytest.raises(DataError, match="expected 'token', found 'pixel'"):
        tiny_split(tmp_path / "a.jsonl", tmp_path / "no.jsonl", 10, 17, "token")
    with pytest.raises(ConfigError, match=r"data.tiny.*found 0"):
        tiny_split(tmp_path / "a.jsonl", tmp_path / "no.jsonl", 0, 17)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=40, unique=True), st.integers(1, 10), st.data())
@settings(max_examples=25, deadline=None)
def test_an_added_image_replaces_at_most_one_other(tmp_path_factory, ids, count, data):
    folder = tmp_path_factory.mktemp("tiny")
    added = data.draw(st.integers(0, len(ids) - 1))
    chosen = []
    for name, own in (("less", ids[:added] + ids[added + 1 :]), ("more", ids)):
        write_jsonl(folder / f"{name}.jsonl", [make_record(i) for i in own])
        tiny_split(folder / f"{name}.jsonl", folder / f"{name}.tiny.jsonl", count, 3)
        chosen.append({r.metadata.image_id for r in read_records(folder / f"{name}.tiny.jsonl", "pixel")})
    assert len(chosen[0] - chosen[1]) <= 1
    assert chosen[1] - chosen[0] <= {ids[added]}


def test_the_tiny_split_is_spread_over_the_file(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [make_record(i) for i in range(400)])
    tiny_split(tmp_path / "a.jsonl", tmp_path / "t.jsonl", 100, 17)
    ids = np.array([r.metadata.image_id for r in read_records(tmp_path / "t.jsonl", "pixel")])
    assert [15 <= ((ids >= a) & (ids < a + 100)).sum() <= 36 for a in range(0, 400, 100)] == [True] * 4


def test_calibration_images_and_the_rest_partition_the_images_and_the_tiny_split_stays_in_training(tmp_path):
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
    tiny_split(files[0], tmp_path / "t.jsonl", 28, 17)
    assert {r.metadata.image_id for r in read_records(tmp_path / "t.jsonl", "pixel")} == set(rest)
    for count in (0, 40):
        with pytest.raises(ConfigError, match=f"calibrate.images: .*1 to 39.*found {count}"):
            calibration_split(*files, count, 17)
