"""An answer format as a finite automaton over bytes, with coordinate slots and special tokens as atoms.

A state is an index into `Automaton.edges` (byte -> next state). Slots, the end state and the two states inside a
description are listed separately. Everything that `answers.render.render_answer` can write is a path from `start` to
`end`, and no text that `answers.parse` would reject is one. It is built from the texts between coordinates that
`AnswerFormat.between` writes for every combination of two objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from coordexp.answers.formats import AnswerFormat, Item, format_of
from coordexp.answers.parsed_answer import Kind
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
    """States and edges of an answer format.

    format: the answer format.
    edges: byte transitions of each state.
    special: transitions of a state by special tokens.
    slots: state -> (role, state after the coordinate token).
    number: states inside an integer coordinate, for styles without coordinate tokens; `number_start` are the states
        before the first digit.
    blank, text: states inside a description before and after its first visible character.
    after_desc: the state after the terminator of a description.
    context: state -> text since the last coordinate token, with `SAMPLE_DESC` for the description.
    """

    format: AnswerFormat
    edges: list[dict[int, int]] = field(default_factory=list)
    special: dict[int, dict[str, int]] = field(default_factory=dict)
    slots: dict[int, tuple[Role, int]] = field(default_factory=dict)
    context: dict[int, str] = field(default_factory=dict)
    number: set[int] = field(default_factory=set)
    number_start: set[int] = field(default_factory=set)
    start: int = 0
    end: int = 0
    blank: int = 0
    text: int = 0
    after_desc: int = 0

    def walk(self, state: int, data: bytes) -> int | None:
        """The state after `data`, or None if `data` does not match the format; `data` has no special tokens."""
        for byte in data:
            following = self.edges[state].get(byte)
            if following is None:
                return None
            state = following
        return state

    def steps(self, state: int) -> Iterator[tuple[str, int]]:
        """(text, next state) of every edge outside of descriptions."""
        yield from ((chr(byte), following) for byte, following in self.edges[state].items())
        yield from self.special.get(state, {}).items()

    def endings(self, state: int, descriptions: Sequence[str] = (SAMPLE_DESC,)) -> list[tuple[str, int]]:
        """Every text from `state` to the next slot or the end, with the state reached.

        `descriptions` are the description texts to insert, escaped and without what ends them.
        """
        if state in self.slots or state == self.end:
            return [("", state)]
        if state in self.number:
            return [(SAMPLE_NUMBER if state in self.number_start else "", state)]
        if state in (self.blank, self.text):
            after = self.endings(self.after_desc)
            return [(f"{desc}{self.format.terminator}{rest}", end) for rest, end in after for desc in descriptions]
        return [
            (text + rest, target)
            for text, following in self.steps(state)
            for rest, target in self.endings(following, descriptions)
        ]


def build(style: PromptStyle, kinds: tuple[Kind, ...] = ("bbox_2d",), poly_max_points: int = 20) -> Automaton:
    """The automaton of answers in `style` whose objects have a geometry of one of `kinds`."""
    return _Builder(format_of(style), kinds, poly_max_points).build()


class _Builder:
    """Builds the automaton of a format.

    Texts become paths that share their beginnings. `MARKS` stand for descriptions in them: objects with the same or
    with different descriptions.
    """

    MARKS = ("\0", "\1")

    def __init__(self, format: AnswerFormat, kinds: tuple[Kind, ...], poly_max_points: int):
        self.format, self.kinds, self.poly_max_points = format, kinds, poly_max_points
        self.out = Automaton(format)
        special = map(re.escape, (*format.special_tokens, *filter(None, [format.end_token])))
        self.symbol = re.compile("|".join([*special, "."]), re.DOTALL)
        self.continued: list[tuple[int, int]] = []  # (state, state whose edges it has as well, once they are known)

    def build(self) -> Automaton:
        out = self.out
        out.end = self.state()
        last = {kind: self.state() for kind in self.kinds}  # states after the last coordinate
        heads = {"bbox_2d": self.box, "poly": self.polygon}
        first = {kind: heads[kind](last[kind]) for kind in self.kinds}
        self.description()
        out.start = self.state()
        same, other = self.MARKS
        following = [(Item(same, kind), first[kind]) for kind in self.kinds]
        self.add_between(out.start, None, following)
        for kind in self.kinds:
            self.add_between(last[kind], Item(same, kind), following)
            self.add_between(last[kind], Item(other, kind), following)
        for state, continuation in self.continued:
            self.extend(state, continuation)
        self.set_contexts()
        return out

    def add_between(self, state: int, previous: Item | None, following: Iterable[tuple[Item, int]]) -> None:
        """Add the texts after `previous` that lead to the first slot of an object or to the end."""
        texts = [(self.format.between(previous, None) + (self.format.end_token or ""), self.out.end)]
        texts += [(self.format.between(previous, item), head) for item, head in following]
        for text, target in texts:
            before, *after = re.split("[" + "".join(self.MARKS) + "]", text)
            if not after:
                self.add(state, before, target)
                continue
            self.add(state, before, self.out.blank)
            self.add(self.out.after_desc, after[0].removeprefix(self.format.terminator), target)

    def add(self, state: int, text: str, target: int) -> None:
        """Add a path that spells `text` from `state` to `target`, along existing edges as far as they match."""
        symbols = [match[0] for match in self.symbol.finditer(text)]
        labels = [label for symbol in symbols for label in ([symbol] if len(symbol) > 1 else symbol.encode())]
        for n, label in enumerate(labels, 1):
            edges: dict = self.out.special.setdefault(state, {}) if isinstance(label, str) else self.out.edges[state]
            following = target if n == len(labels) else edges.get(label)
            following = self.state() if following is None else following
            if edges.setdefault(label, following) != following:
                raise AssertionError(f"{text!r} continues a text that ends at {label!r}")
            state = following

    def extend(self, state: int, other: int) -> None:
        """Give `state` the edges of `other` as well; an edge that both have leads to a state with the edges of both."""
        out = self.out
        for label, target in out.edges[other].items():
            own = out.edges[state].get(label, target)
            if own != target:
                both = self.state()
                self.extend(both, own)
                self.extend(both, target)
                out.edges[state][label] = both
            else:
                out.edges[state][label] = target
        if other in out.special:
            out.special[state] = out.special.get(state, {}) | out.special[other]

    def state(self, edges: Mapping[int, int] | None = None) -> int:
        self.out.edges.append(dict(edges or {}))
        return len(self.out.edges) - 1

    def path(self, text: str, following: int) -> int:
        """First state of a path that spells `text` and leads to `following`."""
        if not text:
            return following
        state = self.state()
        self.add(state, text, following)
        return state

    def slot(self, role: Role, following: int) -> int:
        if self.format.style.coordinates == "integer":
            return self.number(following)
        state = self.state()
        self.out.slots[state] = (role, following)
        return state

    def number(self, following: int) -> int:
        """An integer 0..999 without leading zeros, continued by the edges of `following`."""
        out = self.out
        first = state = self.state()
        numbers = [first]
        for _ in range(2):
            state = self.state(dict.fromkeys(DIGITS, state))
            numbers.append(state)
        start = self.state({ord("0"): first} | dict.fromkeys(DIGITS - {ord("0")}, state))
        self.continued += [(number, following) for number in numbers]
        out.number.update(numbers, [start])
        out.number_start.add(start)
        return start

    def box(self, following: int) -> int:
        for n, role in reversed(list(enumerate(BOX_ROLES))):
            slot = self.slot(role, following)
            following = self.path(self.format.separator("bbox_2d", n), slot) if n else slot
        return following

    def polygon(self, last: int) -> int:
        following, separator = last, self.format.separator
        for point in range(self.poly_max_points, 0, -1):
            y = self.slot("y", following)
            x = self.slot("x" if point > 1 else "x0", self.path(separator("poly", 2 * point - 1), y))
            if point == 1:
                return x
            following = self.state()
            self.add(following, separator("poly", 2 * point - 2), x)
            if point > MIN_POLY_POINTS:
                self.continued.insert(0, (following, last))  # before the numbers, which copy its edges
        raise AssertionError("a polygon has at least one point")

    def description(self) -> None:
        """States of a description with at least one visible character.

        Only escapes that JSON encoders write are allowed, and only valid UTF-8.
        """
        out = self.out
        out.blank, out.text, out.after_desc = self.state(), self.state(), self.state()
        lead_bytes = self.utf8_lead_bytes(out.text)
        for state, plain in ((out.blank, out.blank), (out.text, out.text)):
            edges = dict.fromkeys(range(33, 128), out.text)
            edges |= {ord(" "): plain, ord("\\"): self.escape(plain)}
            edges |= lead_bytes
            for char in {'"', *self.format.reserved}:
                del edges[ord(char)]
            out.edges[state] = edges
        self.add(out.text, self.format.terminator, out.after_desc)
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
        unicode = self.path("00", low)
        for char in self.format.reserved:
            self.add(unicode, f"{ord(char):04x}", self.out.text)
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
        waiting += [(out.after_desc, SAMPLE_DESC + out.format.terminator)]
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
            waiting += [(following, context + text) for text, following in out.steps(state)]
