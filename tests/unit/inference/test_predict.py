"""Prediction of files: order, shards, resuming, protocols, bad input."""

from __future__ import annotations

import json

import msgspec
import pytest
import torch
from inference_helpers import NAMES, SIZES, images, read, taught_checkpoint

from coordexp.answers.parse import parse_answer
from coordexp.answers.render import PromptStyle
from coordexp.datasets.images import resample
from coordexp.geometry.resize import grid_size
from coordexp.geometry.slices import SliceOptions
from coordexp.inference import predict as module
from coordexp.inference.calibrate import options_of
from coordexp.inference.gather import gather
from coordexp.inference.options import PredictOptions, score_options
from coordexp.inference.predict import predict
from coordexp.inference.predictor import Predictor
from coordexp.inference.resumable_writer import ResumableWriter
from coordexp.records import Metadata, Prediction, Record, software_file
from coordexp.runtime.errors import ConfigError, DataError
from coordexp.runtime.io import write_jsonl

STYLE = PromptStyle()


OPTIONS = PredictOptions(batch_size=2, max_new_tokens=150)


@pytest.fixture(scope="module")
def complete(taught, records, tmp_path_factory):
    out = tmp_path_factory.mktemp("complete") / "predictions.jsonl"
    counts = predict(taught, records, out, OPTIONS, STYLE)
    assert counts["images"] == len(SIZES) and counts["objects"] > 0
    assert {p.name for p in out.parent.iterdir()} == {out.name, software_file(out).name}
    assert score_options(options_of(out)) == score_options(OPTIONS)
    return read(out)


def test_one_prediction_per_image_in_the_order_of_the_records(complete):
    assert [row.image_id for row in complete] == [100 + n for n in range(len(SIZES))]
    assert all((row.source_width, row.source_height) == (640, 480) for row in complete)
    for row in complete:
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


def test_batch_size_does_not_change_predictions(taught, records, complete, tmp_path):
    predict(taught, records, tmp_path / "p.jsonl", msgspec.structs.replace(OPTIONS, batch_size=5), STYLE)
    same(read(tmp_path / "p.jsonl"), complete)


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_gathered_shards_equal_one_run(taught, records, complete, tmp_path, shards):
    parts = [tmp_path / f"{n}.jsonl" for n in range(shards)]
    for n, part in enumerate(parts):
        predict(taught, records, part, OPTIONS, STYLE, shard=n, shards=shards)
    assert gather(parts, tmp_path / "all.jsonl") == len(SIZES)
    same(read(tmp_path / "all.jsonl"), complete)
    gather(parts, tmp_path / "all.jsonl", records=records)
    with pytest.raises(DataError, match="does not match the other shards"):
        gather(parts[::-1], tmp_path / "wrong.jsonl")


def test_a_killed_shard_resumes(taught, records, complete, tmp_path, monkeypatch, capsys):
    out, kept = tmp_path / "p.jsonl", tmp_path / ".p.jsonl.rows"
    original, batches = Predictor._to_device, []

    def dying(self, *args):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(1)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "_to_device", dying)
        with pytest.raises(KeyboardInterrupt):
            predict(taught, records, out, OPTIONS, STYLE)
    finished = len(kept.read_bytes().splitlines()) - 1
    assert not out.exists() and 0 < finished < len(SIZES)
    kept.write_bytes(kept.read_bytes() + b'{"position": 4, "pred')  # an incomplete last line
    counts = predict(taught, records, out, msgspec.structs.replace(OPTIONS, batch_size=1), STYLE)
    assert counts["images"] == len(SIZES) - finished and not kept.exists()
    assert f"resuming, {finished} of 5 images are done" in capsys.readouterr().err
    same(read(out), complete)


