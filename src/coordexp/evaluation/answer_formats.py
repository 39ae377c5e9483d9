"""The answer formats of other models: how each writes objects, and in which space its coordinates are.

| format           | answer                                      | box                                 |
|------------------|---------------------------------------------|-------------------------------------|
| json-pixel       | JSON, bbox_2d or bbox or box                | x1 y1 x2 y2, pixel of the source    |
| json-1000        | JSON, bbox_2d or bbox or box                | x1 y1 x2 y2, 0..1000                |
| qwen2.5-vl       | JSON, bbox_2d                               | x1 y1 x2 y2, pixel of the input     |
| qwen3-vl         | JSON, bbox_2d                               | x1 y1 x2 y2, 0..1000                |
| qwen3.5          | JSON, bbox_2d                               | x1 y1 x2 y2, 0..1000                |
| gemini           | JSON, box_2d                                | y1 x1 y2 x2, 0..1000                |
| internvl         | ref and box tags, lists                     | x1 y1 x2 y2, 0..1000                |
| rex-omni         | object_ref and box tags, tokens             | x1 y1 x2 y2, bins 0..999 = 0..1     |
| locate-anything  | ref and box tags, tokens                    | x1 y1 x2 y2, 0..1000                |
| florence-2       | label and loc tokens                        | x1 y1 x2 y2, centres of 1000 bins   |
| paligemma        | loc tokens and label                        | y1 x1 y2 x2, 0..1024                |
| moondream        | JSON, x_min, y_min, x_max, y_max            | x1 y1 x2 y2, 0..1                   |
| grounding-dino   | JSON columns boxes, scores, text_labels     | x1 y1 x2 y2, pixel of the source    |
| groundingdino    | JSON columns boxes, logits, phrases         | centre x y, width, height, 0..1     |
| mmdet            | JSON columns bboxes, scores, labels         | x1 y1 x2 y2, pixel of the source    |

`grounding-dino` is the output of transformers (`post_process_grounded_object_detection` with `target_sizes`),
`groundingdino` that of the original repository (`predict`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from coordexp.evaluation import answer_tokens
from coordexp.evaluation.answer_columns import column_items, moondream_items
from coordexp.evaluation.answer_items import Item, answer_part, json_items, tagged_items
from coordexp.records import Detection

Reader = Callable[..., Iterator[Item]]
_JSON_KEYS = ("bbox_2d", "bbox", "box")


class AnswerFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How a model writes boxes in its answers.

    space: `source` or `input` for pixels of the source image or of the model's input, or the coordinate of the right
        and lower edge of the image.
    offset: added to a coordinate before it is divided by the size of the space (.5 for the centre of a bin).
    bins: number of bins if coordinates are tokens; others are invalid.
    label: where the label is: in the answer, in the prompt (the line of the answer repeats it), or an index into the
        model's classes.
    """

    read: Reader
    space: Literal["source", "input"] | float
    offset: float = 0.0
    bins: int | None = None
    order: Literal["xyxy", "yxyx", "cxcywh"] = "xyxy"
    label: Literal["answer", "prompt", "index"] = "answer"


def _json(*keys: str) -> Reader:
    return partial(json_items, keys=keys)


