"""Import the responses of another engine as predictions: vLLM, SGLang, transformers, or any list of texts.

Each JSON line is one response, in any of the formats that `responses` parses (see docs/serving.md).
`custom_id` or `image_id` identifies the image; without one, lines must be in the order of the records.
"""

from __future__ import annotations

import bisect
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from coordexp.answers.formats import AnswerFormat, format_of
from coordexp.answers.inference_settings import InferenceSettings
from coordexp.answers.parsed_answer import Coordinates
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.inference.checkpoint_settings import settings_of
from coordexp.inference.overrides import resolve
from coordexp.inference.responses import Response, Token, parse_response
from coordexp.inference.scores import detection_from_text, served_detection, text_score_parts
from coordexp.records import Prediction, Record, read_records
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import enumerate_lines, read_jsonl, write_jsonl

MAX_LISTED = 20  # failed requests that are listed one by one


class ParseSettings(NamedTuple):
    """How responses become predictions; `default_score` is the score of detections without log probabilities."""

    emit_norm: EmitNorm
    protocol: str
    answer_format: AnswerFormat
    default_score: float


def import_responses(
    responses_jsonl: str | Path,
    records_jsonl: str | Path,
    out: str | Path,
    emit_norm: EmitNorm | None = None,
    protocol: str = "served",
    coordinates: Coordinates | None = None,
    model_dir: str | Path | None = None,
    answer_format: str | None = None,
) -> dict[str, int]:
    """Write one `records.Prediction` per record; returns counts, those of problems by reason included.

    records_jsonl: the pixel-space records that were asked about; each needs exactly one response.
    emit_norm, coordinates, answer_format: as in training; default to what the checkpoint `model_dir` records, or
        without it to `norm1000`, `token` and `json`. An override of a recorded value is announced on stderr.

    A coordinate is the bin of its token. Scores come from log probabilities in the responses. If no response has any,
    every score is 1.0, which ranks nothing. If only some have usable ones, the other detections get 0.0, so that they
    rank last, and are counted as `unscored_boxes`. A failed request is an answer without objects, counted as
    `failed_requests` and reported on stderr with the server's error; DataError if all failed.
    """
    recorded = settings_of(model_dir, "parse") if model_dir else InferenceSettings()
    if model_dir:
        emit_norm = resolve("parse", "emit_norm", emit_norm, recorded.emit_norm, None)
        coordinates = resolve("parse", "coordinates", coordinates, recorded.style.coordinates, None)
        answer_format = resolve("parse", "answer_format", answer_format, recorded.style.answer_format, None)
    records = list(read_records(records_jsonl, "pixel"))
    responses = _match_to_records(responses_jsonl, [str(record.metadata.image_id) for record in records])
    _report_failed(responses, responses_jsonl)
    changes = {"coordinates": coordinates, "answer_format": answer_format}
    style = msgspec.structs.replace(recorded.style, **{name: value for name, value in changes.items() if value})
    written = format_of(style)
    aligned = [align_tokens(response.text, response.tokens, written.terminator) for response in responses]
    default_score = 0.0 if any(aligned) else 1.0
    settings = ParseSettings(emit_norm or recorded.emit_norm, protocol, written, default_score)
    rows = [
        _prediction(response, tokens, record, settings)
        for response, tokens, record in zip(responses, aligned, records, strict=True)
    ]
    write_jsonl(out, rows)
    counts = Counter({"images": len(rows), "detections": sum(len(row.detections) for row in rows)})
    for row in rows:
        counts.update(row.problems)
    return dict(counts)


