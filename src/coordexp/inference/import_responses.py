"""Answers that another server generated, as predictions: vLLM, SGLang, transformers, or any list of texts.

One JSON line is one answer, in any of these layouts (see docs/serving.md):

| layout                        | text                           | why it ended             |
|-------------------------------|--------------------------------|--------------------------|
| OpenAI chat completion        | `choices[0].message.content`   | `choices[0].finish_reason` |
| OpenAI completion             | `choices[0].text`              | `choices[0].finish_reason` |
| OpenAI batch output           | `response.body` is one of both | as there                 |
| SGLang `/generate`            | `text`                         | `meta_info.finish_reason.type` |
| transformers, or your own     | `generated_text` or `text`     | `finish_reason`          |

`custom_id` or `image_id` names the image; without one, lines are in the order of the records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from coordexp.answers.parse import parse_answer
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.inference.scores import plain_detection, token_logprobs
from coordexp.records import Prediction, Record, read_records
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import enumerate_lines, read_jsonl, write_jsonl

Coordinates = Literal["token", "integer"]
Token = tuple[bytes, float]


class Reading(NamedTuple):
    """How answers are read; `unscored` is the score of detections without log probabilities."""

    emit_norm: EmitNorm
    protocol: str
    coordinates: Coordinates
    unscored: float


class Served(NamedTuple):
    """One answer of a server, with what it gave of: why it ended, tokens as (bytes, log probability) pairs."""

    text: str
    finish: Literal["stop", "length"] | None
    image_id: str | None
    tokens: list[Token]


def parse_served(
    responses_jsonl: str | Path,
    records_jsonl: str | Path,
    out: str | Path,
    emit_norm: EmitNorm = "norm1000",
    protocol: str = "served",
    coordinates: Coordinates = "token",
) -> dict[str, int]:
    """Write one `contract.Prediction` a record from the responses of a server; counts, problems by reason included.

    `records_jsonl` are the pixel-space records that were asked about. Every record needs exactly one answer.
    A coordinate is its token's bin. With log probabilities in the response a score is made from them. Without any
    in the whole file it is 1.0 for every detection, which ranks nothing; where only some answers have usable ones,
    the detections of the others get 0.0, rank last and are counted as `unscored_boxes`. `coordinates` as in the
    style of the prompt.
    """
    records = list(read_records(records_jsonl, "pixel"))
    answers = _assign(responses_jsonl, [str(record.metadata.image_id) for record in records])
    spelt = [spelling(answer.text, answer.tokens) for answer in answers]
    unscored = 0.0 if any(spelt) else 1.0
    rows = [
        _prediction(answer, tokens, record, Reading(emit_norm, protocol, coordinates, unscored))
        for answer, tokens, record in zip(answers, spelt, records, strict=True)
    ]
    write_jsonl(out, rows)
    counts = Counter({"images": len(rows), "detections": sum(len(row.detections) for row in rows)})
    for row in rows:
        counts.update(row.problems)
    return dict(counts)


def read_response(value: Any, where: str = "response") -> Served:
    """One response in any layout of the module's table; DataError naming `where` for any other."""
    if isinstance(value, str):
        return Served(value, None, None, [])
    if not isinstance(value, dict):
        raise DataError(located("not a response", file=where, expected="a JSON object", found=type(value).__name__))
    image_id = value.get("custom_id", value.get("image_id"))
    body = value["response"].get("body") if isinstance(value.get("response"), dict) else value
    text, reason, tokens = _text_of(body if isinstance(body, dict) else {})
    if text is None:
        fix = "see docs/serving.md for the layouts that are read"
        raise DataError(located("no answer in this response", file=where, found=sorted(value), fix=fix))
    finish = None if reason is None else "length" if reason == "length" else "stop"
    return Served(text, finish, None if image_id is None else str(image_id), tokens)


