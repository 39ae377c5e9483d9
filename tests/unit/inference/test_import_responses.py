"""Responses of other engines: formats, scores from log probabilities, truncation, alignment of tokens."""

from __future__ import annotations

import math

import pytest
from inference_helpers import SIZES, images, read

from coordexp.answers.inference_settings import InferenceSettings
from coordexp.answers.render import PromptStyle
from coordexp.inference.coordinates import coordinate_logits
from coordexp.inference.import_responses import import_responses
from coordexp.inference.options import PredictOptions
from coordexp.inference.predict import predict
from coordexp.inference.predictor import Predictor
from coordexp.inference.prompts import Prompt
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import write_json, write_jsonl

ANSWER = '{"objects": [{"desc": "cat", "bbox_2d": [<|coord_100|>, <|coord_200|>, <|coord_300|>, <|coord_999|>]}]}'


def formats(text: str, n: int) -> list[dict]:
    chat = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    return [
        {"custom_id": str(n), **chat},
        {"custom_id": str(n), "response": {"status_code": 200, "body": chat}},
        {"custom_id": str(n), "choices": [{"text": text, "finish_reason": "length"}]},
        {"image_id": n, "text": text, "meta_info": {"finish_reason": {"type": "stop"}}},
        {"image_id": n, "generated_text": text + "<|im_end|>"},
    ]


@pytest.mark.parametrize("index", range(5))
def test_every_format_is_parsed(records, tmp_path, index):
    lines = [formats(ANSWER, n)[index] for n in reversed(range(100, 100 + len(SIZES)))]
    write_jsonl(tmp_path / "responses.jsonl", lines)
    counts = import_responses(tmp_path / "responses.jsonl", records, tmp_path / "p.jsonl")
    assert counts == {"images": 5, "detections": 5}
    for n, row in enumerate(read(tmp_path / "p.jsonl")):
        assert row.image_id == 100 + n and row.finish == ("length" if index == 2 else "stop")
        assert row.detections[0].norm == pytest.approx([100 / 999, 200 / 999, 300 / 999, 1.0])
        assert row.detections[0].score == 1.0


HEAD = ['{"objects": [', '{"desc": "']


BOX = ['", "bbox_2d": [', "<|coord_1|>", ", ", "<|coord_2|>", ", ", "<|coord_3|>", ", ", "<|coord_4|>"]


SCORE = math.exp(-0.1 - 0.05 - 0.2)  # by `logprob_of`: the description, its end, and the mean of the coordinates


def logprob_of(piece: str) -> float:
    """Log probability of a token; -3 for syntax, of which only the end of the description may count."""
    known = {"cat": -0.1, '", "bbox_2d": [': -0.05}
    return known.get(piece, -0.2 if "coord" in piece else -3.0)


def reply(pieces: list[str], shown: list[dict], **changes) -> dict:
    choice = {"message": {"content": "".join(pieces)}, "logprobs": {"content": shown}, "finish_reason": "stop"}
    return {"choices": [choice | changes]}


def parsed(records, tmp_path, replies: list[dict], **options) -> tuple[dict, list]:
    write_jsonl(tmp_path / "responses.jsonl", replies)
    counts = import_responses(tmp_path / "responses.jsonl", records, tmp_path / "p.jsonl", **options)
    return counts, read(tmp_path / "p.jsonl")


def test_scores_come_from_log_probabilities(records, tmp_path):
    pieces = [*HEAD, "cat", *BOX, "]}", "]}"]
    content = [{"token": piece, "logprob": logprob_of(piece)} for piece in pieces]
    complete = reply(pieces, content)
    broken = reply(pieces, content[1:])
    ended = reply(pieces, [*content, {"token": "<|im_end|>", "logprob": -9.0}])
    names = {"tokens": "token", "token_logprobs": "logprob"}
    flat = {name: [item[key] for item in content] for name, key in names.items()}
    completion = {"choices": [{"text": "".join(pieces), "finish_reason": "stop", "logprobs": flat}]}
    counts, rows = parsed(records, tmp_path, [complete, ended, completion, complete, broken])
    assert counts["logprobs_unaligned"] == counts["unscored_boxes"] == 1
    assert [row.detections[0].score for row in rows] == pytest.approx([SCORE] * 4 + [0.0])