def align_tokens(text: str, tokens: Sequence[Token], terminator: str = '"') -> list[Token] | None:
    """`tokens`, adjusted so that their bytes spell `text` from its start; None if that is impossible.

    Engines that return tokens as text replace parts of a multi-byte character by U+FFFD. Such tokens occur in
    descriptions: from the first token that does not match up to the one with the `terminator` of the description, they
    are merged into one token with the sum of their log probabilities.
    """
    data, position, aligned, at = text.encode(), 0, [], 0
    while at < len(tokens) and position < len(data):
        token, logprob = tokens[at]
        if not data.startswith(token, position):
            following = _after_description(data, position, tokens[at:], terminator.encode())
            if following is None:
                return None
            count, end = following
            token, logprob = data[position:end], sum(value for _, value in tokens[at : at + count])
            at += count - 1
        aligned.append((token, logprob))
        position, at = position + len(token), at + 1
    return aligned if position == len(data) else None


def _after_description(
    data: bytes, position: int, tokens: Sequence[Token], terminator: bytes
) -> tuple[int, int] | None:
    """(number of tokens, byte offset) up to the next terminator in `tokens`, if it matches the next one in `data`."""
    end = data.find(terminator, position)
    for count, (token, _) in enumerate(tokens, 1):
        if (offset := token.find(terminator)) >= 0:
            tail = token[offset:]
            return (count, end + len(tail)) if end >= 0 and data.startswith(tail, end) else None
    return None


def _match_to_records(path: str | Path, image_ids: Sequence[str]) -> list[Response]:
    """The responses in the order of the records."""
    numbers = [number for number, _ in enumerate_lines(path)]
    responses = [parse_response(value, f"{path}:{n}") for n, value in zip(numbers, read_jsonl(path), strict=True)]
    if len(responses) != len(image_ids):
        fix = "request every record once"
        found = len(responses)
        raise DataError(located("wrong number of responses", file=path, expected=len(image_ids), found=found, fix=fix))
    if all(response.image_id is None for response in responses):
        return responses
    by_id = {response.image_id: response for response in responses}
    missing = [image_id for image_id in image_ids if image_id not in by_id]
    if missing:
        fix = "send the record's image_id as custom_id, once per record"
        problem = "an image has no response"
        raise DataError(located(problem, file=path, field="custom_id", expected=missing[0], fix=fix))
    return [by_id[image_id] for image_id in image_ids]


def _report_failed(responses: Sequence[Response], path: str | Path) -> None:
    """Report failed requests on stderr; DataError if all of `responses` failed."""
    failed = [(n, response) for n, response in enumerate(responses, 1) if response.error is not None]
    if not failed:
        return
    if len(failed) == len(responses):
        error = failed[0][1].error
        raise DataError(located("every request failed", file=path, found=error, fix="repeat the requests"))
    print(f"parse: {len(failed)} of {len(responses)} requests failed; repeat them:", file=sys.stderr)
    for n, response in failed[:MAX_LISTED]:
        name = f"image {response.image_id}" if response.image_id is not None else f"response {n}"
        print(f"  {name}: {response.error}", file=sys.stderr)
    if len(failed) > MAX_LISTED:
        print(f"  ... and {len(failed) - MAX_LISTED} more", file=sys.stderr, flush=True)


def _prediction(response: Response, tokens: list[Token] | None, record: Record, settings: ParseSettings) -> Prediction:
    parsed = settings.answer_format.parse(response.text)
    problems = Counter(parsed.problems if response.error is None else {"failed_requests": 1})
    problems["logprobs_unaligned"] += bool(response.tokens) and tokens is None
    problems["logprobs_invalid"] += response.invalid_logprobs
    size = (record.width, record.height)
    starts = settings.answer_format.coordinate_starts(response.text)
    coordinates = response.coordinates if tokens and len(response.coordinates) == len(starts) else ()
    detections = []
    for obj in parsed.objects:
        parts = text_score_parts(obj, response.text, tokens) if tokens else {}
        first = bisect.bisect_left(starts, obj.span[0])
        served = coordinates[first : first + len(obj.bins)]
        if served and [coordinate.bin for coordinate in served] == obj.bins:
            detection = served_detection(obj, served, parts, size, settings.emit_norm)
        else:
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