def spelling(text: str, tokens: Sequence[Token]) -> list[Token] | None:
    """`tokens` so that they spell `text` from its beginning; None where they cannot.

    Servers that show tokens as text replace a piece of a character, which no text can hold, by U+FFFD. Such pieces
    stand in descriptions: from the first token that does not fit to the one with the closing quote they are put
    together as one, with the sum of their log probabilities.
    """
    data, position, spelt, at = text.encode(), 0, [], 0
    while at < len(tokens) and position < len(data):
        piece, logprob = tokens[at]
        if not data.startswith(piece, position):
            following = _after_description(data, position, tokens, at)
            if following is None:
                return None
            stop, end = following
            piece, logprob = data[position:end], sum(value for _, value in tokens[at:stop])
            at = stop - 1
        spelt.append((piece, logprob))
        position, at = position + len(piece), at + 1
    return spelt if position == len(data) else None


def _after_description(data: bytes, position: int, tokens: Sequence[Token], at: int) -> tuple[int, int] | None:
    """(tokens, bytes) up to behind the next token from `at` with a quote, if it has the next quote of `data`."""
    quote = data.find(b'"', position)
    for stop, (piece, _) in enumerate(tokens[at:], at + 1):
        if (place := piece.find(b'"')) >= 0:
            tail = piece[place:]
            return (stop, quote + len(tail)) if quote >= 0 and data.startswith(tail, quote) else None
    return None


def _text_of(body: dict[str, Any]) -> tuple[str | None, str | None, list[Token]]:
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
    """Tokens with their log probabilities in a chat completion's layout, or in a completion's.

    A token's `bytes` are taken where those of all tokens spell the text: some servers encode what they show.
    """
    if content := logprobs.get("content"):
        values = [item["logprob"] for item in content]
        if text is not None and all(item.get("bytes") for item in content):
            pieces = [bytes(item["bytes"]) for item in content]
            if b"".join(pieces).startswith(text.encode()):
                return list(zip(pieces, values, strict=True))
        return [(item["token"].encode(), value) for item, value in zip(content, values, strict=True)]
    pairs = zip(logprobs.get("tokens") or [], logprobs.get("token_logprobs") or [], strict=True)
    return [(token.encode(), 0.0 if logprob is None else logprob) for token, logprob in pairs]


def _assign(path: str | Path, image_ids: Sequence[str]) -> list[Served]:
    """The answers in the order of the records."""
    numbers = [number for number, _ in enumerate_lines(path)]
    answers = [read_response(value, f"{path}:{n}") for n, value in zip(numbers, read_jsonl(path), strict=True)]
    if len(answers) != len(image_ids):
        fix = "ask for every record once"
        raise DataError(located("count of answers", file=path, expected=len(image_ids), found=len(answers), fix=fix))
    if all(answer.image_id is None for answer in answers):
        return answers
    by_id = {answer.image_id: answer for answer in answers}
    missing = [image_id for image_id in image_ids if image_id not in by_id]
    if missing:
        fix = "send the record's image_id as custom_id, once each"
        raise DataError(located("no answer for an image", file=path, field="custom_id", expected=missing[0], fix=fix))
    return [by_id[image_id] for image_id in image_ids]


def _prediction(answer: Served, tokens: list[Token] | None, record: Record, how: Reading) -> Prediction:
    parsed = parse_answer(answer.text, how.coordinates)
    problems = Counter(parsed.problems)
    problems["logprobs_unaligned"] += bool(answer.tokens) and tokens is None
    size = (record.width, record.height)
    detections = []
    for obj in parsed.objects:
        parts = token_logprobs(obj, answer.text, tokens) if tokens else {}
        found = plain_detection(obj, parts, size, how.emit_norm)
        detections.append(found if parts else msgspec.structs.replace(found, score=how.unscored))
    problems["unscored_boxes"] += len(detections) if not tokens and how.unscored < 1 else 0
    return Prediction(
        image_id=record.metadata.image_id,
        source_width=record.metadata.source_width,
        source_height=record.metadata.source_height,
        protocol=how.protocol,
        finish=answer.finish or ("length" if "cut_off" in parsed.problems else "stop"),
        text=answer.text,
        detections=detections,
        problems={reason: count for reason, count in problems.items() if count},
    )
