"""Finished predictions survive a kill, and are reused only for the same inputs."""

from __future__ import annotations

import pytest

from coordexp.inference.resumable_writer import ResumableWriter
from coordexp.records import Prediction
from coordexp.runtime.io import write_jsonl

IDENTITY = {"model": "a", "shard": [0, 1]}


def prediction(image_id: int) -> Prediction:
    return Prediction(image_id, 640, 480, "open", "stop", "text", [])


def test_rows_are_written_in_the_order_of_their_positions(tmp_path):
    writer = ResumableWriter(tmp_path / "p.jsonl", IDENTITY)
    writer.add([(2, prediction(12)), (0, prediction(10))])
    writer.add([(1, prediction(11))])
    assert len(writer) == 3 and 1 in writer and 3 not in writer
    write_jsonl(tmp_path / "p.jsonl", writer.ordered(3))
    write_jsonl(tmp_path / "expected.jsonl", map(prediction, (10, 11, 12)))
    assert (tmp_path / "p.jsonl").read_bytes() == (tmp_path / "expected.jsonl").read_bytes()
    writer.remove()
    assert not writer.path.exists()


@pytest.mark.parametrize("garbage", [b"", b'{"position": 4, "pred', b'{"position": 4, "prediction": {}}'])
def test_an_incomplete_last_line_is_dropped(tmp_path, garbage):
    first = ResumableWriter(tmp_path / "p.jsonl", IDENTITY)
    first.add([(0, prediction(10)), (3, prediction(13))])
    complete = first.path.read_bytes()
    first.path.write_bytes(complete + garbage)
    second = ResumableWriter(tmp_path / "p.jsonl", IDENTITY)
    assert len(second) == 2 and 3 in second and 4 not in second
    assert second.path.read_bytes() == complete
    second.add([(1, prediction(11))])
    assert len(ResumableWriter(tmp_path / "p.jsonl", IDENTITY)) == 3


def test_rows_of_another_identity_are_discarded(tmp_path):
    ResumableWriter(tmp_path / "p.jsonl", IDENTITY).add([(0, prediction(10))])
    assert len(ResumableWriter(tmp_path / "p.jsonl", IDENTITY | {"model": "b"})) == 0


def test_a_missing_position_is_an_error(tmp_path):
    writer = ResumableWriter(tmp_path / "p.jsonl", IDENTITY)
    writer.add([(0, prediction(10))])
    with pytest.raises(KeyError):
        list(writer.ordered(2))
