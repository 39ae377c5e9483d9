"""Answers of other servers, loose pictures, overlays and calibration."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from infer_helpers import SIZES, pictures, taught_checkpoint
from PIL import Image

from coordexp.contract import Detection, Metadata, Object, Prediction, Record
from coordexp.errors import DataError
from coordexp.infer import calibrate
from coordexp.infer.checkpoint import Checkpoint
from coordexp.infer.detect import detect
from coordexp.infer.draw import colour_of, draw
from coordexp.infer.options import PredictOptions
from coordexp.infer.predict import predict
from coordexp.infer.served import parse_served
from coordexp.io import read_jsonl, write_jsonl
from coordexp.prompt import PromptStyle

ANSWER = '{"objects": [{"desc": "cat", "bbox_2d": [<|coord_100|>, <|coord_200|>, <|coord_300|>, <|coord_999|>]}]}'


@pytest.fixture(scope="module")
def model():
    return taught_checkpoint(PromptStyle())


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    rows = []
    for n, picture in enumerate(pictures()):
        picture.save(folder / f"{n}.png")
        rows.append(Record([f"{n}.png"], *SIZES[n], "pixel", [], Metadata(n, 640, 480)))
    write_jsonl(folder / "val.jsonl", rows)
    return folder / "val.jsonl"


def read(path) -> list[Prediction]:
    return [msgspec.json.decode(line, type=Prediction) for line in path.read_bytes().splitlines()]


def layouts(text: str, n: int) -> list[dict]:
    chat = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    return [
        {"custom_id": str(n), **chat},
        {"custom_id": str(n), "response": {"status_code": 200, "body": chat}},
        {"custom_id": str(n), "choices": [{"text": text, "finish_reason": "length"}]},
        {"image_id": n, "text": text, "meta_info": {"finish_reason": {"type": "stop"}}},
        {"image_id": n, "generated_text": text + "<|im_end|>"},
    ]


@pytest.mark.parametrize("layout", range(5))
def test_every_layout_is_read(records, tmp_path, layout):
    lines = [layouts(ANSWER, n)[layout] for n in reversed(range(len(SIZES)))]
    write_jsonl(tmp_path / "served.jsonl", lines)
    counts = parse_served(tmp_path / "served.jsonl", records, tmp_path / "p.jsonl")
    assert counts == {"pictures": 5, "detections": 5}
    for n, row in enumerate(read(tmp_path / "p.jsonl")):
        assert row.image_id == n and row.finish == ("length" if layout == 2 else "stop")
        assert row.detections[0].norm == pytest.approx([100 / 999, 200 / 999, 300 / 999, 1.0])
        assert row.detections[0].score == 1.0


def test_log_probabilities_make_scores(records, tmp_path):
    pieces = ['{"objects": [', '{"desc": "', "cat", '", "bbox_2d": [']
    pieces += ["<|coord_1|>", ", ", "<|coord_2|>", ", ", "<|coord_3|>", ", ", "<|coord_4|>", "]}", "]}"]
    content = [
        {"token": piece, "logprob": -0.2 if "coord" in piece else -0.1 if piece == "cat" else 0.0} for piece in pieces
    ]
    body = {"message": {"content": "".join(pieces)}, "logprobs": {"content": content}, "finish_reason": "stop"}
    broken = {**body, "logprobs": {"content": content[1:]}}
    write_jsonl(tmp_path / "served.jsonl", [{"choices": [body]}] * 4 + [{"choices": [broken]}])
    counts = parse_served(tmp_path / "served.jsonl", records, tmp_path / "p.jsonl")
    assert counts["logprobs_unaligned"] == 1
    scores = [row.detections[0].score for row in read(tmp_path / "p.jsonl")]
    assert scores == pytest.approx([math.exp(-0.3)] * 4 + [1.0])


def test_dropped_special_tokens_are_seen(records, tmp_path):
    text = '{"objects": [{"desc": "cat", "bbox_2d": [, , , ]}]}'
    write_jsonl(tmp_path / "served.jsonl", [{"text": text}] * 5)
    counts = parse_served(tmp_path / "served.jsonl", records, tmp_path / "p.jsonl")
    assert counts == {"pictures": 5, "detections": 0, "not_coord_tokens": 5}


def test_plain_generate_and_predict_agree(model, records, tmp_path):
    """The recipe of docs/serving.md for transformers, on the same checkpoint as `predict`."""
    checkpoint = Checkpoint(model, PredictOptions(), PromptStyle())
    inputs = checkpoint.encode(pictures(), [checkpoint.prompt()] * 5)
    generated = checkpoint.model.generate(**inputs, max_new_tokens=300, do_sample=False)
    texts = checkpoint.processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=False)
    write_jsonl(tmp_path / "served.jsonl", [{"text": text} for text in texts])
    parse_served(tmp_path / "served.jsonl", records, tmp_path / "served_p.jsonl")
    predict(model, records, tmp_path / "p.jsonl", PredictOptions(decode="argmax", max_new_tokens=300), PromptStyle())
    pairs = list(zip(read(tmp_path / "served_p.jsonl"), read(tmp_path / "p.jsonl"), strict=True))
    taught = [(a, b) for a, b in pairs if not a.problems]
    assert len(taught) >= 4
    for a, b in taught:
        assert [d.bins for d in a.detections] == [d.bins for d in b.detections]
        assert [d.norm for d in a.detections] == [pytest.approx(d.norm) for d in b.detections]


@pytest.mark.parametrize(
    "lines", [[{"text": ANSWER}] * 4, [{"image_id": 0, "text": ANSWER}] * 5, [{"error": "x"}] * 5, [3] * 5]
)
def test_misfits_are_refused(records, tmp_path, lines):
    write_jsonl(tmp_path / "served.jsonl", lines)
    with pytest.raises(DataError, match=r"served\.jsonl"):
        parse_served(tmp_path / "served.jsonl", records, tmp_path / "p.jsonl")


def test_detect_in_loose_pictures(model, tmp_path):
    big = pictures()[0].resize((300, 200))
    exif = big.getexif()
    exif[0x0112] = 6  # stored lying on its side
    big.save(tmp_path / "a.jpg", exif=exif)
    pictures()[1].convert("L").save(tmp_path / "b.png")
    found = detect(model, [tmp_path / "a.jpg", tmp_path / "b.png"], ["cat", "black cat"], max_blocks=9)
    assert [(f.width, f.height) for f in found] == [(200, 300), (128, 64)]
    for one in found:
        assert len(one.boxes()) == len(one.detections)
        for x1, y1, x2, y2 in one.boxes():
            assert 0 <= x1 <= x2 <= one.width and 0 <= y1 <= y2 <= one.height
    with pytest.raises(DataError, match=r"no\.png"):
        detect(model, [tmp_path / "no.png"])
    with pytest.raises(DataError, match="no picture"):
        detect(model, [])


def test_drawing_marks_the_boxes_and_nothing_else():
    blank = Image.new("RGB", (200, 100), "white")
    found = [Detection("cat", [0.2, 0.5, 0.6, 0.9], 0.9), Detection("dog", [0.7, 0.5, 0.9, 0.9], 0.1)]
    pixels = np.asarray(draw(blank, found, min_score=0.5))
    colour = np.array([int(colour_of("cat")[i : i + 2], 16) for i in (1, 3, 5)])
    assert (pixels[70, 40] == colour).all() and (pixels[50, 80] == colour).all()
    assert (pixels[45:95, 130:190] == 255).all() and (pixels[55:85, 45:115] == 255).all()
    assert (np.asarray(blank) == 255).all()
    triangle = Detection("cat", [0.2, 0.2, 0.8, 0.8], 0.9, poly=[0.2, 0.8, 0.8, 0.8, 0.5, 0.2])
    pixels = np.asarray(draw(blank, [triangle]))
    assert (pixels[79, 100] == colour).all() and (pixels[30, 45] == 255).all()


def synthetic(count: int, seed: int) -> tuple[list[Detection], np.ndarray]:
    """Detections whose chance of being right is a known function of their terms."""
    rng = np.random.default_rng(seed)
    terms = -rng.exponential(1.0, (count, 4))
    spread = rng.uniform(0.001, 0.2, count)
    chance = 1 / (1 + np.exp(-(2 + terms[:, 1] + 1.5 * terms[:, 2] - 8 * spread)))
    names = calibrate.FEATURES[:4]
    rows = []
    for term, width in zip(terms, spread, strict=True):
        parts = dict(zip(names, map(float, term), strict=True)) | {"spread": float(width)}
        rows.append(Detection("cat", [0.0, 0.0, 1.0, 1.0], math.exp(term[1] + term[2]), score_parts=parts))
    return rows, rng.random(count) < chance


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
def test_calibrated_scores_are_frequencies(method):
    fitted = calibrate.fit_detections(*synthetic(4000, 1), method, {})
    held, right = synthetic(4000, 2)
    probability = fitted.probability(held)
    raw = np.array([d.score for d in held])

    def error(scores: np.ndarray) -> float:
        bins = np.minimum((scores * 10).astype(int), 9)
        return sum(abs(scores[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins))

    assert error(probability) < 0.03 and error(raw) > 2 * error(probability)
    if method == "isotonic":
        assert (np.diff(probability[np.argsort(raw)]) >= -1e-12).all()


def test_calibration_on_files(model, records, tmp_path):
    predict(model, records, tmp_path / "p.jsonl", PredictOptions(max_new_tokens=300), PromptStyle())
    rows = read(tmp_path / "p.jsonl")
    truth = []
    for n, (row, line) in enumerate(zip(rows, read_jsonl(records), strict=True)):
        record = msgspec.convert(line, Record)
        kept = row.detections if n % 2 == 0 else []
        record.objects = [Object(d.desc, 1, list(d.norm), bbox_2d=[0, 0, 16, 16]) for d in kept]
        truth.append(record)
    rows = [row for _ in range(5) for row in rows]
    write_jsonl(tmp_path / "p.jsonl", rows)
    write_jsonl(tmp_path / "truth.jsonl", truth)
    fitted = calibrate.fit(tmp_path / "p.jsonl", tmp_path / "truth.jsonl", tmp_path / "c.json")
    assert calibrate.load(tmp_path / "c.json") == fitted
    assert fitted.fitted["right"] == 5 * sum(len(record.objects) for record in truth)
    calibrate.apply(tmp_path / "p.jsonl", fitted, tmp_path / "c1.jsonl")
    calibrate.apply(tmp_path / "c1.jsonl", fitted, tmp_path / "c2.jsonl")
    once, twice = read(tmp_path / "c1.jsonl"), read(tmp_path / "c2.jsonl")
    assert once == twice != rows
    assert once[0].detections[0].score_parts["raw_score"] == rows[0].detections[0].score
    options = PredictOptions(max_new_tokens=300)
    predict(model, records, tmp_path / "direct.jsonl", options, PromptStyle(), calibration=tmp_path / "c.json")
    assert [d.score for row in read(tmp_path / "direct.jsonl") for d in row.detections] == pytest.approx(
        [d.score for row in once[:5] for d in row.detections], abs=1e-4
    )


def test_matching_counts_each_object_once():
    record = Record(
        ["a.png"],
        100,
        100,
        "pixel",
        [Object("cat", 1, [0.0, 0.0, 0.5, 0.5], bbox_2d=[0, 0, 50, 50])],
        Metadata(1, 9, 9),
    )
    box = [0.0, 0.0, 0.5, 0.5]
    found = [
        Detection("cat", box, 0.2),
        Detection("cat", box, 0.9),
        Detection("dog", box, 1.0),
        Detection("cat", [0.5, 0.5, 1, 1], 1.0),
    ]
    assert calibrate.matched(found, record, 0.5).tolist() == [False, True, False, False]


def test_too_little_to_calibrate_on():
    found, _ = synthetic(50, 3)
    with pytest.raises(DataError, match="too little"):
        calibrate.fit_detections(found, np.ones(50, dtype=bool), "logistic", {})