def test_another_object_does_not_lower_a_score(records, tmp_path):
    one, many = [*HEAD, "cat", *BOX, "]}", "]}"], [*HEAD, "cat", *BOX, "]}, {", '"desc": "', "cat", *BOX, "]}]}"]
    replies = [reply(p, [{"token": piece, "logprob": logprob_of(piece)} for piece in p]) for p in (one, many)]
    _, rows = parsed(records, tmp_path, [*replies, *replies, replies[0]])
    assert [d.score for row in rows for d in row.detections] == pytest.approx([SCORE] * 7)


@pytest.mark.parametrize("answer_format", ["grouped", "box_tokens"])
def test_boxes_that_share_a_description_have_its_probability(records, tmp_path, answer_format):
    box = [f"<|coord_{k}|>" for k in (1, 2, 3, 4)]
    other = [f"<|coord_{k}|>" for k in (5, 6, 7, 8)]
    pieces = ['{"', "cat", '":', *box, ",", *other, "}"]
    if answer_format == "box_tokens":
        first = ["<|object_ref_start|>", "cat", "<|object_ref_end|>", "<|box_start|>", *box, "<|box_end|>"]
        pieces = [*first, "<|box_start|>", *other, "<|box_end|>"]
    value = {"cat": -0.1, '":': -0.05, "<|object_ref_end|>": -0.05}
    content = [{"token": p, "logprob": value.get(p, -0.2 if "coord" in p else -3.0)} for p in pieces]
    counts, rows = parsed(records, tmp_path, [reply(pieces, content)] * 5, answer_format=answer_format)
    assert counts == {"images": 5, "detections": 10}
    assert [d.score for row in rows for d in row.detections] == pytest.approx([SCORE] * 10)
    assert [d.bins for d in rows[0].detections] == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_the_answer_format_is_read_from_the_checkpoint(records, tmp_path, capsys):
    style = PromptStyle(answer_format="grouped")
    write_json(tmp_path / "coordexp_inference.json", InferenceSettings(style=style))
    answer = '{"cat":<|coord_1|><|coord_2|><|coord_3|><|coord_4|>}'
    replies = [{"image_id": 100 + n, "text": answer} for n in range(len(SIZES))]
    counts, _ = parsed(records, tmp_path, replies, model_dir=tmp_path)
    assert counts == {"images": 5, "detections": 5} and "answer_format" not in capsys.readouterr().err
    counts, _ = parsed(records, tmp_path, replies, model_dir=tmp_path, answer_format="json")
    assert counts == {"images": 5, "detections": 0, "no_answer": 5}
    assert "answer_format 'json' overrides 'grouped'" in capsys.readouterr().err


def test_integer_coordinates_contribute_the_mean_over_coordinates(records, tmp_path):
    """Numbers of one to three digits, digits in the description, and an end token that also starts the next object."""
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
def test_tokens_that_are_parts_of_characters(records, tmp_path, coordinates):
    """Exact `bytes` are used if the server returns them; otherwise the tokens of a description are merged."""
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


def test_responses_without_usable_log_probabilities_rank_last(records, tmp_path):
    pieces = [*HEAD, "cat", *BOX, "]}", "]}"]
    content = [{"token": piece, "logprob": logprob_of(piece)} for piece in pieces]
    ids = [{"token": f"token_id:{n}", "logprob": -0.1} for n in range(len(pieces))]
    missing, mismatched = reply(pieces, []), reply(pieces, ids)
    counts, rows = parsed(records, tmp_path, [reply(pieces, content), missing, mismatched, missing, missing])
    assert [row.detections[0].score for row in rows] == pytest.approx([SCORE, 0, 0, 0, 0])
    assert (counts["logprobs_unaligned"], counts["unscored_boxes"]) == (1, 4)
    counts, rows = parsed(records, tmp_path, [missing, mismatched, missing, missing, missing])
    assert {row.detections[0].score for row in rows} == {1.0} and "unscored_boxes" not in counts


def test_the_finish_reason_is_that_of_the_response(records, tmp_path):
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


