"""A compact format that writes each description once, followed by the boxes of all its objects.

{"black cat":<|coord_110|><|coord_310|><|coord_410|><|coord_705|>,<|coord_5|>...<|coord_9|>;"dog":<|coord_50|>...}

Boxes are separated by commas and groups by semicolons, so that a single token after a box decides between another box,
another description and the end. A group of polygons has `~` instead of `:`, and spaces between points. Text integers
have spaces between all coordinates.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

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
from coordexp.records import Object

_MARKS: dict[Kind, str] = {"bbox_2d": ":", "poly": "~"}
_KINDS: dict[str, Kind] = {mark: kind for kind, mark in _MARKS.items()}
_START = pattern(rf'\{{(?={WS}(?:"|\}}{WS}(?:<\|im_end\|>|<\|endoftext\|>|\Z)))')
_EMPTY = pattern(rf"{WS}\}}")
_GROUP = pattern(rf"{WS}(?P<desc>{STRING}){WS}(?P<mark>[:~])")
_NEXT_GROUP = pattern(rf';(?={WS}")')
_DELIMITER = pattern(r'[,;}"]')
_SPACE = {"token": WS, "integer": r"[ \t\n\r]++"}
_COORDINATES = {
    notation: pattern(rf"{WS}(?P<coords>{coord}(?:{_SPACE[notation]}{coord})*+){WS}(?P<delimiter>[,;}}])")
    for notation, coord in COORDINATE.items()
}
_COORDINATE_RUN = pattern(r"(?:<\|coord_\d+\|>[ \t\n\r]*+)+")


@FORMATS.register("grouped")
class Grouped(AnswerFormat):
    """`arrange` lists the objects of each description together, in the order of their first objects."""

    summary = "text in which each description is followed by all its boxes"
    shares_descriptions = True
    description_pattern = re.compile(rb'"((?:[^"\\]|\\.)*)', re.DOTALL)

    def between(self, previous: Item | None, following: Item | None) -> str:
        """See `AnswerFormat.between`."""
        if following is None:
            return "{}" if previous is None else "}"
        if previous == following:
            return ","
        return f'{"{" if previous is None else ";"}"{following.desc}"{_MARKS[following.kind]}'

    def separator(self, kind: Kind, n: int) -> str:
        """See `AnswerFormat.separator`."""
        joined = self.style.coordinates == "token" and (kind == "bbox_2d" or n % 2)
        return "" if joined else " "

    def arrange(self, objects: Sequence[Object]) -> list[Object]:
        """See `AnswerFormat.arrange`."""
        groups: dict[Item, list[Object]] = {}
        for obj in objects:
            groups.setdefault(self.item(obj), []).append(obj)
        return [obj for group in groups.values() for obj in group]

    def candidates(self, previous: Item | None, remaining: Sequence[Item]) -> list[int]:
        """The rest of the group if there is one, as long as the objects are arranged."""
        group = [n for n, item in enumerate(remaining) if item == previous]
        return group if group and group[0] == 0 else super().candidates(previous, remaining)

    def parse(self, text: str) -> ParsedAnswer:
        """See `AnswerFormat.parse`."""
        problems: Counter[str] = Counter()
        objects: list[ParsedObject] = []
        start = search_answer(_START, text)
        if start is None:
            problems["no_answer"] += 1
            if (first := text.find('"')) >= 0:
                self._parse_groups(text, first, objects, problems)
            return ParsedAnswer(objects, dict(problems), complete=False)
        if text[: start.start()].strip():
            problems["text_before_answer"] += 1
        empty = _EMPTY.match(text, start.end())
        end = empty.end() if empty else self._parse_groups(text, start.end(), objects, problems)
        if end is None:
            problems["cut_off"] += 1
        elif not END_OF_TURN.match(text, end):
            problems["text_after_answer"] += max(1, len(_COORDINATE_RUN.findall(text, end)))
        return ParsedAnswer(objects, dict(problems), end is not None)

    def _parse_groups(
        self, text: str, position: int, objects: list[ParsedObject], problems: Counter[str]
    ) -> int | None:
        """Parse groups from `position` on; returns the end of the answer, None if it is not closed."""
        while True:
            group = _GROUP.match(text, position)
            if group is None:
                following = _NEXT_GROUP.search(text, position)
                if following is None:
                    return None
                skipped = text[position : following.start()]
                problems["bad_syntax"] += max(1, len(_COORDINATE_RUN.findall(skipped)))
                position = following.end()
                continue
            position, delimiter = group.end(), ","
            while delimiter == ",":
                geometry = _COORDINATES[self.style.coordinates].match(text, position)
                found = geometry or _DELIMITER.search(text, position)
                if found is None:
                    return None
                if geometry is not None:
                    self._keep_or_count(group, geometry, objects, problems)
                else:
                    problems["not_coord_tokens"] += 1
                delimiter = found["delimiter"] if geometry else found[0]
                position = found.start() if delimiter == '"' else found.end()
            if delimiter == "}":
                return position

    def _keep_or_count(
        self, group: re.Match[str], geometry: re.Match[str], objects: list[ParsedObject], problems: Counter[str]
    ) -> None:
        """Append the object of a geometry in a group to `objects`, or count why it cannot be used."""
        coords = geometry.span("coords")
        spans = (coords, (group.start("desc") + 1, group.end("desc")), coords)
        add_object(objects, problems, _KINDS[group["mark"]], group["desc"], geometry["coords"], spans)
