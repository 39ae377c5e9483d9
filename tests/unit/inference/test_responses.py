"""Responses of servers: lists of parts, unusable log probabilities, failed requests, and arbitrary JSON."""

from __future__ import annotations

import random

import pytest
from inference_helpers import read

from coordexp.cli import main
from coordexp.inference.import_responses import import_responses
from coordexp.inference.responses import parse_response
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import write_jsonl

ANSWER = '{"objects": [{"desc": "cat", "bbox_2d": [<|coord_100|>, <|coord_200|>, <|coord_300|>, <|coord_999|>]}]}'


def chat(content, **changes) -> dict:
    return {"choices": [{"message": {"content": content}, "finish_reason": "stop"} | changes]}


@pytest.mark.parametrize(
    "value",
    [
        chat([{"type": "text", "text": ANSWER}]),
        chat([{"type": "text", "text": ANSWER[:30]}, {"type": "output_text", "text": ANSWER[30:]}]),
        chat([ANSWER[:10], ANSWER[10:]]),
        chat([{"type": "reasoning", "summary": []}, {"type": "text", "text": ANSWER}]),
        {"choices": [{"text": [{"text": ANSWER}]}]},
        {"generated_text": [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}]},
    ],
)
def test_content_may_be_a_list_of_parts(value):
    response = parse_response(value)
    assert response.text == ANSWER and response.error is None


def content(**changes) -> dict:
    return {"content": [{"token": ANSWER, "logprob": -0.5, "bytes": None} | changes]}


@pytest.mark.parametrize(
    "logprobs", [None, {}, {"content": None}, {"content": []}, {"tokens": [], "token_logprobs": []}]
)
def test_absent_log_probabilities_are_no_problem(logprobs):
    response = parse_response(chat(ANSWER, logprobs=logprobs))
    assert response.tokens == [] and not response.invalid_logprobs


@pytest.mark.parametrize(
    "logprobs",
    [
        content(logprob=None),
        content(logprob="-0.5"),
        content(logprob=True),
        content(logprob=float("nan")),
        content(logprob=float("-inf")),
        content(logprob=-(10**400)),
        content(logprob=2.0),
        content(token=None),
        {"content": [None]},
        {"content": ["a"]},
        {"content": "abc"},
        {"tokens": ["a", "b"], "token_logprobs": [-0.5]},
        {"tokens": ["a", "b"], "token_logprobs": [-0.5, None]},
        {"tokens": "ab", "token_logprobs": [-0.5, -0.5]},
        [1],
        "text",
    ],
)
def test_unusable_log_probabilities_are_counted(logprobs, records, tmp_path):
    assert parse_response(chat(ANSWER, logprobs=logprobs)).invalid_logprobs
    good = [chat(ANSWER, logprobs=content()) for _ in range(4)]
    if "nan" in repr(logprobs) or "inf" in repr(logprobs):
        return  # not JSON
    write_jsonl(tmp_path / "responses.jsonl", [chat(ANSWER, logprobs=logprobs), *good])
    counts = import_responses(tmp_path / "responses.jsonl", records, tmp_path / "p.jsonl")
    assert counts["logprobs_invalid"] == 1 and counts["unscored_boxes"] == 1
    assert read(tmp_path / "p.jsonl")[0].detections[0].score == 0.0


@pytest.mark.parametrize("bytes_", [[300], ["a"], [-1], [None], "abc", {}])
def test_invalid_bytes_of_a_token_are_not_used(bytes_):
    response = parse_response(chat(ANSWER, logprobs=content(bytes=bytes_)))
    assert response.tokens == [(ANSWER.encode(), -0.5)]


FAILED = {
    "out of memory": {"error": {"message": "out of memory", "type": "server_error"}},
    "too long": {"error": "too long"},
    "status 503: overloaded": {"response": {"status_code": 503, "body": {"error": {"message": "overloaded"}}}},
    "status 500: no text": {"response": {"status_code": 500, "body": None}},
    "timed out": {"response": None, "error": {"code": "expired", "message": "timed out"}},
    "I cannot help": {"choices": [{"message": {"content": None, "refusal": "I cannot help"}}]},
    "no text, finish reason content_filter": chat(None, finish_reason="content_filter"),
    "no text": {"choices": []},
    '[{"msg":"field required"}]': {"detail": [{"msg": "field required"}]},
}


@pytest.mark.parametrize("shown", FAILED)
def test_a_failed_request_is_counted_and_shows_the_error_of_the_server(shown, records, tmp_path, capsys):
    write_jsonl(tmp_path / "responses.jsonl", [FAILED[shown] | {"custom_id": "100"}, *ids(101)])
    counts = import_responses(tmp_path / "responses.jsonl", records, tmp_path / "p.jsonl")
    assert counts == {"images": 5, "detections": 4, "failed_requests": 1}
    assert f"image 100: {shown}\n" in capsys.readouterr().err
    assert read(tmp_path / "p.jsonl")[0].problems == {"failed_requests": 1}


def ids(first: int) -> list[dict]:
    return [{"custom_id": str(n), **chat(ANSWER)} for n in range(first, 105)]


@pytest.mark.parametrize("choices", [None, [], [None], {}, "x", [{}], [{"message": None}], [{"message": "x"}], [[]]])
def test_an_empty_choice_is_a_failed_request(choices):
    assert parse_response({"choices": choices}).error == "no text"


def test_it_is_an_error_if_every_request_failed(records, tmp_path):
    write_jsonl(tmp_path / "responses.jsonl", [{"error": "wrong model"}] * 5)
    with pytest.raises(
        DataError, match=r"(?s)responses\.jsonl.*every request failed.*wrong model|every request failed"
    ):
        import_responses(tmp_path / "responses.jsonl", records, tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    "line", [{"foo": 1}, {}, 3, [], None, {"text": ANSWER, "custom_id": [1]}, {"text": "", "image_id": True}]
)
def test_lines_that_are_no_responses_are_named(line):
    with pytest.raises(DataError, match="here:7"):
        parse_response(line, "here:7")


def test_arbitrary_responses_never_raise_other_errors():
    rng = random.Random(0)
    names = ["choices", "message", "content", "text", "logprobs", "token", "logprob", "bytes", "response", "body"]
    names += ["error", "meta_info", "finish_reason", "generated_text", "tokens", "token_logprobs", "custom_id", "role"]

    def value(depth: int):
        kind = rng.random()
        if depth > 6 or kind < 0.25:
            return rng.choice([None, True, 0, -1.5, 300, "", "x", ANSWER, [], {}])
        if kind < 0.5:
            return [value(depth + 1) for _ in range(rng.randrange(3))]
        return {name: value(depth + 1) for name in rng.sample(names, rng.randrange(5))}

    for _ in range(20_000):
        try:
            response = parse_response(value(0))
        except DataError:
            continue
        assert isinstance(response.text, str) and (response.error is None or response.text == "")


def test_parse_reports_a_file_that_cannot_be_read(tmp_path, records, capsys):
    for content in (b"[" * 100_000, b"\xff", b'{"text": "\xff"}', b'{"text": "\\ud800"}'):
        (tmp_path / "responses.jsonl").write_bytes(content)
        argv = [
            "parse",
            str(tmp_path / "responses.jsonl"),
            "--records",
            str(records),
            "--out",
            str(tmp_path / "p.jsonl"),
        ]
        assert main(argv) == 2 and "responses.jsonl" in capsys.readouterr().err
