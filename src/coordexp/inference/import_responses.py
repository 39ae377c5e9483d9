"""Import the responses of another engine as predictions: vLLM, SGLang, transformers, or any list of texts.

Each JSON line is one response, in any of these formats (see docs/serving.md):

| format                        | text                           | finish reason            |
|-------------------------------|--------------------------------|--------------------------|
| OpenAI chat completion        | `choices[0].message.content`   | `choices[0].finish_reason` |
| OpenAI completion             | `choices[0].text`              | `choices[0].finish_reason` |
| OpenAI batch output           | in `response.body`, one of both | in `response.body`      |
| SGLang `/generate`            | `text`                         | `meta_info.finish_reason.type` |
| transformers, or your own     | `generated_text` or `text`     | `finish_reason`          |

`custom_id` or `image_id` identifies the image; without one, lines must be in the order of the records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from coordexp.answers.parse import parse_answer
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.inference.scores import detection_from_text, text_score_parts
from coordexp.records import Prediction, Record, read_records
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import enumerate_lines, read_jsonl, write_jsonl

Coordinates = Literal["token", "integer"]
Token = tuple[bytes, float]  # its bytes and its natural log probability


class ParseSettings(NamedTuple):
    """How responses become predictions; `default_score` is the score of detections without log probabilities."""

    emit_norm: EmitNorm
    protocol: str
    coordinates: Coordinates
    default_score: float


class Response(NamedTuple):
    """One response; `finish`, `image_id` and `tokens` only if the engine returned them."""

    text: str
    finish: Literal["stop", "length"] | None
    image_id: str | None
    tokens: list[Token]


def import_responses(
    responses_jsonl: str | Path,
    records_jsonl: str | Path,
    out: str | Path,
    emit_norm: EmitNorm = "norm1000",
    protocol: str = "served",
    coordinates: Coordinates = "token",
) -> dict[str, int]:
    """Write one `records.Prediction` per record; returns counts, those of problems by reason included.

    records_jsonl: the pixel-space records that were asked about; each needs exactly one response.
    coordinates: as in the prompt style.

    A coordinate is the bin of its token. Scores come from log probabilities in the responses. If no response has any,
    every score is 1.0, which ranks nothing. If only some have usable ones, the other detections get 0.0, so that they
    rank last, and are counted as `unscored_boxes`.
    """
    records = list(read_records(records_jsonl, "pixel"))
    responses = _match_to_records(responses_jsonl, [str(record.metadata.image_id) for record in records])
    aligned = [align_tokens(response.text, response.tokens) for response in responses]
    default_score = 0.0 if any(aligned) else 1.0
    settings = ParseSettings(emit_norm, protocol, coordinates, default_score)
    rows = [
        _prediction(response, tokens, record, settings)
        for response, tokens, record in zip(responses, aligned, records, strict=True)
    ]
    write_jsonl(out, rows)
    counts = Counter({"images": len(rows), "detections": sum(len(row.detections) for row in rows)})
    for row in rows:
        counts.update(row.problems)
    return dict(counts)


def parse_response(value: Any, where: str = "response") -> Response:
    """One decoded JSON line, in any format of the module's table; DataError naming `where` for any other."""
    if isinstance(value, str):
        return Response(value, None, None, [])
    if not isinstance(value, dict):
        raise DataError(located("not a response", file=where, expected="a JSON object", found=type(value).__name__))
    image_id = value.get("custom_id", value.get("image_id"))
    body = value["response"].get("body") if isinstance(value.get("response"), dict) else value
    text, reason, tokens = _body_text(body if isinstance(body, dict) else {})
    if text is None:
        fix = "see docs/serving.md for the supported formats"
        raise DataError(located("the response has no text", file=where, found=sorted(value), fix=fix))
    finish = None if reason is None else "length" if reason == "length" else "stop"
    return Response(text, finish, None if image_id is None else str(image_id), tokens)


def align_tokens(text: str, tokens: Sequence[Token]) -> list[Token] | None:
    """`tokens`, adjusted so that their bytes spell `text` from its start; None if that is impossible.

    Engines that return tokens as text replace parts of a multi-byte character by U+FFFD. Such tokens occur in
    descriptions: from the first token that does not match up to the one with the closing quote, they are merged into
    one token with the sum of their log probabilities.
    """
    data, position, aligned, at = text.encode(), 0, [], 0
    while at < len(tokens) and position < len(data):
        token, logprob = tokens[at]
        if not data.startswith(token, position):
            following = _after_description(data, position, tokens, at)
            if following is None:
                return None
            stop, end = following
            token, logprob = data[position:end], sum(value for _, value in tokens[at:stop])
            at = stop - 1
        aligned.append((token, logprob))
        position, at = position + len(token), at + 1
    return aligned if position == len(data) else None


