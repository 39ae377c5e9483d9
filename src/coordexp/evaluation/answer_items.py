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
    "no_box": "an object without a box under a key of the format",
    "bare_box": "coordinates outside an object, or in the notation of another format",
    "unequal_columns": "the lists of boxes, scores and labels differ in length",
    "in_reasoning": "the object is in the reasoning before </think>, not in the answer",
}

Item = tuple[Any, Any, Any]  # label, box, score
_TAGGED = re.compile(r"<ref>((?:(?!<ref>|<box>).)*?)</ref>\s*<box>\s*(\[(?:(?!<ref>|<box>).)*?\])\s*</box>", re.DOTALL)
_THINK, _THINK_END = re.compile(r"<think(?:ing)?>"), re.compile(r"</think(?:ing)?>")


class _RepeatedKey(dict):
    """A JSON object in which a key of a box, label or score occurs more than once."""


def answer_part(text: str) -> tuple[str, str]:
    """Reasoning and answer: the text before the last `</think>` or `</thinking>`, or after one that does not end."""
    ends = list(_THINK_END.finditer(text))
    if ends:
        return text[: ends[-1].start()], text[ends[-1].end() :]
    start = _THINK.search(text)
    return (text[start.end() :], text[: start.start()]) if start else ("", text)


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
        nested = text[:at].rstrip().endswith(":")  # a value within an object that cannot be read
        yield from _boxed(value, keys, problems, nested=nested)


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


def _boxed(value: Any, keys: tuple[str, ...], problems: Counter[str], *, nested: bool) -> Iterator[Item]:
    """Objects with a box in a decoded value and, at any depth, in the lists and objects within it.

    `nested`: an object without a box is an attribute of another one, not an object itself.
    """
    stack = [(value, False)]
    while stack:
        item, attribute = stack.pop()  # whether an attribute of an object that was read or counted
        if isinstance(item, dict):
            key = next((k for k in keys if k in item), None)
            other = any(k in item for k in BOXES)
            if isinstance(item, _RepeatedKey) or (
                key is not None and any(k in item and item[k] != item[key] for k in keys)
            ):
                problems["repeated_key"] += 1
            elif key is not None:
                label = next((item[k] for k in LABELS if k in item), None)
                yield label, item[key], next((item[k] for k in SCORES if k in item), 1.0)
            elif other and not _contains_objects(item):
                problems["other_box_key"] += 1
            elif not (attribute or _contains_objects(item)) and (not nested or _has_coordinates(item)):
                problems["no_box"] += 1
            inner = attribute or key is not None or other
            stack.extend((child, inner) for child in reversed(item.values()))
        elif isinstance(item, list):
            stack.extend((child, attribute) for child in reversed(item))


def _contains_objects(item: dict) -> bool:
    """Whether an object holds other objects or an empty list of them, instead of being one itself."""
    values = [(k, v) for k, v in item.items() if k not in BOXES or not isinstance(v, dict)]
    return any(isinstance(v, dict) or (isinstance(v, list) and (not v or isinstance(v[0], dict))) for _, v in values)


def _has_coordinates(item: dict) -> bool:
    numbers = [v for v in item.values() if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) >= 4 or any(isinstance(v, list) and len(v) >= 4 for v in item.values())


_KEY = re.compile(rf"""(?<!\w)({"|".join(BOXES)})\\?["'”’]?\s*(?:[:=]|(?=[\[(]))""")
_PARTIAL = re.compile(rf"""\{{\s*(?:["']?\w*\Z|["']?(?:{"|".join(LABELS)})["']?\s*:)""")


_OPENING = re.compile(r"""\{\s*(?:\\*["'“”‘’`]|\w+["']?\s*[:=]|\Z|-?\d[\d.]*\s*,)""")
_WRAPPER = re.compile(r"""\{(?:[^,]*:|.*\[)?\s*\Z""", re.DOTALL)  # up to the opening of what it holds
_COORDINATES = re.compile(r"[\[(]\s*-?\d[\d.]*(?:\s*,\s*-?\d[\d.]*){3,}\s*[\])]")


def _unreadable(text: str, start: int, stop: int) -> dict[str, int]:
    """Unreadable objects in `text[start:stop]`, a part without a complete JSON object, by reason."""
    part = text[start:stop]
    last = stop == len(text)
    matches = _KEY.finditer(part)
    opened = part.startswith("{")
    if not opened:  # prose, in which "box:" without quotes is no key
        matches = (m for m in matches if part[max(m.start() - 1, 0)] in "\"'")
    count = max(Counter(m.group(1) for m in matches).values(), default=0)
    if count:
        return {_reason(part, last): count}
    if not opened:
        bare = len(_COORDINATES.findall(part))
        return {"bare_box": bare} if bare else {}
    if last and "}" not in part and _PARTIAL.match(part):
        return {_reason(part, last): 1}
    in_list = text[:start].rstrip()[-1:] in ("[", ",", "{", ":")
    if (in_list or _OPENING.match(part)) and (last or not _WRAPPER.match(part)):
        return {_reason(part, last): 1}
    return {}


def _reason(part: str, last: bool) -> str:
    if re.search(r",\s*[}\]]", part):
        return "trailing_comma"
    if last and "}" not in part:
        return "cut_off"
    if re.search(r"[{,]\s*['“”‘’]|[{,]\s*\w+\s*:", part) or part.count('"') % 2:
        return "quotes"
    return "not_json"


_PARTIAL_TAGS = re.compile(r"<ref>[^<]*(?:</ref>\s*)?(?:<[^>]*)?\Z")


def _untagged(part: str, *, last: bool) -> dict[str, int]:
    """Objects without a complete pair of tags in a part of the text, by reason."""
    unread = max(part.count("<box>"), part.count("<ref>"))
    if not unread:
        bare = len(_COORDINATES.findall(part))
        return {"bare_box": bare} if bare else {}
    open_box = "</box>" not in part.rpartition("<box>")[2] and "<box>" in part
    cut_off = last and (open_box or _PARTIAL_TAGS.search(part) is not None)
    return ({"cut_off": 1} if cut_off else {}) | ({"not_json": unread - cut_off} if unread > cut_off else {})