ANSWER_FORMATS = {
    "json-pixel": AnswerFormat(read=_json(*_JSON_KEYS), space="source"),
    "json-1000": AnswerFormat(read=_json(*_JSON_KEYS), space=1000),
    "qwen2.5-vl": AnswerFormat(read=_json("bbox_2d"), space="input"),
    "qwen3-vl": AnswerFormat(read=_json("bbox_2d"), space=1000),
    "qwen3.5": AnswerFormat(read=_json("bbox_2d"), space=1000),
    "gemini": AnswerFormat(read=_json("box_2d"), space=1000, order="yxyx"),
    "internvl": AnswerFormat(read=tagged_items, space=1000),
    "rex-omni": AnswerFormat(read=answer_tokens.rex_omni_items, space=999, bins=1000),
    "locate-anything": AnswerFormat(read=answer_tokens.locate_anything_items, space=1000, bins=1001),
    "florence-2": AnswerFormat(read=answer_tokens.florence_items, space=1000, offset=0.5, bins=1000),
    "paligemma": AnswerFormat(read=answer_tokens.paligemma_items, space=1024, bins=1024, order="yxyx"),
    "moondream": AnswerFormat(read=moondream_items, space=1, label="prompt"),
    "grounding-dino": AnswerFormat(
        read=partial(column_items, boxes="boxes", scores="scores", labels=("text_labels", "labels")), space="source"
    ),
    "groundingdino": AnswerFormat(
        read=partial(column_items, boxes="boxes", scores="logits", labels=("phrases",)), space=1, order="cxcywh"
    ),
    "mmdet": AnswerFormat(
        read=partial(column_items, boxes="bboxes", scores="scores", labels=("labels",)), space="source", label="index"
    ),
}


def parse_answer(
    text: str, format: str, size: tuple[float, float], *, label: str | None = None, classes: Sequence[str] = ()
) -> tuple[list[Detection], dict[str, int]]:
    """Detections of one answer and problems by reason; never raises, whatever the text.

    `size` is (width, height) in pixels of the image that the coordinates refer to. `label` is that of objects without
    one, `classes` the names that integer labels refer to. A truncated answer keeps its complete objects. The score is 1
    unless the answer states one. Objects in the reasoning before `</think>` are not part of the answer; these and
    unreadable objects are counted by reason (`answer_items.REASONS`).
    """
    answer_format = ANSWER_FORMATS[format]
    read = partial(answer_format.read, classes=classes) if answer_format.label == "index" else answer_format.read
    reasoning, answer = answer_part(text)
    found, problems = [], Counter()
    unreadable: Counter[str] = Counter()
    drafts = sum(1 for _ in read(reasoning, problems=unreadable)) + unreadable.total()
    if drafts:
        problems["in_reasoning"] = drafts
    for own_label, box, score in read(answer, problems=problems):
        name = label if own_label in (None, "") else own_label
        problem = _item_problem(name, box, score, answer_format.bins)
        if problem:
            problems[problem] += 1
        else:
            found.append(Detection(desc=name, norm=_norm(box, answer_format, size), score=float(score)))
    if not found and not problems and not _is_empty_answer(answer, answer_format):
        problems["no_object_in_text"] += 1
    return found, dict(problems)


def _norm(box: list[float], answer_format: AnswerFormat, size: tuple[float, float]) -> list[float]:
    """A box of the format as x1, y1, x2, y2 in [0, 1]."""
    space = answer_format.space
    width, height = size if isinstance(space, str) else (space, space)
    a, b, c, d = (value + answer_format.offset for value in box)
    if answer_format.order == "yxyx":
        a, b, c, d = b, a, d, c
    elif answer_format.order == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return [a / width, b / height, c / width, d / height]


def _item_problem(label: Any, box: Any, score: Any, bins: int | None) -> str | None:
    if not isinstance(label, str) or not label.strip():
        return "no_label"
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        return "bad_box"
    if bins is not None and not all(0 <= v < bins for v in box):
        return "bad_box"
    return None if _is_number(score) else "bad_score"


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 1e12 and (isinstance(value, int) or math.isfinite(value))


def _is_empty_answer(text: str, answer_format: AnswerFormat) -> bool:
    """Whether the text states that there are no objects."""
    if answer_format.bins is not None:
        return answer_tokens.is_empty_answer(text)
    return bool(
        re.fullmatch(r'\s*(```json)?\s*(\[\s*\]|\{(\s*"\w+"\s*:\s*(\[\s*\]|"[^"]*")\s*,?)+\})\s*(```)?\s*', text)
    )