def test_the_batch_is_halved_when_memory_runs_out(taught, records, complete, tmp_path, monkeypatch, capsys):
    original, calls = Predictor._to_device, []

    def small(self, inputs):
        calls.append(len(inputs["input_ids"]))
        if calls[-1] > 2 or len(calls) == 3:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, inputs)

    monkeypatch.setattr(Predictor, "_to_device", small)
    predict(taught, records, tmp_path / "p.jsonl", msgspec.structs.replace(OPTIONS, batch_size=5), STYLE)
    same(read(tmp_path / "p.jsonl"), complete)
    assert "out of memory with 5 answers at a time, retrying with 2" in capsys.readouterr().err and calls[0] == 5


SLICED = msgspec.structs.replace(OPTIONS, slices=SliceOptions(grids=((2, 1),), max_blocks=4, iou=1.0, containment=1.0))


def test_slices_are_predicted_like_images_of_their_own(taught, records, tmp_path):
    predict(taught, records, tmp_path / "sliced.jsonl", SLICED, STYLE)
    rows = read(tmp_path / "sliced.jsonl")
    assert [len(row.slices) for row in rows] == [2] * len(SIZES)
    crops = []
    for n, (image, (width, height), row) in enumerate(zip(images(), SIZES, rows, strict=True)):
        for part, (x1, y1, x2, y2) in enumerate(row.slices):
            crop = image.crop((round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)))
            size = grid_size(*crop.size, "fill", factor=32, max_blocks=4, min_blocks=1)
            resample(crop, size).save(tmp_path / f"{n}-{part}.png")
            crops.append(Record([f"{n}-{part}.png"], *size, "pixel", [], Metadata(len(crops), *size)))
    write_jsonl(tmp_path / "crops.jsonl", crops)
    predict(taught, tmp_path / "crops.jsonl", tmp_path / "separate.jsonl", OPTIONS, STYLE)
    separate = read(tmp_path / "separate.jsonl")
    for n, row in enumerate(rows):
        parts = separate[2 * n : 2 * n + 2]
        assert row.text == "\n".join(part.text for part in parts)
        assert [d.bins for d in row.detections] == [d.bins for part in parts for d in part.detections]
        for detection in row.detections:
            (left, top, right, bottom), norm = row.slices[detection.slice], detection.norm
            assert left <= norm[0] <= norm[2] <= right and top <= norm[1] <= norm[3] <= bottom


def test_each_image_is_loaded_once_for_all_its_slices_and_prompts(taught, records, tmp_path, monkeypatch):
    original, loaded = module.load_image, []
    monkeypatch.setattr(module, "load_image", lambda path, *args: loaded.append(path.name) or original(path, *args))
    options = msgspec.structs.replace(SLICED, protocol="all_categories", chunk=2, restrict_labels=True)
    predict(taught, records, tmp_path / "p.jsonl", options, STYLE, categories=NAMES)
    assert sorted(loaded) == [f"{n}.png" for n in range(len(SIZES))]
    assert all(row.text.count('{"objects"') == 6 for row in read(tmp_path / "p.jsonl"))


def test_a_category_with_grids_of_its_own_is_asked_for_in_these_alone(taught, records, tmp_path):
    slices = SliceOptions(grids=((2, 1),), overlap=0.0, category_grids={"cat": ((1, 1), (2, 1))}, score="mean")
    options = msgspec.structs.replace(OPTIONS, protocol="all_categories", chunk=1, restrict_labels=True, slices=slices)
    predict(taught, records, tmp_path / "p.jsonl", options, STYLE, categories=["cat", "a dog"])
    for row in read(tmp_path / "p.jsonl"):
        assert len(row.slices) == 3 and row.text.count('{"objects"') == 5
        assert all(d.desc == "cat" for d in row.detections if row.slices[d.slice] == [0, 0, 1, 1])


def test_grids_of_an_unknown_category_are_refused(taught, records, tmp_path):
    slices = SliceOptions(grids=((2, 1),), category_grids={"cats": ((1, 1),)})
    options = msgspec.structs.replace(OPTIONS, protocol="all_categories", chunk=1, slices=slices)
    with pytest.raises(ConfigError, match=r"category_grids: unknown category(.|\n)*cat, a dog(.|\n)*cats"):
        predict(taught, records, tmp_path / "p.jsonl", options, STYLE, categories=["cat", "a dog"])


