"""The one place that reads an answer back: whole, broken or cut off, from this code or from a server.

A box is only ever taken from an object that is complete in the text and reads as the answer's own
layout: one description and one list of coordinate tokens, in either field order and any JSON spacing.
Everything else is counted by reason and left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Literal

import msgspec

Kind = Literal["bbox_2d", "poly"]

REASONS = {
    "no_answer": 'the text holds no `{"objects": [`',
    "text_before_answer": "there is other text before the answer",
    "text_after_answer": "there is other text after the answer",
    "cut_off": "the text ends inside an object or before the closing brackets",
    "bad_syntax": "something between or inside the objects is not in the answer's layout",
    "bad_string": "a description is not a JSON string that UTF-8 can carry",
    "empty_desc": "a description is blank",
    "not_coord_tokens": "a geometry holds something other than coordinates in the expected spelling",
    "wrong_count": "a box without exactly 4 coordinates, a polygon with fewer than 6 or an odd count",
    "empty_box": "a box without width or height",
    "disordered_box": "a box with x2 < x1 or y2 < y1",
}

_WS = r"[ \t\n\r]*+"
_STRING = r'"(?:[^"\\]++|\\.)*+"'
_NUMBER = r"(?:0|[1-9]\d{0,2})"
_COMMA = rf"{_WS},{_WS}"


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.DOTALL | re.ASCII)


def _desc(n: int) -> str:
    return rf'"desc"{_WS}:{_WS}(?P<desc{n}>{_STRING})'


class _Layout:
    """Patterns of an object whose coordinates are spelled by the pattern `coord`."""

    def __init__(self, coord: str):
        coords = rf"\[{_WS}(?:{coord}{_WS}(?:,{_WS}{coord}{_WS})*+)?\]"

        def geometry(n: int) -> str:
            return rf'"(?P<kind{n}>bbox_2d|poly)"{_WS}:{_WS}(?P<coords{n}>{coords})'

        fields = f"{_desc(1)}{_COMMA}{geometry(1)}|{geometry(2)}{_COMMA}{_desc(2)}"
        self.object = _pattern(rf"\{{{_WS}(?:{fields}){_WS}\}}")
        self.bad_list = _pattern(rf'"(?:bbox_2d|poly)"{_WS}:{_WS}(?!{coords})')


_LAYOUTS = {"token": _Layout(rf"<\|coord_{_NUMBER}\|>"), "integer": _Layout(_NUMBER)}
_NEXT_OBJECT = _pattern(rf'\{{{_WS}"(?:desc|bbox_2d|poly)"')
_HEADER = _pattern(rf'\{{{_WS}"objects"{_WS}:{_WS}\[{_WS}')
_SEPARATOR = _pattern(rf"{_WS},{_WS}")
_CLOSE = _pattern(rf"{_WS}\]{_WS}\}}")
_END_OF_TURN = _pattern(r"(?:<\|im_end\|>|<\|endoftext\|>|[ \t\n\r])*+\Z")
_CLOSED_TAIL = _pattern(rf"\}}{_WS}\]{_WS}\}}(?:<\|im_end\|>|<\|endoftext\|>|[ \t\n\r])*+\Z")
_BIN = _pattern(r"\d+")


class ParsedObject(msgspec.Struct, frozen=True):
    """One complete object. `bins` are norm1000 bins 0..999; spans are [start, end) in characters of the text.

    span: the whole object. desc_span: its description with the closing quote. coords_span: its coordinates, from
    the first to the end of the last.
    """

    desc: str
    kind: Kind
    bins: list[int]
    span: tuple[int, int]
    desc_span: tuple[int, int]
    coords_span: tuple[int, int]


class ParsedAnswer(msgspec.Struct, frozen=True):
    """What could be read. `problems` counts by the names in `REASONS`; `complete` says that the answer was closed."""

    objects: list[ParsedObject]
    problems: dict[str, int]
    complete: bool


def parse_answer(text: str, coordinates: Literal["token", "integer"] = "token") -> ParsedAnswer:
    """Read one answer. Never raises; keeps every complete object; counts why anything else was left out.

    `coordinates` as in `PromptStyle`: coordinate tokens, which must still be in the text (decode with
    `skip_special_tokens=False`), or plain integers 0..999; the other spelling is a problem, never read.
    """
    layout = _LAYOUTS[coordinates]
    problems: Counter[str] = Counter()
    header = _HEADER.search(text)
    if header is None:
        problems["no_answer"] += 1
        first = _NEXT_OBJECT.search(text)
        start = first.start() if first else len(text)
    else:
        start = header.end()
    if header and text[: header.start()].strip():
        problems["text_before_answer"] += 1
    objects, end = _read_objects(text, start, layout, problems)
    complete = header is not None and end is not None
    if header is not None and end is None:
        problems["cut_off"] += 1
    elif complete and not _END_OF_TURN.match(text, end):
        problems["text_after_answer"] += 1
    return ParsedAnswer(objects, dict(problems), complete)


def _read_objects(
    text: str, position: int, layout: _Layout, problems: Counter[str]
) -> tuple[list[ParsedObject], int | None]:
    """Complete objects from `position` on, and where the list was closed (None: it was not)."""
    objects: list[ParsedObject] = []
    close = _CLOSE.match(text, position)
    while close is None:
        whole = layout.object.match(text, position)
        if whole is None:
            following = _NEXT_OBJECT.search(text, position + 1)
            closed = following is None and _CLOSED_TAIL.search(text, position) is not None
            end = following.start() if following else len(text)
            if following or closed:  # else it is merely unfinished, which `cut_off` says
                problems["not_coord_tokens" if layout.bad_list.search(text, position, end) else "bad_syntax"] += 1
            if following is None:
                return objects, len(text) if closed else None
            position = following.start()
            continue
        _keep_or_count(whole, objects, problems)
        position = whole.end()
        close = _CLOSE.match(text, position)
        if close is None and (separator := _SEPARATOR.match(text, position)):
            position = separator.end()
            if close := _CLOSE.match(text, position):
                problems["bad_syntax"] += 1
        elif close is None and layout.object.match(text, position):
            problems["bad_syntax"] += 1
    return objects, close.end()


def _keep_or_count(whole: re.Match[str], objects: list[ParsedObject], problems: Counter[str]) -> None:
    n = 1 if whole["desc1"] is not None else 2
    kind: Kind = whole[f"kind{n}"]  # type: ignore[assignment]
    coords = whole[f"coords{n}"]
    bins = [int(k) for k in _BIN.findall(coords)]
    desc = _read_string(whole[f"desc{n}"])
    reason = "bad_string" if desc is None else _geometry_problem(kind, bins)
    if reason is None and not desc.strip():  # type: ignore[union-attr]
        reason = "empty_desc"
    if reason is None:
        start, end = whole.span(f"desc{n}")
        first = whole.start(f"coords{n}") + 1
        inside = coords[1:].rstrip("] \t\n\r")
        spans = (whole.span(), (start + 1, end), (first, first + len(inside)))
        objects.append(ParsedObject(desc, kind, bins, *spans))  # type: ignore[arg-type]
    else:
        problems[reason] += 1


def _read_string(quoted: str) -> str | None:
    try:
        value = json.loads(quoted)
        value.encode("utf-8")
    except ValueError:
        return None
    return value


def _geometry_problem(kind: Kind, bins: list[int]) -> str | None:
    if kind == "poly":
        return "wrong_count" if len(bins) < 6 or len(bins) % 2 else None
    if len(bins) != 4:
        return "wrong_count"
    x1, y1, x2, y2 = bins
    if x2 < x1 or y2 < y1:
        return "disordered_box"
    return "empty_box" if x2 == x1 or y2 == y1 else None
