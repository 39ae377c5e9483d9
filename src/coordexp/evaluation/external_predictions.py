"""Reads predictions of other models and tools, so that every model is scored by the same code.

| format     | file                      | box                                 | unit                      |
|------------|---------------------------|-------------------------------------|---------------------------|
| coordexp   | predictions.jsonl         | norm                                | [0, 1]                    |
| coco       | COCO results, a JSON list | bbox, x y w h                       | pixel of the source image |
| json-pixel | answers, JSON lines       | bbox_2d or bbox or box, x1 y1 x2 y2 | pixel of the source image |
| json-1000  | answers, JSON lines       | bbox_2d or bbox or box, x1 y1 x2 y2 | 0..1000                   |
| qwen2.5-vl | answers, JSON lines       | bbox_2d, x1 y1 x2 y2                | pixel of the model input  |
| qwen3-vl   | answers, JSON lines       | bbox_2d, x1 y1 x2 y2                | 0..1000                   |
| gemini     | answers, JSON lines       | box_2d, y1 x1 y2 x2                 | 0..1000                   |
| internvl   | answers, JSON lines       | ref and box tags, x1 y1 x2 y2       | 0..1000                   |

A line of an answers file is `{"image_id": ..., "answer": "text"}`, with `"finish": "length"` for a truncated answer.
`qwen2.5-vl` also needs `input_width` and `input_height` in pixels. The user names the format; units are never guessed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from coordexp.evaluation.answer_items import Item, answer_part, json_items, tagged_items
from coordexp.evaluation.detections import CategoryDetection, read_predictions
from coordexp.evaluation.ground_truth import GroundTruth
from coordexp.records import Detection, Prediction
from coordexp.runtime.errors import DataError, located, nearest
from coordexp.runtime.io import NOT_JSON, enumerate_lines, read_json

COORDEXP = "coordexp"


class AnswerFormat(msgspec.Struct, frozen=True):
    """How a model writes boxes in its answers."""

    box_keys: tuple[str, ...]
    unit: Literal["source", "input", "thousand"]
    y_first: bool = False
    tagged: bool = False


ANSWER_FORMATS = {
    "json-pixel": AnswerFormat(("bbox_2d", "bbox", "box"), "source"),
    "json-1000": AnswerFormat(("bbox_2d", "bbox", "box"), "thousand"),
    "qwen2.5-vl": AnswerFormat(("bbox_2d",), "input"),
    "qwen3-vl": AnswerFormat(("bbox_2d",), "thousand"),
    "gemini": AnswerFormat(("box_2d",), "thousand", y_first=True),
    "internvl": AnswerFormat((), "thousand", tagged=True),
}
PREDICTION_FORMATS = (COORDEXP, "coco", *ANSWER_FORMATS)


class _Result(msgspec.Struct):
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


class _Answer(msgspec.Struct):
    image_id: int | str
    answer: str
    finish: Literal["stop", "length"] = "stop"
    input_width: int | None = None
    input_height: int | None = None


_answer_decoder = msgspec.json.Decoder(_Answer)


def read_any_format(
    path: str | Path, ground_truth: GroundTruth, format: str = COORDEXP, *, named_only: bool = False
) -> Iterator[tuple[str, Prediction]]:
    """(location, prediction) of every image in a file of this format; DataError for an unknown format or invalid file.

    COCO results do not mention images without detections. These get an empty prediction, as in pycocotools, or none
    with `named_only`.
    """
    if format not in PREDICTION_FORMATS:
        problem = f"unknown format {format!r}{nearest(format, PREDICTION_FORMATS)}"
        raise DataError(located(problem, file=path, fix=f"use one of {', '.join(PREDICTION_FORMATS)}"))
    if not Path(path).is_file():
        raise DataError(located("file not found", file=path))
    if format == COORDEXP:
        return read_predictions(path)
    if format == "coco":
        return _coco_results(path, ground_truth, named_only)
    return _answers(path, ground_truth, format)


def default_format(path: str | Path) -> str:
    """Format of a file if the user names none: `coco` for a JSON list, otherwise `coordexp`."""
    try:
        with Path(path).open("rb") as handle:
            return "coco" if handle.read(64).lstrip().startswith(b"[") else COORDEXP
    except OSError as error:
        raise DataError(located(f"cannot be read: {error.strerror}", file=path)) from error


def parse_answer(text: str, format: str, size: tuple[float, float]) -> tuple[list[Detection], dict[str, int]]:
    """Detections of one answer and problems by reason; never raises, whatever the text.

    `size` is (width, height) in pixels of the image that the coordinates refer to. A truncated answer keeps its
    complete objects. The score is 1 unless the answer states one. Objects in the reasoning before `</think>` are not
    part of the answer; these and unreadable objects are counted by reason (`answer_items.REASONS`).
    """
    answer_format = ANSWER_FORMATS[format]
    scale = (1000.0, 1000.0) if answer_format.unit == "thousand" else size
    reasoning, answer = answer_part(text)
    found, problems = [], Counter()
    unreadable: Counter[str] = Counter()
    drafts = sum(1 for _ in _items(reasoning, answer_format, unreadable)) + unreadable.total()
    if drafts:
        problems["in_reasoning"] = drafts
    for label, box, score in _items(answer, answer_format, problems):
        problem = _item_problem(label, box, score)
        if problem:
            problems[problem] += 1
            continue
        x1, y1, x2, y2 = (box[1], box[0], box[3], box[2]) if answer_format.y_first else box
        norm = [x1 / scale[0], y1 / scale[1], x2 / scale[0], y2 / scale[1]]
        found.append(Detection(desc=label, norm=norm, score=float(score)))
    if not found and not problems and not _is_empty_answer(answer):
        problems["no_object_in_text"] += 1
    return found, dict(problems)


def _coco_results(path: str | Path, ground_truth: GroundTruth, named_only: bool) -> Iterator[tuple[str, Prediction]]:
    content = read_json(path)
    try:
        results = msgspec.convert(content, list[_Result])
    except msgspec.ValidationError as error:
        raise DataError(located(f"not a COCO results file: {error}", file=path)) from error
    count = Counter(c.name for c in ground_truth.categories)
    names = {c.id: c.name if count[c.name] == 1 else f"{c.name} (id {c.id})" for c in ground_truth.categories}
    grouped: dict[int | str, list[Detection]] = {image_id: [] for image_id in ground_truth.image_ids}
    for i, result in enumerate(results):
        if result.image_id not in grouped:
            problem = f"image {result.image_id!r} is not in the annotations"
            raise DataError(located(problem, file=path, field=f"[{i}].image_id"))
        width, height = ground_truth.sizes[ground_truth.index_of[result.image_id]]
        x, y, w, h = result.bbox
        norm = [x / width, y / height, (x + w) / width, (y + h) / height]
        desc = names.get(result.category_id) or f"category id {result.category_id}"
        if result.category_id not in names and desc in count:
            desc += " (unknown)"
        detection = CategoryDetection(desc=desc, norm=norm, score=result.score, category_id=result.category_id)
        grouped[result.image_id].append(detection)
    for image_id, found in grouped.items():
        if found or not named_only:
            yield (
                f"{path}: image {image_id}",
                _prediction(image_id, ground_truth, "coco results", "", "stop", found, {}),
            )


def _answers(path: str | Path, ground_truth: GroundTruth, format: str) -> Iterator[tuple[str, Prediction]]:
    for number, line in enumerate_lines(path):
        try:
            row = _answer_decoder.decode(line)
        except NOT_JSON as error:
            raise DataError(located(f"not an answer: {error}", file=path, line=number)) from error
        index = ground_truth.index_of.get(row.image_id)
        if index is None:
            raise DataError(located(f"image {row.image_id!r} is not in the annotations", file=path, line=number))
        size = tuple(ground_truth.sizes[index])
        if ANSWER_FORMATS[format].unit == "input":
            if not row.input_width or not row.input_height:
                problem = "missing size of the model's input image"
                fix = "add input_width and input_height, in pixels"
                raise DataError(located(problem, file=path, line=number, field="input_width", fix=fix))
            size = (row.input_width, row.input_height)
        found, problems = parse_answer(row.answer, format, size)
        yield (
            f"{path}:{number}",
            _prediction(row.image_id, ground_truth, format, row.answer, row.finish, found, problems),
        )


def _prediction(
    image_id: int | str,
    ground_truth: GroundTruth,
    protocol: str,
    text: str,
    finish: Literal["stop", "length"],
    found: list[Detection],
    problems: dict[str, int],
) -> Prediction:
    width, height = (int(v) for v in ground_truth.sizes[ground_truth.index_of[image_id]])
    return Prediction(image_id, width, height, protocol, finish, text, found, problems)


def _items(text: str, answer_format: AnswerFormat, problems: Counter[str]) -> Iterator[Item]:
    if answer_format.tagged:
        return tagged_items(text, problems)
    return json_items(text, answer_format.box_keys, problems)


def _item_problem(label: Any, box: Any, score: Any) -> str | None:
    if not isinstance(label, str) or not label.strip():
        return "no_label"
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        return "bad_box"
    return None if _is_number(score) else "bad_score"


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 1e12 and (isinstance(value, int) or math.isfinite(value))


def _is_empty_answer(text: str) -> bool:
    """Whether the text is an explicit empty list of objects."""
    return bool(re.fullmatch(r'\s*(```json)?\s*(\[\s*\]|\{\s*"\w+"\s*:\s*\[\s*\]\s*\})\s*(```)?\s*', text))
