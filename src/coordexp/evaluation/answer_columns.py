"""Objects in structured output: the columns of detectors such as Grounding DINO and MMDetection, and Moondream's list.

Each reader yields (label, box, score); invalid ones are counted by reason (`answer_items.REASONS`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from coordexp.evaluation.answer_items import Item

_CORNERS = ("x_min", "y_min", "x_max", "y_max")


def column_items(
    text: str, problems: Counter[str], *, boxes: str, scores: str, labels: Sequence[str], classes: Sequence[str] = ()
) -> Iterator[Item]:
    """Rows of a JSON object with a list of boxes, of scores and of labels, under these keys.

    labels: keys of which the first that occurs is used. An integer label is an index into `classes`.
    """
    content = _decoded(text, problems)
    if not isinstance(content, dict):
        return
    key = next((k for k in labels if k in content), labels[0])
    columns = [content.get(k) for k in (key, boxes, scores)]
    lengths = [len(column) if isinstance(column, list) else 0 for column in columns]
    if len(set(lengths)) > 1:
        problems["unequal_columns"] += max(lengths)
        return
    for label, box, score in zip(*(column or [] for column in columns), strict=True):
        yield _class_name(label, classes), box, score


def moondream_items(text: str, problems: Counter[str]) -> Iterator[Item]:
    """`{"objects": [{"x_min": 0.1, "y_min": 0.2, "x_max": 0.5, "y_max": 0.9}]}`; the prompt names the label."""
    content = _decoded(text, problems)
    objects = content.get("objects") if isinstance(content, dict) else None
    for item in objects if isinstance(objects, list) else []:
        corners = [item[key] for key in _CORNERS if key in item] if isinstance(item, dict) else None
        yield None, corners, 1.0


def _decoded(text: str, problems: Counter[str]) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if text.lstrip().startswith("{"):
            problems["cut_off" if not text.rstrip().endswith("}") else "not_json"] += 1
        return None


def _class_name(label: Any, classes: Sequence[str]) -> Any:
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(classes):
        return classes[label]
    return label
