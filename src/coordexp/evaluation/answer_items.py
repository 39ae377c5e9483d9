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
        at = _brace(text, position)
        problems.update(_unreadable(text, position, len(text) if at < 0 else at))
        if at < 0:
            return
        try:
            value, position = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            value, stop = None, _brace(text, at + 1)
            position = len(text) if stop < 0 else stop
            problems.update(_unreadable(text, at, position))
        nested = text[:at].rstrip().endswith(":")  # a value within an object that cannot be read
        yield from _boxed(value, keys, problems, nested=nested)


_BRACE = re.compile(r"\{(?!(?<=[\d\]]\{)[\s,\[]*\d)")  # not one that broke into a list of numbers


def _brace(text: str, start: int) -> int:
    match = _BRACE.search(text, start)
    return match.start() if match else -1


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
    for key in counts:
        if counts[key] > 1:  # also of categories as keys: no box under them is lost
            value[key] = [item for name, item in pairs if name == key]
    return _RepeatedKey(value) if any(counts[key] > 1 for key in (*BOXES, *LABELS, *SCORES)) else value


_FREE = "free"  # a JSON object here is an object of the image, or holds some
_BESIDE_BOXES = "beside boxes"  # ... only if it has boxes; it may be an attribute
_IN_OBJECT = "in an object"  # ... only if it has a box under a key of the format


def _boxed(value: Any, keys: tuple[str, ...], problems: Counter[str], *, nested: bool) -> Iterator[Item]:
    """Objects with a box in a decoded value and, at any depth, in the lists and objects within it.

    `nested`: an object without a box is an attribute of another one, not an object itself.
    """
    stack = [(value, _FREE)]
    while stack:
        item, within = stack.pop()
        if isinstance(item, dict):
            key = next((k for k in keys if k in item), None)
            other = any(k in item for k in BOXES)
            if isinstance(item, _RepeatedKey) or (
                key is not None and any(k in item and item[k] != item[key] for k in keys)
            ):
                problems["repeated_key"] += 1
            elif key is not None:
                if (boxes := _boxes_in(item[key])) > 1:
                    problems["bad_box"] += boxes - 1  # the reader counts one for the list of them
                label = next((item[k] for k in LABELS if k in item), None)
                yield label, item[key], next((item[k] for k in SCORES if k in item), 1.0)
            elif other or within != _IN_OBJECT:
                boxes = _boxes_of(item)
                alone = not _contains_objects(item) and (other or (within == _FREE and not nested))
                if boxes or alone:
                    problems["other_box_key" if other else "no_box"] += max(boxes, 1)
                    within = _BESIDE_BOXES
            inner = _IN_OBJECT if key is not None or other else within
            stack.extend((child, inner) for child in reversed(item.values()))
        elif isinstance(item, list):
            stack.extend((child, within) for child in reversed(item))


def _contains_objects(item: dict) -> bool:
    """Whether an object holds other objects or an empty list of them, instead of being one itself."""
    values = [(k, v) for k, v in item.items() if k not in BOXES or not isinstance(v, dict)]
    return any(isinstance(v, dict) or (isinstance(v, list) and (not v or isinstance(v[0], dict))) for _, v in values)


def _boxes_of(item: dict) -> int:
    """Number of boxes in an object, in any notation, outside of the objects within it."""
    boxes = sum(_boxes_in(value) for value in item.values())
    return boxes or int(sum(_is_number(value) for value in item.values()) >= 4)


def _boxes_in(value: Any) -> int:
    """Number of boxes in a value: lists with four or more numbers (and a label), or of points; none in objects."""
    if isinstance(value, str):
        return _boxes_in_text(value, last=False)
    if not isinstance(value, list):
        return 0
    if sum(_is_number(item) for item in value) >= 4:
        return 1
    points = [item for item in value if isinstance(item, list) and len(item) == 2 and all(map(_is_number, item))]
    return 1 if len(points) > 1 else sum(map(_boxes_in, value))


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return _NUMBER.fullmatch(value.strip()) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


