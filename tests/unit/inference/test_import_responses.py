"""Answers of other servers, loose images, overlays."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from inference_helpers import SIZES, images, read, taught_checkpoint
from PIL import Image

from coordexp.answers.render import PromptStyle
from coordexp.cli import main
from coordexp.datasets import images as prepared
from coordexp.inference.detect import Found, detect
from coordexp.inference.draw import colour_of, draw
from coordexp.inference.generation_state import GenerationState, Limits
from coordexp.inference.import_responses import parse_served
from coordexp.inference.options import PredictOptions
from coordexp.inference.predict import predict
from coordexp.inference.predictor import Checkpoint
from coordexp.records import Detection
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import write_jsonl

ANSWER = '{"objects": [{"desc": "cat", "bbox_2d": [<|coord_100|>, <|coord_200|>, <|coord_300|>, <|coord_999|>]}]}'


def layouts(text: str, n: int) -> list[dict]:
    chat = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    return [
        {"custom_id": str(n), **chat},
        {"custom_id": str(n), "response": {"status_code": 200, "body": chat}},
        {"custom_id": str(n), "choices": [{"text": text, "finish_reason": "length"}]},
        {"image_id": n, "text": text, "meta_info": {"finish_reason": {"type": "stop"}}},
        {"image_id": n, "generated_text": text + "<|im_end|>"},
    ]


@pytest.mark.parametrize("format", range(5))
def test_every_layout_is_read(records, tmp_path, layout):
    lines = [layouts(ANSWER, n)[layout] for n in reversed(range(100, 100 + len(SIZES)))]
    write_jsonl(tmp_path / "served.jsonl", lines)
    counts = parse_served(tmp_path / "served.jsonl", records, tmp_path / "p.jsonl")
    assert counts == {"images": 5, "detections": 5}
    for n, row in enumerate(read(tmp_path / "p.jsonl")):
        assert row.image_id == 100 + n and row.finish == ("length" if layout == 2 else "stop")
        assert row.detections[0].norm == pytest.approx([100 / 999, 200 / 999, 300 / 999, 1.0])
        assert row.detections[0].score == 1.0


HEAD = ['{"objects": [', '{"desc": "']
BOX = ['", "bbox_2d": [', "<|coord_1|>", ", ", "<|coord_2|>", ", ", "<|coord_3|>", ", ", "<|coord_4|>"]
WANTED = math.exp(-0.1 - 0.05 - 0.2)  # what `logprob_of` gives to the description, its end, and each coordinate


def logprob_of(piece: str) -> float:
    """The skeleton is unsure as well: none of it but the end of the description may count."""
    known = {"cat": -0.1, '", "bbox_2d": [': -0.05}
    return known.get(piece, -0.2 if "coord" in piece else -3.0)


def reply(pieces: list[str], shown: list[dict], **changes) -> dict:
    choice = {"message": {"content": "".join(pieces)}, "logprobs": {"content": shown}, "finish_reason": "stop"}
    return {"choices": [choice | changes]}


def parsed(records, tmp_path, replies: list[dict], **options) -> tuple[dict, list]:
    write_jsonl(tmp_path / "served.jsonl", replies)
    counts = parse_served(tmp_path / "served.jsonl", records, tmp_path / "p.jsonl", **options)
    return counts, read(tmp_path / "p.jsonl")


def test_log_probabilities_make_scores(records, tmp_path):
    pieces = [*HEAD, "cat", *BOX, "]}", "]}"]
    content = [{"token": piece, "logprob": logprob_of(piece)} for piece in pieces]
    whole = reply(pieces, content)
    broken = reply(pieces, content[1:])
    ended = reply(pieces, [*content, {"token": "<|im_end|>", "logprob": -9.0}])
    names = {"tokens": "token", "token_logprobs": "logprob"}
    flat = {name: [item[key] for item in content] for name, key in names.items()}
    completion = {"choices": [{"text": "".join(pieces), "finish_reason": "stop", "logprobs": flat}]}
    counts, rows = parsed(records, tmp_path, [whole, ended, completion, whole, broken])
    assert counts["logprobs_unaligned"] == counts["unscored_boxes"] == 1
    assert [row.detections[0].score for row in rows] == pytest.approx([WANTED] * 4 + [0.0])


def test_further_objects_do_not_lower_a_score(records, tmp_path):
    one, many = [*HEAD, "cat", *BOX, "]}", "]}"], [*HEAD, "cat", *BOX, "]}, {", '"desc": "', "cat", *BOX, "]}]}"]
    replies = [reply(p, [{"token": piece, "logprob": logprob_of(piece)} for piece in p]) for p in (one, many)]
    _, rows = parsed(records, tmp_path, [*replies, *replies, replies[0]])
    assert [d.score for row in rows for d in row.detections] == pytest.approx([WANTED] * 7)


def test_integers_score_with_their_digits_and_ends_as_a_mean(records, tmp_path):
    """Numbers of one digit or three, digits in the description, and an end that goes on with the next object."""
    pieces = ['{"objects": [{"desc": "', "bus", " ", "5", "1", '", "bbox_2d": [', "7", ", ", "1", "2", ", "]
    pieces += ["9", "9", "9", ", ", "5", "0", "0", "]}, {", '"desc": "', "cat", '", "bbox_2d": [']
    pieces += ["1", ", ", "2", ", ", "3", ", ", "4", "]}", "]}"]
    logprobs = [-2.0, -0.1, -0.1, -0.1, -0.1, -0.1] + [-0.4] * 12 + [-4.0, -2.0, -0.1, -0.1] + [-0.4] * 7 + [-4.0, -4.0]
    content = [{"token": piece, "logprob": value} for piece, value in zip(pieces, logprobs, strict=True)]
    _, rows = parsed(records, tmp_path, [reply(pieces, content)] * 5, coordinates="integer")
    bus, cat = rows[0].detections
    assert (bus.desc, bus.bins, cat.bins) == ("bus 51", [7, 12, 999, 500], [1, 2, 3, 4])
    assert bus.score_parts == pytest.approx({"desc_logprob": -0.5, "slot_logprob": -0.4 * 12 / 4})
    assert cat.score_parts == pytest.approx({"desc_logprob": -0.2, "slot_logprob": -0.4 * 7 / 4})


@pytest.mark.parametrize("coordinates", ["token", "integer"])
def test_tokens_that_are_pieces_of_characters(records, tmp_path, coordinates):
    """`bytes` where a server gives the true ones; else what is shown of a description is taken together."""
    names = ["猫", "naïve 犬", "cat"]
    box = BOX if coordinates == "token" else ['", "bbox_2d": [', "1", ", ", "2", ", ", "3", ", ", "4"]
    pieces = [piece.encode() for piece in HEAD]
    for n, name in enumerate(names):
        pieces += [bytes([byte]) for byte in name.encode()] + [piece.encode() for piece in box]
        pieces += [b"]}]}"] if n == 2 else [b"]}, {", b'"desc": "']
    text = b"".join(pieces).decode()
    value = {piece.encode(): -3.0 for piece in (*HEAD, "]}]}", "]}, {", '"desc": "')}
    shown = [{"token": p.decode(errors="replace"), "logprob": value.get(p, -0.1)} for p in pieces]
    true = [item | {"bytes": list(piece)} for item, piece in zip(shown, pieces, strict=True)]
    echoed = [item | {"bytes": list(item["token"].encode())} for item in shown]
    replies = [reply([text], content) for content in (shown, true, echoed, shown, shown)]
    counts, rows = parsed(records, tmp_path, replies, coordinates=coordinates)
    assert counts == {"images": 5, "detections": 15}
    per_coordinate = -0.1 if coordinates == "token" else -0.7 / 4
    expected = [math.exp(-0.1 * (len(name.encode()) + 1) + per_coordinate) for name in names]
    for row in rows:
        assert [d.desc for d in row.detections] == names
        assert [d.score for d in row.detections] == pytest.approx(expected)


def test_answers_without_usable_log_probabilities_rank_last(records, tmp_path):
    pieces = [*HEAD, "cat", *BOX, "]}", "]}"]
    content = [{"token": piece, "logprob": logprob_of(piece)} for piece in pieces]
    ids = [{"token": f"token_id:{n}", "logprob": -0.1} for n in range(len(pieces))]
    none, unlike = reply(pieces, []), reply(pieces, ids)
    counts, rows = parsed(records, tmp_path, [reply(pieces, content), none, unlike, none, none])
    assert [row.detections[0].score for row in rows] == pytest.approx([WANTED, 0, 0, 0, 0])
    assert (counts["logprobs_unaligned"], counts["unscored_boxes"]) == (1, 4)
    counts, rows = parsed(records, tmp_path, [none, unlike, none, none, none])
    assert {row.detections[0].score for row in rows} == {1.0} and "unscored_boxes" not in counts


def test_the_server_says_why_an_answer_ended(records, tmp_path):
    cut = ANSWER[:-5]
    replies = [
        reply(["I see no objects."], []),
        reply([ANSWER], [], finish_reason="length"),
        reply([cut], [], finish_reason=None),
        reply(["I see no objects."], [], finish_reason=None),
        reply([cut], []),
    ]
    _, rows = parsed(records, tmp_path, replies)
    assert [row.finish for row in rows] == ["stop", "length", "length", "stop", "stop"]


def test_terms_of_the_text_are_those_of_the_grammar(taught, records, tmp_path):
    """What `predict` chose, given as a server's reply: the same log probability of description and coordinates."""
    predict(taught, records, tmp_path / "own.jsonl", PredictOptions(max_new_tokens=300), PromptStyle())
    tokenizer = Checkpoint(taught, PredictOptions(), PromptStyle()).processor.tokenizer
    replies, own = [], read(tmp_path / "own.jsonl")
    for row in own:
        pieces = [tokenizer.decode([token]) for token in row.token_ids]
        shown = [{"token": p, "logprob": v} for p, v in zip(pieces, row.token_logprobs, strict=True)]
        replies.append(reply([row.text], shown))
    _, rows = parsed(records, tmp_path, replies)
    pairs = [p for a, b in zip(own, rows, strict=True) for p in zip(a.detections, b.detections, strict=True)]
    assert len(pairs) >= 4
    for a, b in pairs:
        for name in ("desc_logprob", "slot_logprob"):
            assert b.score_parts[name] == pytest.approx(a.score_parts[name], abs=2e-3)


