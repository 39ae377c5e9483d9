"""The default answer format: one line of JSON with an object per detection.

{"objects": [{"desc": "black cat", "bbox_2d": [<|coord_110|>, <|coord_310|>, <|coord_410|>, <|coord_705|>]}]}

Parsing accepts either field order and any JSON spacing. An object is used only if it is complete in the text and has
one description and one list of coordinates. Everything else is skipped and counted by reason.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from coordexp.answers.formats.base import FORMATS, AnswerFormat, Item
from coordexp.answers.parsed_answer import (
    COORDINATE,
    END_OF_TURN,
    STRING,
    WS,
    Kind,
    ParsedAnswer,
    ParsedObject,
    add_object,
    pattern,
    search_answer,
)

if TYPE_CHECKING:
    from coordexp.answers.render import PromptStyle

_COMMA = rf"{WS},{WS}"


def _desc(n: int) -> str:
    return rf'"desc"{WS}:{WS}(?P<desc{n}>{STRING})'


class _ObjectPatterns:
    """Patterns of an object whose coordinates match the pattern `coord`."""

    def __init__(self, coord: str):
        coords = rf"\[{WS}(?:{coord}{WS}(?:,{WS}{coord}{WS})*+)?\]"

        def geometry(n: int) -> str:
            return rf'"(?P<kind{n}>bbox_2d|poly)"{WS}:{WS}(?P<coords{n}>{coords})'

        fields = f"{_desc(1)}{_COMMA}{geometry(1)}|{geometry(2)}{_COMMA}{_desc(2)}"
        self.object = pattern(rf"\{{{WS}(?:{fields}){WS}\}}")
        self.bad_list = pattern(rf'"(?:bbox_2d|poly)"{WS}:{WS}(?!{coords})')


_PATTERNS = {notation: _ObjectPatterns(coord) for notation, coord in COORDINATE.items()}
_NEXT_OBJECT = pattern(rf'\{{{WS}"(?:desc|bbox_2d|poly)"')
_OPENING = pattern(rf"(?<=[\[,]){WS}\{{")
_GEOMETRY_KEY = pattern(rf'"(?:bbox_2d|poly)"{WS}:')
_HEADER = pattern(rf'\{{{WS}"objects"{WS}:{WS}\[{WS}')
_SEPARATOR = pattern(rf"{WS},{WS}")
_CLOSE = pattern(rf"{WS}\]{WS}\}}")
_CLOSED_TAIL = pattern(rf"\}}{WS}\]{WS}\}}(?:<\|im_end\|>|<\|endoftext\|>|[ \t\n\r])*+\Z")


@FORMATS.register("json")
class JsonObjects(AnswerFormat):
    """Field order and spacing are options of the prompt style."""

    summary = "JSON that contains descriptions and boxes"
    description_pattern = re.compile(rb'"desc"\s*:\s*"((?:[^"\\]|\\.)*)', re.DOTALL)

    def __init__(self, style: PromptStyle):
        super().__init__(style)
        self.desc_first = style.object_field_order == "desc_first"
        standard = style.json_format == "standard"
        self.comma, self.colon = (", ", ": ") if standard else (",", ":")

    def between(self, previous: Item | None, following: Item | None) -> str:
        """See `AnswerFormat.between`."""
        before = f'{{"objects"{self.colon}[' if previous is None else self._after_coordinates(previous)
        if following is None:
            return before + "]}"
        comma = "" if previous is None else self.comma
        desc = f'"desc"{self.colon}"{following.desc}"{self.comma}' if self.desc_first else ""
        return f'{before}{comma}{{{desc}"{following.kind}"{self.colon}['

    def _after_coordinates(self, item: Item) -> str:
        return "]}" if self.desc_first else f']{self.comma}"desc"{self.colon}"{item.desc}"}}'

    def separator(self, kind: Kind, n: int) -> str:
        """See `AnswerFormat.separator`."""
        return self.comma

    def parse(self, text: str) -> ParsedAnswer:
        """See `AnswerFormat.parse`."""
        patterns = _PATTERNS[self.style.coordinates]
        problems: Counter[str] = Counter()
        header = search_answer(_HEADER, text)
        if header is None:
            problems["no_answer"] += 1
            first = _NEXT_OBJECT.search(text)
            start = first.start() if first else len(text)
        else:
            start = header.end()
        if header and text[: header.start()].strip():
            problems["text_before_answer"] += _objects_in(text[: header.start()])
        objects, end = _parse_objects(text, start, patterns, problems)
        complete = header is not None and end is not None
        if header is not None and end is None:
            problems["cut_off"] += 1
        elif complete and not END_OF_TURN.match(text, end):
            problems["text_after_answer"] += _objects_in(text[end:])
        return ParsedAnswer(objects, dict(problems), complete)


def _objects_in(text: str) -> int:
    """Number of objects that are opened in text outside the answer, at least 1."""
    return max(1, len(_NEXT_OBJECT.findall(text)))


def _parse_objects(
    text: str, position: int, patterns: _ObjectPatterns, problems: Counter[str]
) -> tuple[list[ParsedObject], int | None]:
    """Complete objects from `position` on, and the end of the list (None if it is not closed)."""
    objects: list[ParsedObject] = []
    close = _CLOSE.match(text, position)
    while close is None:
        match = patterns.object.match(text, position)
        if match is None:
            following = _NEXT_OBJECT.search(text, position + 1)
            closed = following is None and _CLOSED_TAIL.search(text, position) is not None
            end = following.start() if following else len(text)
            opened = len(_OPENING.findall(text, position, end))
            unreadable = max(1, opened, len(_GEOMETRY_KEY.findall(text, position, end)))
            if following is None and not closed:
                unreadable -= 1  # the last object is incomplete, which counts as `cut_off`
            if unreadable:
                reason = "not_coord_tokens" if patterns.bad_list.search(text, position, end) else "bad_syntax"
                problems[reason] += unreadable
            if following is None:
                return objects, len(text) if closed else None
            position = following.start()
            continue
        _keep_or_count(match, objects, problems)
        position = match.end()
        close = _CLOSE.match(text, position)
        if close is None and (separator := _SEPARATOR.match(text, position)):
            position = separator.end()
            if close := _CLOSE.match(text, position):
                problems["bad_syntax"] += 1
        elif close is None and patterns.object.match(text, position):
            problems["bad_syntax"] += 1
    return objects, close.end()


def _keep_or_count(match: re.Match[str], objects: list[ParsedObject], problems: Counter[str]) -> None:
    """Append the matched object to `objects`, or count why it cannot be used."""
    n = 1 if match["desc1"] is not None else 2  # which field order matched
    kind: Kind = match[f"kind{n}"]  # type: ignore[assignment]
    coords = match[f"coords{n}"]
    start, end = match.span(f"desc{n}")
    first = match.start(f"coords{n}") + 1
    inside = coords[1:].rstrip("] \t\n\r")
    spans = (match.span(), (start + 1, end), (first, first + len(inside)))
    add_object(objects, problems, kind, match[f"desc{n}"], coords, spans)
