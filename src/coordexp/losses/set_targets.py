"""Branch positions of an answer: where any of several remaining objects could come next.

At the first token at which the remaining objects differ the target is spread over all of them: over the
tokens that continue their descriptions, and, among objects of one description, over their first coordinate.
Everywhere else the answer's own token is the only right one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from coordexp.answers import render as prompt
from coordexp.answers.render import PromptStyle
from coordexp.records import COORD_TOKEN, Object, coord_bin
from coordexp.runtime.errors import DataError

Encode = Callable[[str], list[int]]


class Branches(NamedTuple):
    """text: (place among the supervised labels, token id, weight). slots: (slot, bin, coordinate in [0, 1], weight)."""

    text: list[tuple[int, int, float]]
    slots: list[tuple[int, int, float, float]]


def branches(
    objects: Sequence[Object], labels: Sequence[int], is_slot: Sequence[bool], style: PromptStyle, encode: Encode
) -> Branches:
    """Branch targets of an answer in token space.

    labels: the supervised ids of the answer in order; is_slot: which of them are coordinates. encode: text to
    ids, as the answer was encoded. DataError when a description is encoded otherwise than in the answer.
    """
    found = Branches([], [])
    slot_places = [place for place, slot in enumerate(is_slot) if slot]
    rendered = [prompt.render_object(obj, style) for obj in objects]
    lead, start, slot = prompt.opening(style), 0, 0
    for i, obj in enumerate(objects):
        end = slot_places[slot]
        heads = [lead + _head(text) for text in rendered[i:]]
        pieces = {head: encode(head) for head in set(heads)}
        if pieces[heads[0]] != list(labels[start:end]):
            fix = "set custom.loss.set_targets: none for this data"
            raise DataError(f"description {obj.desc!r} is encoded differently inside its answer\n  -> {fix}")
        same = _text_branches(found, [pieces[head] for head in heads], start)
        if len(same) > 1:
            rivals = [objects[i + j] for j in same]
            found.slots.extend((slot, coord_bin(o.coords[0]), o.norm[0], 1 / len(rivals)) for o in rivals)
        slot += len(obj.coords)
        lead, start = _tail(rendered[i]) + style.comma, slot_places[slot - 1] + 1
    return found


def _text_branches(found: Branches, pieces: list[list[int]], start: int) -> list[int]:
    """Add the branches along the first piece; which of the pieces are the same to the end."""
    alive = list(range(len(pieces)))
    for step, own in enumerate(pieces[0]):
        options = Counter(pieces[j][step] for j in alive)
        if len(options) > 1:
            found.text.extend((start + step, token, n / len(alive)) for token, n in sorted(options.items()))
        alive = [j for j in alive if pieces[j][step] == own]
    return [j for j in alive if len(pieces[j]) == len(pieces[0])]


def _head(rendered: str) -> str:
    return rendered[: COORD_TOKEN.search(rendered).start()]  # type: ignore[union-attr]


def _tail(rendered: str) -> str:
    return rendered[[match.end() for match in COORD_TOKEN.finditer(rendered)][-1] :]