_NUMBER = re.compile(r"(?<![\w.])[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])")
_TEXT = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_BRACKETS = re.compile(r"[\[(]([^\[\](){}]*)[\])]")
_OPEN = re.compile(r"[\[(]([^\[\](){}]*)\Z")
_COUNTED = "#"
_SEPARATOR = r"""(?:[\s,.:\[\](){}"'_-]|[xy][12]){1,40}"""
_RUN = re.compile(rf"(?<!\d)\d{{1,20}}(?!\d)(?:{_SEPARATOR}\d{{1,20}}(?!\d)){{3,}}")
_WORD = re.compile(r"[^\W\d_]{2,}")


def _boxes_in_text(text: str, *, last: bool) -> int:
    """Number of boxes in a text that is not JSON, in any notation; also the one that the end cuts off, if `last`."""
    without_texts = _TEXT.sub(lambda match: match[0] if _is_number(match[0][1:-1]) else "_", text)
    return max(_bracketed_boxes(text, last), _bracketed_boxes(without_texts, last))  # quotes may be unbalanced


def _bracketed_boxes(text: str, last: bool) -> int:
    """Brackets with four or more numbers, points in a row, and four other numbers in a row, as in broken brackets."""
    boxes, end, points = 0, 0, 0
    rest: list[str] = []
    for match in _BRACKETS.finditer(text):
        between, numbers = text[end : match.start()], _numbers_in(match[1])
        points = 0 if numbers != 2 else 1 if between.strip(" ,\n\t") else points + 1
        boxes += numbers >= 4 or points == 2
        if points == 2:
            rest[-1] = _COUNTED
        rest += [between, _COUNTED if numbers >= 4 or points > 1 else match[0]]
        end = match.end()
    rest.append(text[end:])
    cut_off = _OPEN.search(text, end) if last else None
    if cut_off is not None and (_numbers_in(cut_off[1]) > 0 or points == 1):
        boxes += 1
        rest[-1] = rest[-1][: cut_off.start() - end]
    elif last and points == 1 and not text[end:].strip(" ,\n\t") and text.count("[") > text.count("]"):
        boxes += 1  # the end cuts off the second point
    return boxes + sum(len(_NUMBER.findall(run[0])) // 4 for run in _RUN.finditer("".join(rest)))


def _numbers_in(text: str) -> int:
    """The numbers between two brackets; none in prose."""
    return len(_NUMBER.findall(text)) if len(_WORD.findall(text)) < 3 else 0


_KEY = re.compile(rf"""(?<!\w)({"|".join(BOXES)})\\?["'”’]?\s*(?:[:=]|(?=[\[(]))""")
_PARTIAL = re.compile(rf"""\{{\s*(?:["']?\w*\Z|["']?(?:{"|".join(LABELS)})["']?\s*:)""")


_OPENING = re.compile(r"""\{\s*(?:\\*["'“”‘’`]|\w+["']?\s*[:=]|\Z|-?\d[\d.]*\s*,)""")
_WRAPPER = re.compile(r"""\{(?:[^,]*:|.*\[)?\s*\Z""", re.DOTALL)  # up to the opening of what it holds


def _unreadable(text: str, start: int, stop: int) -> dict[str, int]:
    """Unreadable objects in `text[start:stop]`, a part without a complete JSON object, by reason."""
    part = text[start:stop]
    last = stop == len(text)
    matches = _KEY.finditer(part)
    opened = part.startswith("{")
    if not opened:  # prose, in which "box:" without quotes is no key
        matches = (m for m in matches if part[max(m.start() - 1, 0)] in "\"'")
    count = max(Counter(m.group(1) for m in matches).values(), default=0)
    boxes = _boxes_in_text(part, last=last)
    if count or (opened and boxes):
        return {_reason(part, last): max(count, boxes)}
    if not opened:
        return {"bare_box": boxes} if boxes else {}
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
    unread, boxes = max(part.count("<box>"), part.count("<ref>")), _boxes_in_text(part, last=last)
    if not unread:
        return {"bare_box": boxes} if boxes else {}
    unread = max(unread, boxes)
    open_box = "</box>" not in part.rpartition("<box>")[2] and "<box>" in part
    cut_off = last and (open_box or _PARTIAL_TAGS.search(part) is not None)
    return ({"cut_off": 1} if cut_off else {}) | ({"not_json": unread - cut_off} if unread > cut_off else {})