def test_dropped_special_tokens_are_seen(records, tmp_path):
    text = '{"objects": [{"desc": "cat", "bbox_2d": [, , , ]}]}'
    write_jsonl(tmp_path / "served.jsonl", [{"text": text}] * 5)
    counts = parse_served(tmp_path / "served.jsonl", records, tmp_path / "p.jsonl")
    assert counts == {"images": 5, "detections": 0, "not_coord_tokens": 5}


def test_plain_generate_and_predict_agree(taught, records, tmp_path):
    """The recipe of docs/serving.md for transformers, on the same checkpoint as `predict`."""
    checkpoint = Checkpoint(taught, PredictOptions(), PromptStyle())
    inputs = checkpoint.encode(images(), [checkpoint.prompt()] * 5)
    generated = checkpoint.model.generate(**inputs, max_new_tokens=300, do_sample=False)
    texts = checkpoint.processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=False)
    write_jsonl(tmp_path / "served.jsonl", [{"text": text} for text in texts])
    parse_served(tmp_path / "served.jsonl", records, tmp_path / "served_p.jsonl")
    predict(taught, records, tmp_path / "p.jsonl", PredictOptions(decode="argmax", max_new_tokens=300), PromptStyle())
    pairs = list(zip(read(tmp_path / "served_p.jsonl"), read(tmp_path / "p.jsonl"), strict=True))
    taught = [(a, b) for a, b in pairs if not a.problems]
    assert len(taught) >= 4
    for a, b in taught:
        assert [d.bins for d in a.detections] == [d.bins for d in b.detections]
        assert [d.norm for d in a.detections] == [pytest.approx(d.norm) for d in b.detections]


