"""What an answer format defines; everything else about answers is derived from it.

An answer is a sequence of texts and coordinates: a text before the first coordinate, between two coordinates, and after
the last one. A format defines these texts. Rendering concatenates them, the grammar of decoding
(`inference.grammar.automaton`) is compiled from them, and set targets compare them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from coordexp.answers.parsed_answer import STRING, Kind, ParsedAnswer, pattern
from coordexp.records import COORD_TOKEN, Object, coord_bin
from coordexp.runtime.errors import ModelError, located
from coordexp.runtime.registry import Registry

if TYPE_CHECKING:
    from coordexp.answers.render import PromptStyle

# Strings are matched first, so that coordinate tokens in a description do not count.
_STRING_OR_COORDINATE = pattern(rf"{STRING}|{COORD_TOKEN.pattern}")


class Item(NamedTuple):
    """What the texts around an object depend on: its description, escaped as in the answer, and kind of geometry."""

    desc: str
    kind: Kind


class AnswerFormat:
    """Base class of answer formats; registered in `FORMATS` under the values of `custom.answer_format`.

    summary: what an answer consists of, as a phrase for a model card.
    special_tokens: added tokens of the tokenizer that the texts contain.
    end_token: the token that ends an answer, for a format without closing text.
    terminator: what ends a description; no description contains it.
    reserved: characters that are always escaped in a description (as `\\\\u` and four digits).
    shares_descriptions: whether consecutive objects with the same description share it.
    """

    summary: ClassVar[str]
    special_tokens: ClassVar[tuple[str, ...]] = ()
    end_token: ClassVar[str | None] = None
    terminator: ClassVar[str] = '"'
    reserved: ClassVar[str] = ""
    shares_descriptions: ClassVar[bool] = False
    description_pattern: ClassVar[re.Pattern[bytes]]

    def __init__(self, style: PromptStyle):
        self.style = style
        self.desc_first = True

    def between(self, previous: Item | None, following: Item | None) -> str:
        """The text from the last coordinate of `previous` to the first one of `following`.

        None is the start of the answer or its end.
        """
        raise NotImplementedError

    def separator(self, kind: Kind, n: int) -> str:
        """The text before coordinate `n` (from 1) of a geometry."""
        raise NotImplementedError

    def parse(self, text: str) -> ParsedAnswer:
        """The objects of an answer; see `answers.parse.parse_answer`."""
        raise NotImplementedError

    def check_tokens(self, added: Container[str]) -> None:
        """ModelError unless all special tokens of the format are among the `added` tokens of a tokenizer."""
        needed = (*self.special_tokens, *filter(None, [self.end_token]))
        missing = [token for token in needed if token not in added]
        if missing:
            fix = "use a model of the Qwen families, or another custom.answer_format"
            raise ModelError(located("the tokenizer lacks special tokens of the answer format", found=missing, fix=fix))

    def coordinate_starts(self, text: str) -> list[int]:
        """Where each coordinate token outside of descriptions starts, in characters.

        Descriptions are JSON strings here; a format that writes them in another way overrides this.
        """
        return [match.start() for match in _STRING_OR_COORDINATE.finditer(text) if match[0][0] != '"']

    def arrange(self, objects: Sequence[Object]) -> list[Object]:
        """The objects in the order in which the format lists them; the given order where it has no rule."""
        return list(objects)

    def candidates(self, previous: Item | None, remaining: Sequence[Item]) -> list[int]:
        """Indices of the items that may follow `previous`, the first one included."""
        return list(range(len(remaining)))

    def description(self, text: bytes) -> bytes | None:
        """The escaped description in the text between two coordinates, complete or not; None if there is none."""
        match = self.description_pattern.search(text)
        return match[1] if match else None

    def escape(self, desc: str) -> str:
        """A description as it is written in an answer: a JSON string without its quotes."""
        escaped = json.dumps(desc, ensure_ascii=False)[1:-1]
        return "".join(f"\\u{ord(char):04x}" if char in self.reserved else char for char in escaped)

    def item(self, obj: Object) -> Item:
        """The object's description and kind of geometry."""
        return Item(self.escape(obj.desc), "bbox_2d" if obj.bbox_2d is not None else "poly")

    def render(self, objects: Iterable[Object]) -> str:
        """The answer that lists objects in token space, in the given order."""
        texts, previous = [], None
        for obj in objects:
            item = self.item(obj)
            texts += [self.between(previous, item), self._coordinates(obj, item.kind)]
            previous = item
        return "".join([*texts, self.between(previous, None)])

    def _coordinates(self, obj: Object, kind: Kind) -> str:
        as_tokens = self.style.coordinates == "token"
        written = [str(token) if as_tokens else str(coord_bin(str(token))) for token in obj.coords]
        return written[0] + "".join(self.separator(kind, n) + text for n, text in enumerate(written[1:], 1))


FORMATS: Registry[type[AnswerFormat]] = Registry("answer format")
