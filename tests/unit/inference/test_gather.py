"""Merging shards: their order, and shards that are incomplete."""

from __future__ import annotations

import pytest
from inference_helpers import read

from coordexp.inference.gather import gather
from coordexp.records import Prediction, software_file
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import read_json, write_json, write_jsonl


def shard(path, image_ids) -> None:
    write_jsonl(path, [Prediction(n, 640, 480, "open", "stop", "", []) for n in image_ids])


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_shards_are_merged_in_the_order_of_the_records(tmp_path, shards):
    paths = [tmp_path / f"{n}.jsonl" for n in range(shards)]
    for n, path in enumerate(paths):
        shard(path, range(n, 5, shards))
    assert gather(paths, tmp_path / "all.jsonl") == 5
    assert [row.image_id for row in read(tmp_path / "all.jsonl")] == list(range(5))


def test_an_incomplete_shard_is_named(records, tmp_path):
    shard(tmp_path / "p.jsonl", range(100, 105))
    data = (tmp_path / "p.jsonl").read_bytes()
    (tmp_path / "p.jsonl").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"p\.jsonl:\d+.*not a prediction"):
        gather([tmp_path / "p.jsonl"], tmp_path / "all.jsonl")
    (tmp_path / "p.jsonl").write_bytes(b"\n".join(data.splitlines()[:3]))
    with pytest.raises(DataError, match="number of predictions"):
        gather([tmp_path / "p.jsonl"], tmp_path / "all.jsonl", records=records)
    assert not (tmp_path / "all.jsonl").exists()


def test_the_software_of_all_shards_is_listed_once(tmp_path):
    shards = [tmp_path / f"{n}.jsonl" for n in range(3)]
    for shard, code in zip(shards, ("a", "b", "a"), strict=True):
        shard.write_text("")
        write_json(software_file(shard), [{"code": code}])
    gather(shards, tmp_path / "all.jsonl")
    assert read_json(software_file(tmp_path / "all.jsonl")) == [{"code": "a"}, {"code": "b"}]