def test_predictions_with_other_slices_are_not_resumed(taught, records, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_jsonl", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict(taught, records, tmp_path / "p.jsonl", SLICED, STYLE)
    whole = predict(taught, records, tmp_path / "p.jsonl", OPTIONS, STYLE)
    assert whole["images"] == len(SIZES) and "resuming" not in capsys.readouterr().err


def test_image_categories_names_the_categories_of_the_image(taught, records, tmp_path):
    options = msgspec.structs.replace(OPTIONS, protocol="image_categories", restrict_labels=True)
    predict(taught, records, tmp_path / "p.jsonl", options, STYLE)
    rows = read(tmp_path / "p.jsonl")
    assert [bool(row.text) for row in rows] == [False, True, False, True, False]
    assert {d.desc for row in rows for d in row.detections} <= {"cat"}
    assert all(row.protocol == "image_categories" for row in rows)


def test_every_phrase_is_asked_and_answered_with_the_phrase(taught, records, tmp_path):
    asked = ["the left cat", 'a "dog"', "the left cat"]
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    lines[1]["phrases"] = [{"text": text, "objects": []} for text in asked]
    (records.parent / "phrases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = msgspec.structs.replace(OPTIONS, protocol="phrases")
    predict(taught, records.parent / "phrases.jsonl", tmp_path / "p.jsonl", options, STYLE)
    rows = read(tmp_path / "p.jsonl")
    assert [row.text.count('{"objects"') for row in rows] == [0, 2, 0, 0, 0]
    assert {d.desc for d in rows[1].detections} == set(asked) and not any(r.detections for r in (rows[0], rows[2]))
    assert all(row.protocol == "phrases" and not row.truncated_phrases for row in rows)
    short = msgspec.structs.replace(options, max_new_tokens=8, samples=2)
    predict(taught, records.parent / "phrases.jsonl", tmp_path / "short.jsonl", short, STYLE)
    assert [row.truncated_phrases for row in read(tmp_path / "short.jsonl")] == [[], asked[:2], [], [], []]


def test_chunks_of_all_categories_make_one_prediction(taught, records, tmp_path):
    options = msgspec.structs.replace(OPTIONS, protocol="all_categories", chunk=2, restrict_labels=True)
    predict(taught, records, tmp_path / "p.jsonl", options, STYLE, categories=NAMES)
    rows = read(tmp_path / "p.jsonl")
    assert len(rows) == len(SIZES) and all(row.text.count('{"objects"') == 3 for row in rows)
    assert {d.desc for row in rows for d in row.detections} <= set(NAMES)


def test_repeats_are_suppressed_on_request(taught, records, tmp_path):
    options = msgspec.structs.replace(OPTIONS, suppress_repeats=True, repeat_iou=1e-9, max_repeats=99)
    predict(taught, records, tmp_path / "suppressed.jsonl", options, STYLE)
    rows = read(tmp_path / "suppressed.jsonl")
    for row in rows:
        written = parse_answer(row.text, "token").objects
        assert len(written) - len(row.detections) == row.problems.get("repeats_suppressed", 0)
        kept = [(d.desc, tuple(d.bins)) for d in row.detections]
        assert kept == [
            pair for n, pair in enumerate(kept) if not any(pair[0] == d and a_copy(pair[1], b) for d, b in kept[:n])
        ]
    assert sum(row.problems.get("repeats_suppressed", 0) for row in rows) > 0


def a_copy(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two boxes overlap at all."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


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
def test_unreadable_images_are_named(taught, records, tmp_path, change, message):
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


def test_records_in_another_space_are_rejected(taught, records, tmp_path):
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


def test_options_are_built_from_the_configuration_section():
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


def test_rows_of_other_options_are_not_reused(taught, records, tmp_path):
    out = tmp_path / "p.jsonl"
    store = ResumableWriter(out, {"other": 1})
    store.add([(0, Prediction(100, 1, 1, "open", "stop", "", []))])
    assert predict(taught, records, out, OPTIONS, STYLE)["images"] == len(SIZES)
