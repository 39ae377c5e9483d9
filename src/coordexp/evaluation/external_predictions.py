"""Reads predictions of other models and tools, so that every model is scored by the same code.

| format   | file                                                   | box, unit                              |
|----------|--------------------------------------------------------|----------------------------------------|
| coordexp | predictions.jsonl                                      | norm, [0, 1]                           |
| coco     | COCO results, a JSON list                              | bbox, x y w h, pixel of the source     |
| others   | answers, JSON lines, in a format of `answer_formats`   | declared there                         |

A line of an answers file is `{"image_id": ..., "answer": "text"}`, with `"finish": "length"` for a truncated answer.
Structured output may also be a JSON object instead of a text. Some formats need more:

- `input_width` and `input_height`, in pixels (`qwen2.5-vl`);
- `label`, the label in the prompt, if the answer does not repeat it (`moondream`). Consecutive lines of an image, each
  with another label, are one prediction;
- `classes`, the names of the model's classes in their order, on the first line (`mmdet`).

The user names the format; units are never guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import msgspec

from coordexp.evaluation.answer_formats import ANSWER_FORMATS, parse_answer
from coordexp.evaluation.detections import CategoryDetection, read_predictions
from coordexp.evaluation.ground_truth import GroundTruth
from coordexp.records import Detection, Prediction
from coordexp.runtime.errors import DataError, located, nearest
from coordexp.runtime.io import NOT_JSON, enumerate_lines, read_json

COORDEXP = "coordexp"


PREDICTION_FORMATS = (COORDEXP, "coco", *ANSWER_FORMATS)


class _Result(msgspec.Struct):
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


class _Answer(msgspec.Struct):
    image_id: int | str
    answer: str | dict[str, Any] | list[Any]
    finish: Literal["stop", "length"] = "stop"
    input_width: int | None = None
    input_height: int | None = None
    label: str | None = None
    classes: list[str] = []


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
    """Predictions of an answers file; consecutive lines of one image with different labels are one prediction."""
    classes: Sequence[str] = ()
    pending: tuple[str, Prediction] | None = None
    labels: set[str] = set()  # of the pending prediction
    for number, line in enumerate_lines(path):
        try:
            row = _answer_decoder.decode(line)
        except NOT_JSON as error:
            raise DataError(located(f"not an answer: {error}", file=path, line=number)) from error
        classes = row.classes or classes
        prediction = _answer_prediction(row, ground_truth, format, classes, path, number)
        if pending and pending[1].image_id == row.image_id and row.label and labels and row.label not in labels:
            pending = (pending[0], _joined(pending[1], prediction))
            labels.add(row.label)
            continue
        if pending:
            yield pending
        pending, labels = (f"{path}:{number}", prediction), {row.label} if row.label else set()
    if pending:
        yield pending


def _answer_prediction(
    row: _Answer, ground_truth: GroundTruth, format: str, classes: Sequence[str], path: str | Path, number: int
) -> Prediction:
    def fail(problem: str, **facts: Any) -> NoReturn:
        raise DataError(located(problem, file=path, line=number, **facts))

    answer_format = ANSWER_FORMATS[format]
    index = ground_truth.index_of.get(row.image_id)
    if index is None:
        fail(f"image {row.image_id!r} is not in the annotations")
    size = tuple(ground_truth.sizes[index])
    if answer_format.space == "input":
        if not row.input_width or not row.input_height:
            fix = "add input_width and input_height, in pixels"
            fail("missing size of the model's input image", field="input_width", fix=fix)
        size = (row.input_width, row.input_height)
    if answer_format.label == "prompt" and not row.label:
        fail("missing label", field="label", fix=f"add the label of the prompt, which {format} answers do not repeat")
    if answer_format.label == "index" and not classes:
        fail("missing class names", field="classes", fix="add the names of the model's classes, in their order")
    text = row.answer if isinstance(row.answer, str) else msgspec.json.encode(row.answer).decode()
    found, problems = parse_answer(text, format, size, label=row.label, classes=classes)
    return _prediction(row.image_id, ground_truth, format, text, row.finish, found, problems)


def _joined(first: Prediction, second: Prediction) -> Prediction:
    """One prediction of the answers to two prompts for the same image."""
    return msgspec.structs.replace(
        first,
        finish="length" if "length" in (first.finish, second.finish) else "stop",
        text=f"{first.text}\n{second.text}",
        detections=[*first.detections, *second.detections],
        problems=dict(Counter(first.problems) + Counter(second.problems)),
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
