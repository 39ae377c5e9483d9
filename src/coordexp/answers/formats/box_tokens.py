"""Qwen's own format for boxes: special tokens around descriptions and coordinates, and no closing text.

<|object_ref_start|>cat<|object_ref_end|><|box_start|><|coord_110|><|coord_310|><|coord_410|><|coord_705|><|box_end|>

Consecutive objects with the same description share it: further boxes follow the first one directly. Polygons have
`<|quad_start|>` and `<|quad_end|>`, and a comma between points. Text integers are written as Qwen2-VL does:
`<|box_start|>(110,310),(410,705)<|box_end|>`.
"""

from __future__ import annotations

import re
from collections import Counter

from coordexp.answers.formats.base import FORMATS, AnswerFormat, Item
from coordexp.answers.parsed_answer import (
    COORDINATE,
    END_OF_TURN,
    WS,
    Kind,
    ParsedAnswer,
    ParsedObject,
    add_object,
    pattern,
    search_answer,
)
from coordexp.records import COORD_TOKEN

_TAGS: dict[Kind, str] = {"bbox_2d": "box", "poly": "quad"}
_KINDS: dict[str, Kind] = {tag: kind for kind, tag in _TAGS.items()}
_REF = pattern(r"<\|object_ref_start\|>(?P<desc>[^<]*+)<\|object_ref_end\|>")
_GEOMETRY = pattern(
    r"<\|(?P<tag>box|quad)_start\|>(?P<inside>(?:[^<]|<(?!\|(?:box|quad|object_ref|im)_))*+)<\|(?P=tag)_end\|>"
)
_GEOMETRY_OPENING = pattern(r"<\|(?:box|quad)_start\|>")
_PART = pattern(r"<\|(?:box|quad|object_ref)_start\|>")
_SPACES = pattern(r"[ \t\n\r]++")
_REASONED = "</think>"
_POINT = {
    "token": COORDINATE["token"],
    "integer": rf"\({WS}{COORDINATE['integer']}{WS},{WS}{COORDINATE['integer']}{WS}\)",
}
_COORDINATES = {
    notation: pattern(rf"{WS}(?P<coords>{point}(?:{WS},?{WS}{point})*+){WS}") for notation, point in _POINT.items()
}


@FORMATS.register("box_tokens")
class BoxTokens(AnswerFormat):
    """`<` is escaped in descriptions, so that they cannot contain special tokens."""

    summary = "descriptions (between `<|object_ref_start|>` and `<|object_ref_end|>`), each followed by its boxes"
    special_tokens = (
        "<|object_ref_start|>",
        "<|object_ref_end|>",
        *(f"<|{tag}_{side}|>" for tag in _TAGS.values() for side in ("start", "end")),
    )
    end_token = "<|im_end|>"
    terminator = "<|object_ref_end|>"
    reserved = "<"
    shares_descriptions = True
    description_pattern = re.compile(rb"<\|object_ref_start\|>([^<]*)")

    def between(self, previous: Item | None, following: Item | None) -> str:
        """See `AnswerFormat.between`."""
        text = "" if previous is None else f"{self._bracket(')')}<|{_TAGS[previous.kind]}_end|>"
        if following is None:
            return text
        if previous is None or previous.desc != following.desc:
            text += f"<|object_ref_start|>{following.desc}<|object_ref_end|>"
        return f"{text}<|{_TAGS[following.kind]}_start|>{self._bracket('(')}"

    def _bracket(self, bracket: str) -> str:
        return bracket if self.style.coordinates == "integer" else ""

    def separator(self, kind: Kind, n: int) -> str:
        """See `AnswerFormat.separator`."""
        if self.style.coordinates == "integer":
            return "," if n % 2 else "),("
        return "" if n % 2 or kind == "bbox_2d" else ","

    def coordinate_starts(self, text: str) -> list[int]:
        """See `AnswerFormat.coordinate_starts`."""
        return [match.start() for match in COORD_TOKEN.finditer(text)]

    def parse(self, text: str) -> ParsedAnswer:
        """See `AnswerFormat.parse`."""
        problems: Counter[str] = Counter()
        objects: list[ParsedObject] = []
        first = search_answer(_PART, text)
        if first is None:
            reasoning = text.rfind(_REASONED)
            start = reasoning + len(_REASONED) if reasoning >= 0 else 0
            complete = END_OF_TURN.match(text, start) is not None
            return ParsedAnswer([], {} if complete else {"no_answer": 1}, complete)
        if before := text[: first.start()].strip():
            problems["text_before_answer"] += max(1, len(_GEOMETRY_OPENING.findall(before)))
        ref, described, position = None, False, first.start()  # whether a geometry has followed `ref`
        while position < len(text) and not END_OF_TURN.match(text, position):
            if found := _SPACES.match(text, position):
                position = found.end()
            elif found := _REF.match(text, position):
                problems["bad_syntax"] += ref is not None and not described
                ref, described, position = found, False, found.end()
            elif found := _GEOMETRY.match(text, position):
                self._keep_or_count(found, ref, objects, problems)
                described, position = True, found.end()
            else:
                following = _PART.search(text, position + 1)
                opened = _PART.match(text, position)
                if following is None:
                    problems["cut_off" if opened else "text_after_answer"] += 1
                    return ParsedAnswer(objects, _counted(problems), not opened)
                problems["bad_syntax"] += 1
                if opened and opened[0] == "<|object_ref_start|>":  # so that its geometries get no other description
                    ref = None
                described, position = True, following.start()
        complete = ref is None or described
        problems["cut_off"] += not complete
        return ParsedAnswer(objects, _counted(problems), complete)

    def _keep_or_count(
        self,
        geometry: re.Match[str],
        ref: re.Match[str] | None,
        objects: list[ParsedObject],
        problems: Counter[str],
    ) -> None:
        """Append the object of a geometry and its description to `objects`, or count why it cannot be used."""
        kind = _KINDS[geometry["tag"]]
        inside = _COORDINATES[self.style.coordinates].fullmatch(geometry["inside"])
        if ref is None or inside is None:
            problems["bad_syntax" if ref is None else "not_coord_tokens"] += 1
            return
        begin = geometry.start("inside")
        coords = (begin + inside.start("coords"), begin + inside.end("coords"))
        spans = (geometry.span(), (ref.start("desc"), ref.end()), coords)
        add_object(objects, problems, kind, f'"{ref["desc"]}"', inside["coords"], spans)


def _counted(problems: Counter[str]) -> dict[str, int]:
    return {reason: count for reason, count in problems.items() if count}