def test_score_parts_equal_those_of_predict(taught, records, tmp_path):
    """Predictions of `predict`, imported as responses, have the same log probabilities per object."""
    predict(taught, records, tmp_path / "own.jsonl", PredictOptions(max_new_tokens=300), PromptStyle())
    tokenizer = Predictor.from_checkpoint(taught, PredictOptions(), PromptStyle()).processor.tokenizer
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


def test_coordinates_that_a_server_reports_give_the_boxes_and_scores_of_predict(taught, records, tmp_path):
    options = PredictOptions(max_new_tokens=300)
    predict(taught, records, tmp_path / "own.jsonl", options, PromptStyle())
    predictor = Predictor.from_checkpoint(taught, options, PromptStyle())
    replies = []
    for answer in predictor.answer(images(), [Prompt()] * len(SIZES)):
        slots, shown = iter(answer.slots), []
        for token, logprob in zip(answer.tokens, answer.logprobs, strict=True):
            entry = {"token": predictor.processor.tokenizer.decode([token]), "logprob": logprob}
            others = coordinate_logits(next(slots)) if predictor.ids.start <= token <= predictor.ids.end else []
            beside = [{"token": "!", "logprob": value} for value in others]
            shown.append({**entry, "top_logprobs": [entry, *beside, {"token": "?", "logprob": -9999.0}]})
        replies.append(reply([predictor.text(answer)], shown))
    incomplete = [entry for entry in shown if len(entry["top_logprobs"]) == 5][-1]
    del incomplete["top_logprobs"][2]  # of the last reply
    _, rows = parsed(records, tmp_path, replies)
    *own, last = read(tmp_path / "own.jsonl")
    for a, b in zip(own, rows, strict=False):
        assert len(a.detections) == len(b.detections) > 0
        for x, y in zip(a.detections, b.detections, strict=True):
            assert y.norm == pytest.approx(x.norm, abs=1e-7) and y.score == pytest.approx(x.score, abs=1e-6)
            assert y.spread == pytest.approx(x.spread, abs=1e-7)
    assert [d.bins for d in last.detections] == [d.bins for d in rows[-1].detections]
    assert all(d.spread is None or not d.spread for d in rows[-1].detections)


def test_missing_special_tokens_are_counted(records, tmp_path):
    text = '{"objects": [{"desc": "cat", "bbox_2d": [, , , ]}]}'
    write_jsonl(tmp_path / "responses.jsonl", [{"text": text}] * 5)
    counts = import_responses(tmp_path / "responses.jsonl", records, tmp_path / "p.jsonl")
    assert counts == {"images": 5, "detections": 0, "not_coord_tokens": 5}


def test_plain_generate_and_predict_agree(taught, records, tmp_path):
    """The example of docs/serving.md for transformers, on the same checkpoint as `predict`."""
    predictor = Predictor.from_checkpoint(taught, PredictOptions(), PromptStyle())
    inputs = predictor.encode(images(), [predictor.prompt_text()] * 5)
    generated = predictor.model.generate(**inputs, max_new_tokens=300, do_sample=False)
    texts = predictor.processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=False)
    write_jsonl(tmp_path / "responses.jsonl", [{"text": text} for text in texts])
    import_responses(tmp_path / "responses.jsonl", records, tmp_path / "imported.jsonl")
    predict(taught, records, tmp_path / "p.jsonl", PredictOptions(decode="argmax", max_new_tokens=300), PromptStyle())
    pairs = list(zip(read(tmp_path / "imported.jsonl"), read(tmp_path / "p.jsonl"), strict=True))
    taught = [(a, b) for a, b in pairs if not a.problems]
    assert len(taught) >= 4
    for a, b in taught:
        assert [d.bins for d in a.detections] == [d.bins for d in b.detections]
        assert [d.norm for d in a.detections] == [pytest.approx(d.norm) for d in b.detections]


@pytest.mark.parametrize(
    "lines", [[{"text": ANSWER}] * 4, [{"image_id": 100, "text": ANSWER}] * 5, [{"error": "x"}] * 5, [3] * 5]
)
def test_responses_that_do_not_match_the_records_are_rejected(records, tmp_path, lines):
    write_jsonl(tmp_path / "responses.jsonl", lines)
    with pytest.raises(DataError, match=r"responses\.jsonl"):
        import_responses(tmp_path / "responses.jsonl", records, tmp_path / "p.jsonl")