def _after_description(data: bytes, position: int, tokens: Sequence[Token], at: int) -> tuple[int, int] | None:
    """(token index, byte offset) after the next token with a quote, if it matches the next quote of `data`."""
    quote = data.find(b'"', position)
    for stop, (token, _) in enumerate(tokens[at:], at + 1):
        if (offset := token.find(b'"')) >= 0:
            tail = token[offset:]
            return (stop, quote + len(tail)) if quote >= 0 and data.startswith(tail, quote) else None
    return None


def _body_text(body: dict[str, Any]) -> tuple[str | None, str | None, list[Token]]:
    """Text (None if there is none), finish reason and tokens of a response body."""
    if isinstance(body.get("choices"), list) and body["choices"]:
        choice = body["choices"][0]
        text = choice["message"].get("content") if isinstance(choice.get("message"), dict) else choice.get("text")
        return text, choice.get("finish_reason"), _tokens(choice.get("logprobs") or {}, text)
    reason = body.get("finish_reason")
    meta = body.get("meta_info")
    if isinstance(meta, dict):
        reason = meta.get("finish_reason")
        reason = reason.get("type") if isinstance(reason, dict) else reason
    text = body.get("generated_text", body.get("text"))
    return (text if isinstance(text, str) else None), reason, []


def _tokens(logprobs: dict[str, Any], text: str | None) -> list[Token]:
    """Tokens of a chat completion's or a completion's `logprobs`.

    The field `bytes` is used if all of them together spell the text: some engines only encode the displayed token.
    """
    if content := logprobs.get("content"):
        values = [item["logprob"] for item in content]
        if text is not None and all(item.get("bytes") for item in content):
            exact = [bytes(item["bytes"]) for item in content]
            if b"".join(exact).startswith(text.encode()):
                return list(zip(exact, values, strict=True))
        return [(item["token"].encode(), value) for item, value in zip(content, values, strict=True)]
    pairs = zip(logprobs.get("tokens") or [], logprobs.get("token_logprobs") or [], strict=True)
    return [(token.encode(), 0.0 if logprob is None else logprob) for token, logprob in pairs]


def _match_to_records(path: str | Path, image_ids: Sequence[str]) -> list[Response]:
    """The responses in the order of the records."""
    numbers = [number for number, _ in enumerate_lines(path)]
    responses = [parse_response(value, f"{path}:{n}") for n, value in zip(numbers, read_jsonl(path), strict=True)]
    if len(responses) != len(image_ids):
        fix = "request every record once"
        found = len(responses)
        raise DataError(located("number of responses", file=path, expected=len(image_ids), found=found, fix=fix))
    if all(response.image_id is None for response in responses):
        return responses
    by_id = {response.image_id: response for response in responses}
    missing = [image_id for image_id in image_ids if image_id not in by_id]
    if missing:
        fix = "send the record's image_id as custom_id, once per record"
        problem = "an image has no response"
        raise DataError(located(problem, file=path, field="custom_id", expected=missing[0], fix=fix))
    return [by_id[image_id] for image_id in image_ids]


def _prediction(response: Response, tokens: list[Token] | None, record: Record, settings: ParseSettings) -> Prediction:
    parsed = parse_answer(response.text, settings.coordinates)
    problems = Counter(parsed.problems)
    problems["logprobs_unaligned"] += bool(response.tokens) and tokens is None
    size = (record.width, record.height)
    detections = []
    for obj in parsed.objects:
        parts = text_score_parts(obj, response.text, tokens) if tokens else {}
        detection = detection_from_text(obj, parts, size, settings.emit_norm)
        if not parts:
            detection = msgspec.structs.replace(detection, score=settings.default_score)
        detections.append(detection)
    problems["unscored_boxes"] += len(detections) if not tokens and settings.default_score < 1 else 0
    return Prediction(
        image_id=record.metadata.image_id,
        source_width=record.metadata.source_width,
        source_height=record.metadata.source_height,
        protocol=settings.protocol,
        finish=response.finish or ("length" if "cut_off" in parsed.problems else "stop"),
        text=response.text,
        detections=detections,
        problems={reason: count for reason, count in problems.items() if count},
    )
