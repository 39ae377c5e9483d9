"""Prediction of whole files: order, shards, resuming, protocols, bad input."""

from __future__ import annotations

import json

import msgspec
import pytest
import torch
from inference_helpers import NAMES, SIZES, images, read, taught_checkpoint

from coordexp.answers.render import PromptStyle
from coordexp.inference import predict as module
from coordexp.inference.gather import gather
from coordexp.inference.options import PredictOptions
from coordexp.inference.predict import predict
from coordexp.inference.prompts import questions
from coordexp.records import Metadata, Prediction, Record
from coordexp.runtime.errors import ConfigError, DataError

STYLE = PromptStyle()
OPTIONS = PredictOptions(batch_size=2, max_new_tokens=150)


@pytest.fixture(scope="module")
def whole(taught, records, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "predictions.jsonl"
    counts = predict(taught, records, out, OPTIONS, STYLE)
    assert counts["images"] == len(SIZES) and counts["objects"] > 0
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    return read(out)


def test_one_line_a_image_in_the_order_of_the_records(whole):
    assert [row.image_id for row in whole] == [100 + n for n in range(len(SIZES))]
    assert all((row.source_width, row.source_height) == (640, 480) for row in whole)
    for row in whole:
        assert len(row.token_ids) == len(row.token_logprobs) and row.text
        assert row.finish == "stop" and row.detections
        for detection in row.detections:
            assert len(detection.spread) == len(detection.bins) == 4
            parts = detection.score_parts
            assert all(parts[name] <= 0 for name in ("next_logprob", "desc_logprob", "slot_logprob", "slot_logmass"))


def same(a: list[Prediction], b: list[Prediction]) -> None:
    assert [(r.image_id, r.token_ids, r.text) for r in a] == [(r.image_id, r.token_ids, r.text) for r in b]
    scores = [[d.score for r in rows for d in r.detections] for rows in (a, b)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_batch_size_changes_nothing(taught, records, whole, tmp_path):
    predict(taught, records, tmp_path / "p.jsonl", msgspec.structs.replace(OPTIONS, batch_size=5), STYLE)
    same(read(tmp_path / "p.jsonl"), whole)


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_shards_gathered_are_the_whole(taught, records, whole, tmp_path, shards):
    parts = [tmp_path / f"{n}.jsonl" for n in range(shards)]
    for n, part in enumerate(parts):
        predict(taught, records, part, OPTIONS, STYLE, shard=n, shards=shards)
    assert gather(parts, tmp_path / "all.jsonl") == len(SIZES)
    same(read(tmp_path / "all.jsonl"), whole)
    gather(parts, tmp_path / "all.jsonl", records=records)
    with pytest.raises(DataError, match="fit together"):
        gather(parts[::-1], tmp_path / "wrong.jsonl")


def test_a_shard_that_is_cut_off_is_named(taught, records, tmp_path):
    predict(taught, records, tmp_path / "p.jsonl", OPTIONS, STYLE)
    data = (tmp_path / "p.jsonl").read_bytes()
    (tmp_path / "p.jsonl").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"p\.jsonl:\d+.*not a prediction"):
        gather([tmp_path / "p.jsonl"], tmp_path / "all.jsonl")
    (tmp_path / "p.jsonl").write_bytes(b"\n".join(data.splitlines()[:3]))
    with pytest.raises(DataError, match="differ in number"):
        gather([tmp_path / "p.jsonl"], tmp_path / "all.jsonl", records=records)
    assert not (tmp_path / "all.jsonl").exists()


def test_a_killed_shard_goes_on(taught, records, whole, tmp_path, monkeypatch, capsys):
    out, kept = tmp_path / "p.jsonl", tmp_path / ".p.jsonl.rows"
    original, batches = module.Checkpoint.encode, []

    def dying(self, *args):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(1)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(module.Checkpoint, "encode", dying)
        with pytest.raises(KeyboardInterrupt):
            predict(taught, records, out, OPTIONS, STYLE)
    finished = len(kept.read_bytes().splitlines()) - 1
    assert not out.exists() and 0 < finished < len(SIZES)
    kept.write_bytes(kept.read_bytes() + b'{"position": 4, "pred')  # a line that the kill cut off
    counts = predict(taught, records, out, msgspec.structs.replace(OPTIONS, batch_size=1), STYLE)
    assert counts["images"] == len(SIZES) - finished and not kept.exists()
    assert f"going on with {finished} of 5" in capsys.readouterr().err
    same(read(out), whole)


def test_fewer_at_a_time_when_memory_is_full(taught, records, whole, tmp_path, monkeypatch, capsys):
    original, calls = module.Checkpoint.encode, []

    def small(self, images, prompts):
        calls.append(len(images))
        if len(images) > 2 or len(calls) == 3:
            raise torch.OutOfMemoryError("no room")
        return original(self, images, prompts)

    monkeypatch.setattr(module.Checkpoint, "encode", small)
    predict(taught, records, tmp_path / "p.jsonl", msgspec.structs.replace(OPTIONS, batch_size=5), STYLE)
    same(read(tmp_path / "p.jsonl"), whole)
    assert "out of memory with 5 at a time, trying 2" in capsys.readouterr().err and calls[0] == 5


def test_rows_of_other_options_are_not_taken_over(taught, records, tmp_path):
    out = tmp_path / "p.jsonl"
    store = module.ResumableWriter(out, {"other": 1})
    store.add([(0, Prediction(100, 1, 1, "open", "stop", "", []))])
    assert predict(taught, records, out, OPTIONS, STYLE)["images"] == len(SIZES)


def test_image_categories_asks_for_the_objects_of_the_image(taught, records, tmp_path):
    options = msgspec.structs.replace(OPTIONS, protocol="image_categories", restrict_labels=True)
    predict(taught, records, tmp_path / "p.jsonl", options, STYLE)
    rows = read(tmp_path / "p.jsonl")
    assert [bool(row.text) for row in rows] == [False, True, False, True, False]
    assert {d.desc for row in rows for d in row.detections} <= {"cat"}
    assert all(row.protocol == "image_categories" for row in rows)


def test_all_categories_in_chunks_make_one_line(taught, records, tmp_path):
    options = msgspec.structs.replace(OPTIONS, protocol="all_categories", chunk=2, restrict_labels=True)
    predict(taught, records, tmp_path / "p.jsonl", options, STYLE, categories=NAMES)
    rows = read(tmp_path / "p.jsonl")
    assert len(rows) == len(SIZES) and all(row.text.count('{"objects"') == 3 for row in rows)
    assert {d.desc for row in rows for d in row.detections} <= set(NAMES)


def test_questions():
    record = Record(["a.png"], 32, 32, "pixel", [], Metadata(1, 32, 32))
    options = PredictOptions(protocol="all_categories", chunk=2)
    assert [q.categories for q in questions(record, options, ["a", "b", "c"])] == [("a", "b"), ("c",)]
    assert questions(record, PredictOptions(), None) == [(None, None)]
    with pytest.raises(ConfigError, match="categories"):
        questions(record, options, None)


def test_duplicates_are_counted_and_dropped_on_request(taught, records, tmp_path):
    keep = msgspec.structs.replace(OPTIONS, duplicate_iou=1e-9)
    predict(taught, records, tmp_path / "kept.jsonl", keep, STYLE)
    predict(taught, records, tmp_path / "dropped.jsonl", msgspec.structs.replace(keep, drop_duplicates=True), STYLE)
    kept, dropped = read(tmp_path / "kept.jsonl"), read(tmp_path / "dropped.jsonl")
    for a, b in zip(kept, dropped, strict=True):
        assert len(a.detections) - len(b.detections) == b.problems.get("duplicates_dropped", 0)
        assert a.problems.get("duplicates", 0) == b.problems.get("duplicates_dropped", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [("missing", "cannot read"), ("cut", "cannot read"), ("size", r"expected \(160, 96\), found \(96, 96\)")],
)
def test_bad_images_are_named(taught, records, tmp_path, change, message):
    for path in records.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    target = tmp_path / "3.png"
    if change == "missing":
        target.unlink()
    elif change == "cut":
        target.write_bytes(target.read_bytes()[:300])
    else:
        images()[0].save(target)
    with pytest.raises(DataError, match=message) as error:
        predict(taught, tmp_path / "val.jsonl", tmp_path / "p.jsonl", OPTIONS, STYLE)
    assert "3.png" in str(error.value) and "103" in str(error.value)
    assert not (tmp_path / "p.jsonl").exists()


def test_records_in_another_space_are_refused(taught, records, tmp_path):
    row = json.loads(records.read_text().splitlines()[0]) | {"coord_space": "token"}
    (tmp_path / "val.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="coord_space"):
        predict(taught, tmp_path / "val.jsonl", tmp_path / "p.jsonl", OPTIONS, STYLE)


@pytest.mark.slow
def test_integer_coordinates_without_coordinate_tokens(records, tmp_path):
    style = PromptStyle(coordinates="integer")
    model = taught_checkpoint(style)
    predict(model.parent / "plain", records, tmp_path / "untaught.jsonl", OPTIONS, style)  # has no coordinate tokens
    assert len(read(tmp_path / "untaught.jsonl")) == len(SIZES)
    predict(model, records, tmp_path / "p.jsonl", OPTIONS, style)
    rows = read(tmp_path / "p.jsonl")
    assert all("coord" not in row.text for row in rows)
    found = [detection for row in rows for detection in row.detections]
    assert len(found) >= 4
    for detection in found:
        assert detection.norm == pytest.approx([k / 999 for k in detection.bins])
        assert 0 < detection.score < 1 and set(detection.score_parts) == {"desc_logprob", "slot_logprob"}


def test_the_configuration_section_is_understood():
    section = {
        "split": "val",
        "protocol": "open",
        "decode": "local",
        "batch_size": 2,
        "max_new_tokens": 9,
        "shards": 1,
    }
    assert msgspec.convert(section, PredictOptions).decode == "local"
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"decod": "local"}, PredictOptions)