@pytest.mark.parametrize(
    "lines", [[{"text": ANSWER}] * 4, [{"image_id": 100, "text": ANSWER}] * 5, [{"error": "x"}] * 5, [3] * 5]
)
def test_misfits_are_refused(records, tmp_path, lines):
    write_jsonl(tmp_path / "served.jsonl", lines)
    with pytest.raises(DataError, match=r"served\.jsonl"):
        parse_served(tmp_path / "served.jsonl", records, tmp_path / "p.jsonl")


def test_detect_in_loose_images(taught, tmp_path):
    big = images()[0].resize((300, 200))
    exif = big.getexif()
    exif[0x0112] = 6  # stored lying on its side
    big.save(tmp_path / "a.jpg", exif=exif)
    images()[1].convert("L").save(tmp_path / "b.png")
    found = detect(taught, [tmp_path / "a.jpg", tmp_path / "b.png"], ["cat", "black cat"], max_blocks=9)
    assert [(f.width, f.height) for f in found] == [(200, 300), (128, 64)]
    for one in found:
        assert len(one.boxes()) == len(one.detections)
        for x1, y1, x2, y2 in one.boxes():
            assert 0 <= x1 <= x2 <= one.width and 0 <= y1 <= y2 <= one.height
    with pytest.raises(DataError, match=r"no\.png"):
        detect(taught, [tmp_path / "no.png"])
    with pytest.raises(DataError, match="no image"):
        detect(taught, [])


