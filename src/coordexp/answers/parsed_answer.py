"""What parsing an answer yields: objects with their spans in the text, and counts of problems by reason."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Literal

import msgspec

Kind = Literal["bbox_2d", "poly"]
Coordinates = Literal["token", "integer"]  # how bins are written

REASONS = {
    "no_answer": "the text does not contain the start of an answer",
    "text_before_answer": "other text precedes the answer; the number of objects in it, at least 1",
    "text_after_answer": "other text follows the answer; the number of objects in it, at least 1",
    "cut_off": "the text ends inside an object or before the answer is closed",
    "bad_syntax": "text between or inside the objects does not have the format of an answer",
    "bad_string": "a description is not a valid JSON string, or cannot be encoded as UTF-8",
    "empty_desc": "a description is blank",
    "not_coord_tokens": "a geometry contains something other than coordinates in the expected notation",
    "wrong_count": "a box without exactly 4 coordinates, or a polygon with fewer than 6 or an odd number of them",
    "empty_box": "a box without width or height",
    "disordered_box": "a box with x2 < x1 or y2 < y1",
}

WS = r"[ \t\n\r]*+"
STRING = r'"(?:[^"\\]++|\\.)*+"'
NUMBER = r"(?:0|[1-9]\d{0,2})"
COORDINATE = {"token": rf"<\|coord_{NUMBER}\|>", "integer": NUMBER}


def pattern(text: str) -> re.Pattern[str]:
    """A compiled pattern in which `.` matches every character and `\\d` only ASCII digits."""
    return re.compile(text, re.DOTALL | re.ASCII)


_BIN = pattern(r"\d+")
END_OF_TURN = pattern(r"(?:<\|im_end\|>|<\|endoftext\|>|[ \t\n\r])*+\Z")


class ParsedObject(msgspec.Struct, frozen=True):
    """One complete object. `bins` are norm1000 bins 0..999; spans are [start, end) in characters of the text.

    span: the complete object, or its geometry if several objects share a description.
    desc_span: the description with its closing quote or tag.
    coords_span: the coordinates, from the start of the first to the end of the last.
    """

    desc: str
    kind: Kind
    bins: list[int]
    span: tuple[int, int]
    desc_span: tuple[int, int]
    coords_span: tuple[int, int]


class ParsedAnswer(msgspec.Struct, frozen=True):
    """The objects of an answer, counts of problems by the names in `REASONS`, and whether the answer was closed."""

    objects: list[ParsedObject]
    problems: dict[str, int]
    complete: bool


def add_object(
    objects: list[ParsedObject],
    problems: Counter[str],
    kind: Kind,
    quoted: str,
    coords: str,
    spans: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
) -> None:
    """Append an object to `objects`, or count in `problems` why it cannot be used.

    quoted: the description as a JSON string. coords: the text that contains the bins, and no other digits. spans: those
    of `ParsedObject`, in its order.
    """
    desc, bins = parse_string(quoted), [int(k) for k in _BIN.findall(coords)]
    problem = object_problem(desc, kind, bins)
    if problem is None:
        objects.append(ParsedObject(desc, kind, bins, *spans))  # type: ignore[arg-type]
    else:
        problems[problem] += 1


def object_problem(desc: str | None, kind: Kind, bins: list[int]) -> str | None:
    """Why an object cannot be used, one of `REASONS`; None if it can. `desc` is the result of `parse_string`."""
    if desc is None:
        return "bad_string"
    return geometry_problem(kind, bins) or (None if desc.strip() else "empty_desc")


def parse_string(quoted: str) -> str | None:
    """The value of a JSON string; None if it is invalid or cannot be encoded as UTF-8 (an unpaired surrogate)."""
    try:
        value = json.loads(quoted)
        value.encode("utf-8")
    except ValueError:
        return None
    return value


def geometry_problem(kind: Kind, bins: list[int]) -> str | None:
    """Why a geometry cannot be used, one of `REASONS`; None if it can."""
    if kind == "poly":
        return "wrong_count" if len(bins) < 6 or len(bins) % 2 else None
    if len(bins) != 4:
        return "wrong_count"
    x1, y1, x2, y2 = bins
    if x2 < x1 or y2 < y1:
        return "disordered_box"
    return "empty_box" if x2 == x1 or y2 == y1 else None


def search_answer(start: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The start of the answer: the first one after any reasoning, or the first one of all if none follows it."""
    reasoning = text.rfind("</think>")
    return (start.search(text, reasoning) if reasoning >= 0 else None) or start.search(text)
