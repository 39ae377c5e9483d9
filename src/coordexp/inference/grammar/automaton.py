"""The answer format as a finite automaton over bytes, with coordinate slots as atoms.

A state is an index into `Automaton.edges` (byte -> next state). Slots, the end state and the two states inside a
description are listed separately. Everything that `answers.render.render_answer` can write is a path from `start` to
`end`, and no text that `answers.parse` would reject is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from coordexp.answers.parse import Kind
from coordexp.answers.render import PromptStyle

Role = Literal["x1", "y1", "x2", "y2", "x0", "x", "y"]
FIRST_ROLES = ("x1", "x0")  # roles of the first slot of a geometry: box, polygon
BOX_ROLES: tuple[Role, ...] = ("x1", "y1", "x2", "y2")
MIN_POLY_POINTS = 3
SAMPLE_DESC = "a"  # represents any description where only the text around it matters
# Ways in which a description may begin; a tokenizer merges its quote with some of them, and with what precedes it.
STARTS = [SAMPLE_DESC, *(sample for mark in "!#$%&'()*+,-./:;<=>?@[]^_`{|}~" for sample in (mark, mark + SAMPLE_DESC))]
STARTS += ['\\"', "\\\\", " " + SAMPLE_DESC, "0", "\u00e9", "\u732b"]
SAMPLE_NUMBER = "0"  # represents any integer coordinate
DIGITS = frozenset(b"0123456789")
WIDE_SPACES = [char for char in map(chr, range(0x80, 0x10000)) if char.isspace()]  # all are in the basic plane


@dataclass
class Automaton:
    """States and edges of the answer format.

    edges: byte transitions of each state.
    slots: state -> (role, state after the coordinate token).
    number: states inside an integer coordinate, for styles without coordinate tokens; `number_start` are the states
        before the first digit.
    blank, text: states inside a description before and after its first visible character.
    context: state -> text since the last coordinate token, with `SAMPLE_DESC` for the description.
    """

    edges: list[dict[int, int]] = field(default_factory=list)
    slots: dict[int, tuple[Role, int]] = field(default_factory=dict)
    context: dict[int, str] = field(default_factory=dict)
    number: set[int] = field(default_factory=set)
    number_start: set[int] = field(default_factory=set)
    start: int = 0
    end: int = 0
    blank: int = 0
    text: int = 0

    def walk(self, state: int, data: bytes) -> int | None:
        """The state after `data`, or None if `data` does not match the format."""
        for byte in data:
            following = self.edges[state].get(byte)
            if following is None:
                return None
            state = following
        return state

    def endings(self, state: int, descriptions: Sequence[str] = (SAMPLE_DESC,)) -> list[tuple[str, int]]:
        """Every text from `state` to the next slot or the end, with the state reached.

        `descriptions` are the description texts to insert, JSON-escaped and without quotes.
        """
        if state in self.slots or state == self.end:
            return [("", state)]
        if state in self.number:
            return [(SAMPLE_NUMBER if state in self.number_start else "", state)]
        if state in (self.blank, self.text):
            after = self.endings(self.edges[self.text][ord('"')])
            return [(f'{desc}"{rest}', target) for rest, target in after for desc in descriptions]
        return [
            (chr(byte) + rest, target)
            for byte, following in self.edges[state].items()
            for rest, target in self.endings(following, descriptions)
        ]


def build(style: PromptStyle, kinds: tuple[Kind, ...] = ("bbox_2d",), poly_max_points: int = 20) -> Automaton:
    """The automaton of answers in `style` whose objects have a geometry of one of `kinds`."""
    return _Builder(style, kinds, poly_max_points).build()


class _Builder:
    """Builds an automaton backwards: each method takes the state that follows and returns the first state."""

    def __init__(self, style: PromptStyle, kinds: tuple[Kind, ...], poly_max_points: int):
        self.style, self.kinds, self.poly_max_points = style, kinds, poly_max_points
        self.out = Automaton()

    def build(self) -> Automaton:
        out, style = self.out, self.style
        out.end = self.state()
        after_object = self.state()
        if style.object_field_order == "desc_first":
            heads = self.geometries(self.literal("}", after_object))
            self.description(self.literal(style.comma + '"', self.geometry_name(heads)))
            fields = lambda: self.literal(f'"desc"{style.colon}"', out.blank)  # noqa: E731
        else:
            self.description(self.literal("}", after_object))
            heads = self.geometries(self.literal(f'{style.comma}"desc"{style.colon}"', out.blank))
            fields = lambda: self.literal('"', self.geometry_name(heads))  # noqa: E731
        following = self.literal(style.comma[1:] + "{", fields())
        out.edges[after_object] = {ord("]"): self.literal("}", out.end), ord(","): following}
        first_object = self.state({ord("]"): self.literal("}", out.end), ord("{"): fields()})
        out.start = self.literal(f'{{"objects"{style.colon}[', first_object)
        self.set_contexts()
        return out

    def state(self, edges: Mapping[int, int] | None = None) -> int:
        self.out.edges.append(dict(edges or {}))
        return len(self.out.edges) - 1

    def literal(self, text: str, following: int) -> int:
        """First state of a chain that spells `text` and leads to `following`."""
        for byte in reversed(text.encode()):
            following = self.state({byte: following})
        return following

    def geometries(self, after: int) -> dict[Kind, int]:
        """First slot of each kind; its closing bracket leads to `after`."""
        heads = {"bbox_2d": self.box, "poly": self.polygon}
        return {kind: heads[kind](after) for kind in self.kinds}

    def geometry_name(self, heads: dict[Kind, int]) -> int:
        """State after the opening quote of a geometry's key; each key leads to its first slot in `heads`."""
        edges: dict[int, int] = {}
        for kind, head in heads.items():
            name = f'{kind}"{self.style.colon}['
            edges[ord(name[0])] = self.literal(name[1:], head)
        return self.state(edges)

    def slot(self, role: Role, following: int) -> int:
        if self.style.coordinates == "integer":
            return self.number(following)
        state = self.state()
        self.out.slots[state] = (role, following)
        return state

    def number(self, following: int) -> int:
        """An integer 0..999 without leading zeros, continued by the edges of `following`."""
        out = self.out
        first = state = self.state(out.edges[following])
        out.number.add(state)
        for _ in range(2):
            state = self.state(out.edges[following] | dict.fromkeys(DIGITS, state))
            out.number.add(state)
        start = self.state({ord("0"): first} | dict.fromkeys(DIGITS - {ord("0")}, state))
        out.number.add(start)
        out.number_start.add(start)
        return start

    def box(self, after: int) -> int:
        following = self.literal("]", after)
        for role in reversed(BOX_ROLES):
            slot = self.slot(role, following)
            following = self.literal(self.style.comma, slot)
        return slot

    def polygon(self, after: int) -> int:
        following = self.state({ord("]"): after})
        for point in range(self.poly_max_points, 0, -1):
            y = self.slot("y", following)
            x = self.slot("x" if point > 1 else "x0", self.literal(self.style.comma, y))
            edges = {ord(","): self.literal(self.style.comma[1:], x)}
            if point > MIN_POLY_POINTS:
                edges[ord("]")] = after
            following = self.state(edges)
        return x

    def description(self, after: int) -> None:
        """States of a JSON string with at least one visible character; its closing quote leads to `after`.

        Only escapes that JSON encoders write are allowed, and only valid UTF-8.
        """
        out = self.out
        out.blank, out.text = self.state(), self.state()
        lead_bytes = self.utf8_lead_bytes(out.text)
        for state, plain in ((out.blank, out.blank), (out.text, out.text)):
            edges = dict.fromkeys(range(33, 128), out.text)
            edges |= {ord(" "): plain, ord("\\"): self.escape(plain)}
            edges |= lead_bytes
            del edges[ord('"')]
            out.edges[state] = edges
        out.edges[out.text][ord('"')] = after
        self.wide_spaces()

    def wide_spaces(self) -> None:
        """Multi-byte spaces keep a description blank: the parser rejects one that consists of spaces only."""
        out = self.out
        copies: dict[bytes, int] = {}  # first bytes of a space -> copy of the state after them, reached from `blank`
        for char in WIDE_SPACES:
            *head, last = data = char.encode()
            edges = out.edges[out.blank]
            for n, byte in enumerate(head):
                if data[: n + 1] not in copies:
                    edges[byte] = copies[data[: n + 1]] = self.state(out.edges[edges[byte]])
                edges = out.edges[copies[data[: n + 1]]]
            edges[last] = out.blank

    def escape(self, plain: int) -> int:
        """State after a backslash; an escape that is not visible text leads to `plain`."""
        hexadecimal = self.state(dict.fromkeys(b"0123456789abcdef", plain))
        low = self.state({ord("0"): hexadecimal, ord("1"): hexadecimal})
        unicode = self.literal("00", low)
        edges = dict.fromkeys(b"bfnrt", plain) | {ord('"'): self.out.text, ord("\\"): self.out.text}
        return self.state(edges | {ord("u"): unicode})

    def utf8_lead_bytes(self, text: int) -> dict[int, int]:
        """Lead bytes of multi-byte characters -> states that read their continuation bytes and lead to `text`."""
        one = self.state(dict.fromkeys(range(128, 192), text))
        two = self.state(dict.fromkeys(range(128, 192), one))
        three = self.state(dict.fromkeys(range(128, 192), two))
        leads = dict.fromkeys(range(194, 224), one) | dict.fromkeys(range(225, 240), two)
        leads |= dict.fromkeys(range(241, 244), three)
        leads[0xE0] = self.state(dict.fromkeys(range(160, 192), one))
        leads[0xED] = self.state(dict.fromkeys(range(128, 160), one))
        leads[0xF0] = self.state(dict.fromkeys(range(144, 192), two))
        leads[0xF4] = self.state(dict.fromkeys(range(128, 144), two))
        return leads

    def set_contexts(self) -> None:
        """Fill `context` by following the literals from the start and from every slot; it is unique per state."""
        out = self.out
        waiting = [(out.start, "")]
        waiting += [(following, "") for _, following in out.slots.values()]
        waiting += [(out.edges[out.text][ord('"')], SAMPLE_DESC + '"')]
        for number in out.number - out.number_start:
            edges = out.edges[number].items()
            waiting += [(state, SAMPLE_NUMBER + chr(byte)) for byte, state in edges if byte not in DIGITS]
        while waiting:
            state, context = waiting.pop()
            if state in (out.end, out.blank, out.text) or state in out.slots or state in out.number:
                continue
            if out.context.setdefault(state, context) != context:
                raise AssertionError(f"state {state} has two contexts, {out.context[state]!r} and {context!r}")
            out.context[state] = context
            waiting += [(following, context + chr(byte)) for byte, following in out.edges[state].items()]
