"""Answers that another server generated, as predictions: vLLM, SGLang, transformers, or any list of texts.

One JSON line is one answer, in any of these layouts (see docs/serving.md):

| layout                        | text                           | why it ended             |
|-------------------------------|--------------------------------|--------------------------|
| OpenAI chat completion        | `choices[0].message.content`   | `choices[0].finish_reason` |
| OpenAI completion             | `choices[0].text`              | `choices[0].finish_reason` |
| OpenAI batch output           | `response.body` is one of both | as there                 |
| SGLang `/generate`            | `text`                         | `meta_info.finish_reason.type` |
| transformers, or your own     | `generated_text` or `text`     | `finish_reason`          |

`custom_id` or `image_id` names the picture; without one, lines are in the order of the records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from coordexp.contract import Prediction, Record
from coordexp.errors import DataError, located
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.infer.detections import plain_detection, token_logprobs
from coordexp.io import enumerate_lines, read_jsonl, read_records, write_jsonl
from coordexp.parse import parse_answer

Coordinates = Literal["token", "integer"]


class Served(NamedTuple):
    """One answer of a server. `tokens` are (text, log probability) pairs where the server gave them."""

    text: str
    finish: Literal["stop", "length"]
    image_id: str | None
    tokens: list[tuple[str, float]]


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
    A coordinate is its token's bin. With log probabilities in the response a score is made from them, without
    any it is 1.0 for every detection, which ranks nothing. `coordinates` as in the style of the prompt.
    """
    records = list(read_records(records_jsonl, "pixel"))
    answers = _assign(responses_jsonl, [str(record.metadata.image_id) for record in records])
    pairs = zip(answers, records, strict=True)
    rows = [_prediction(answer, record, emit_norm, protocol, coordinates) for answer, record in pairs]
    write_jsonl(out, rows)
    counts = Counter({"pictures": len(rows), "detections": sum(len(row.detections) for row in rows)})
    for row in rows:
        counts.update(row.problems)
    return dict(counts)


def read_response(value: Any, where: str = "response") -> Served:
    """One response in any layout of the module's table; DataError naming `where` for any other."""
    if isinstance(value, str):
        return Served(value, "stop", None, [])
    if not isinstance(value, dict):
        raise DataError(located("not a response", file=where, expected="a JSON object", found=type(value).__name__))
    image_id = value.get("custom_id", value.get("image_id"))
    body = value["response"].get("body") if isinstance(value.get("response"), dict) else value
    text, reason, tokens = _text_of(body if isinstance(body, dict) else {})
    if text is None:
        fix = "see docs/serving.md for the layouts that are read"
        raise DataError(located("no answer in this response", file=where, found=sorted(value), fix=fix))
    return Served(text, "length" if reason == "length" else "stop", None if image_id is None else str(image_id), tokens)


def _text_of(body: dict[str, Any]) -> tuple[str | None, str | None, list[tuple[str, float]]]:
    if isinstance(body.get("choices"), list) and body["choices"]:
        choice = body["choices"][0]
        text = choice["message"].get("content") if isinstance(choice.get("message"), dict) else choice.get("text")
        return text, choice.get("finish_reason"), _tokens(choice.get("logprobs") or {})
    reason = body.get("finish_reason")
    meta = body.get("meta_info")
    if isinstance(meta, dict):
        reason = meta.get("finish_reason")
        reason = reason.get("type") if isinstance(reason, dict) else reason
    text = body.get("generated_text", body.get("text"))
    return (text if isinstance(text, str) else None), reason, []


def _tokens(logprobs: dict[str, Any]) -> list[tuple[str, float]]:
    """Tokens with their log probabilities in a chat completion's layout, or in a completion's."""
    if logprobs.get("content"):
        return [(item["token"], item["logprob"]) for item in logprobs["content"]]
    pairs = zip(logprobs.get("tokens") or [], logprobs.get("token_logprobs") or [], strict=True)
    return [(token, 0.0 if logprob is None else logprob) for token, logprob in pairs]


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


def _prediction(
    answer: Served, record: Record, emit_norm: EmitNorm, protocol: str, coordinates: Coordinates
) -> Prediction:
    parsed = parse_answer(answer.text, coordinates)
    problems = Counter(parsed.problems)
    # servers list the token that ends the answer, and leave it out of the text
    spelt = "".join(text for text, _ in answer.tokens).startswith(answer.text)
    problems["logprobs_unaligned"] += bool(answer.tokens) and not spelt
    tokens = [(text.encode(), logprob) for text, logprob in answer.tokens] if spelt else []
    parts = [token_logprobs(obj, answer.text, tokens) if tokens else {} for obj in parsed.objects]
    size = (record.width, record.height)
    return Prediction(
        image_id=record.metadata.image_id,
        source_width=record.metadata.source_width,
        source_height=record.metadata.source_height,
        protocol=protocol,
        finish=answer.finish if parsed.complete else "length",
        text=answer.text,
        detections=[plain_detection(o, p, size, emit_norm) for o, p in zip(parsed.objects, parts, strict=True)],
        problems={reason: count for reason, count in problems.items() if count},
    )
