"""Finds the objects in the answer of another model; objects that cannot be read are counted by reason.

Every opening of an object with a box is either read or has one of the reasons of `REASONS`, so that the objects listed
in an answer and those accounted for agree.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

LABELS = ("label", "desc", "category", "name", "class")
SCORES = ("score", "confidence")
BOXES = ("bbox_2d", "box_2d", "bbox", "box", "bounding_box", "coordinates")
REASONS = {
    "trailing_comma": "a comma before a closing bracket",
    "quotes": "keys or texts in wrong or unescaped quotes",
    "cut_off": "the text ends within the object",
    "not_json": "otherwise not JSON, or not tagged as the format requires",
    "repeated_key": "an object has two boxes, labels or scores",
    "other_box_key": "the box is under the key of another format",
    "in_reasoning": "the object is in the reasoning before </think>, not in the answer",
}

Item = tuple[Any, Any, Any]  # label, box, score
_TAGGED = re.compile(r"<ref>((?:(?!<ref>|<box>).)*?)</ref>\s*<box>\s*(\[(?:(?!<ref>|<box>).)*?\])\s*</box>", re.DOTALL)
_THINK_END = "</think>"


class _RepeatedKey(dict):
    """A JSON object in which a key of a box, label or score occurs more than once."""


def answer_part(text: str) -> tuple[str, str]:
    """Reasoning and answer: the text before the last `</think>`, or after a `<think>` without end, and the rest."""
    reasoning, end, answer = text.rpartition(_THINK_END)
    if end:
        return reasoning, answer
    answer, start, reasoning = text.partition("<think>")
    return (reasoning, answer) if start else ("", text)


def json_items(text: str, keys: tuple[str, ...], problems: Counter[str]) -> Iterator[Item]:
    """(label, box, score) of every JSON object that has a box under one of `keys`; others are added to `problems`."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    position = 0
    while position < len(text):
        at = text.find("{", position)
        problems.update(_unreadable(text, position, len(text) if at < 0 else at))
        if at < 0:
            return
        try:
            value, position = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            value, stop = None, text.find("{", at + 1)
            position = len(text) if stop < 0 else stop
            problems.update(_unreadable(text, at, position))
        yield from _boxed(value, keys, problems)


def tagged_items(text: str, problems: Counter[str]) -> Iterator[Item]:
    """(label, box, score) of every `<ref>label</ref><box>[...]</box>`; incomplete ones are added to `problems`."""
    position = 0
    for match in _TAGGED.finditer(text):
        problems.update(_untagged(text[position : match.start()], last=False))
        position = match.end()
        try:
            boxes = json.loads(match.group(2)) or [None]
        except (ValueError, RecursionError):
            boxes = [None]
        if not isinstance(boxes[0], list):
            boxes = [boxes]
        for box in boxes:
            yield match.group(1).strip(), box, 1.0
    problems.update(_untagged(text[position:], last=True))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    counts = Counter(key for key, _ in pairs)
    known = (*BOXES, *LABELS, *SCORES)
    return _RepeatedKey(value) if any(counts[key] > 1 for key in known) else value


def _boxed(value: Any, keys: tuple[str, ...], problems: Counter[str]) -> Iterator[Item]:
    """Objects with a box in a decoded value and, at any depth, in the lists and objects within it."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            key = next((k for k in keys if k in item), None)
            if isinstance(item, _RepeatedKey):
                problems["repeated_key"] += 1
            elif key is not None:
                label = next((item[k] for k in LABELS if k in item), None)
                yield label, item[key], next((item[k] for k in SCORES if k in item), 1.0)
            elif any(isinstance(item.get(k), list) and _is_flat(item[k]) for k in BOXES):
                problems["other_box_key"] += 1
            stack.extend(reversed(item.values()))
        elif isinstance(item, list):
            stack.extend(reversed(item))


def _is_flat(box: list) -> bool:
    return bool(box) and not any(isinstance(value, dict) for value in box)


_KEY = re.compile(rf"""(?<!\w)({"|".join(BOXES)})\\?["'”’]?\s*(?:[:=]|(?=[\[(]))""")
_PARTIAL = re.compile(rf"""\{{\s*(?:["']?\w*\Z|["']?(?:{"|".join(LABELS)})["']?\s*:)""")


def _unreadable(text: str, start: int, stop: int) -> dict[str, int]:
    """Unreadable objects with a box in `text[start:stop]`, a part without a complete JSON object, by reason."""
    part = text[start:stop]
    matches = _KEY.finditer(part)
    if not part.startswith("{"):  # prose, in which "box:" without quotes is no key
        matches = (m for m in matches if part[max(m.start() - 1, 0)] in "\"'")
    count = max(Counter(m.group(1) for m in matches).values(), default=0)
    last = stop == len(text)
    if not count and last and "}" not in part and _PARTIAL.match(part):
        count = 1
    return {_reason(part, last): count} if count else {}


def _reason(part: str, last: bool) -> str:
    if re.search(r",\s*[}\]]", part):
        return "trailing_comma"
    if last and "}" not in part:
        return "cut_off"
    if re.search(r"[{,]\s*['“”‘’]|[{,]\s*\w+\s*:", part) or part.count('"') % 2:
        return "quotes"
    return "not_json"


def _untagged(part: str, *, last: bool) -> dict[str, int]:
    """Boxes without a complete pair of tags in a part of the text, by reason."""
    count = part.count("<box>")
    rest = part.rpartition("<box>")[2] if count else part
    if last and count and "</box>" not in rest:
        return {"cut_off": 1} | ({"not_json": count - 1} if count > 1 else {})
    if last and re.search(r"<ref>[^<]*(?:</ref>\s*)?(?:<[^>]*)?\Z", rest):
        return {"cut_off": 1} | ({"not_json": count} if count else {})
    return {"not_json": count} if count else {}