def loose(folder: Path) -> list[Path]:
    """Images of the kinds that need care: deep, transparent, turned, and plain ones."""
    small, big = images()[0].resize((75, 50)), images()[1].resize((700, 300))
    deep = Image.fromarray(np.linspace(0, 65535, 75 * 50).reshape(50, 75).astype(np.uint16))
    clear = small.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(small.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = {"grows.jpg": small, "shrinks.jpg": big, "grows.png": small, "shrinks.png": big, "stays.png": images()[0]}
    for name, image in ({"deep.png": deep, "clear.png": clear} | plain).items():
        image.save(folder / name)
    for name, image in {"turned.jpg": small, "turned.tif": small.convert("L"), "turned.png": big}.items():
        image.save(folder / name, exif=exif)
    return sorted(folder.iterdir())


def test_detect_looks_at_the_pixels_that_conversion_writes(taught, tmp_path, monkeypatch):
    (tmp_path / "loose").mkdir()
    paths = loose(tmp_path / "loose")
    seen = []

    def answer(self, asked, questions):
        seen.extend(asked)
        return [GenerationState(self.grammar(), Limits(1, 1, 1, 1)) for _ in asked]

    monkeypatch.setattr(Checkpoint, "answer", answer)
    found = detect(taught, paths, max_blocks=15)
    monkeypatch.setattr(prepared, "_enlarged", lambda *a: None)  # it encodes the same pixels as JPEG
    for path, one, image in zip(paths, found, seen, strict=True):
        assert (one.width, one.height) == prepared.upright_size(path)
        target = tmp_path / "converted" / f"{path.name}.png"
        prepared.prepare(path, target, (one.width, one.height), image.size, 95)
        assert image.mode == "RGB" and (np.asarray(image) == np.asarray(Image.open(target))).all(), path


@pytest.mark.parametrize("name", ["deep.png", "clear.png", "turned.jpg", "turned.tif"])
def test_what_detect_draws_on_is_the_upright_image(taught, tmp_path, monkeypatch, name):
    (tmp_path / "loose").mkdir()
    path = next(path for path in loose(tmp_path / "loose") if path.name == name)
    size = prepared.upright_size(path)
    monkeypatch.setattr("coordexp.inference.detect.detect", lambda *a, **k: [Found(str(path), *size, [], "", {})])
    assert main(["detect", str(path), "--model", str(taught), "--out", str(tmp_path / "drawn.png")]) == 0
    prepared.prepare(path, tmp_path / "expected.png", size, size, 95)
    assert (np.asarray(Image.open(tmp_path / "drawn.png")) == np.asarray(Image.open(tmp_path / "expected.png"))).all()


def test_detect_answers_in_polygons_when_asked_to(tmp_path, capsys):
    model = str(taught_checkpoint(PromptStyle(), poly=True, steps=50))
    paths = [str(tmp_path / f"{n}.png") for n in range(len(SIZES))]
    for path, image in zip(paths, images(), strict=True):
        image.resize((image.width * 2, image.height * 2)).save(path)
    rows = {}
    for options in ((), ("--polygons",)):
        assert main(["detect", *paths, "--model", model, "--max-blocks", "15", *options]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        rows[options] = [(row, size) for line, size in zip(lines, SIZES, strict=True) for row in line["detections"]]
    assert not any("poly" in row for row, _ in rows[()])
    outlines = [(row["poly"], row["bbox"], size) for row, size in rows["--polygons",] if "poly" in row]
    assert 0 < len(outlines) < len(rows["--polygons",])
    for poly, box, (width, height) in outlines:
        xs, ys = poly[0::2], poly[1::2]
        assert len(xs) == len(ys) >= 3 and box == [min(xs), min(ys), max(xs), max(ys)]
        assert max(xs) <= 2 * width and max(ys) <= 2 * height


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
