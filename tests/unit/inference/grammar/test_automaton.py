"""The byte automaton: rendered answers are paths, and the text between slots is enumerable."""

from __future__ import annotations

import re

import pytest

from coordexp.answers.formats.box_tokens import BoxTokens
from coordexp.answers.render import PromptStyle, render_answer
from coordexp.inference.grammar import automaton
from coordexp.records import Object, coord_token

STYLES = [
    PromptStyle(object_field_order=o, json_format=f)
    for o in ("desc_first", "geometry_first")
    for f in ("standard", "compact")
]
STYLES += [PromptStyle(answer_format=name) for name in ("grouped", "box_tokens")]
SPECIAL = {*BoxTokens.special_tokens, BoxTokens.end_token}
BOX = [coord_token(k) for k in (1, 2, 3, 4)]


def walk(built: automaton.Automaton, state: int, text: str) -> int | None:
    """The state after `text`, which may contain special tokens."""
    for piece in re.split(r"(<\|\w+\|>)", text):
        known = built.special.get(state, {})
        state = known.get(piece) if piece in SPECIAL else built.walk(state, piece.encode())
        if state is None:
            return None
    return state


def roles(text: str, built: automaton.Automaton) -> list[str] | None:
    """Roles of the coordinate tokens in `text` along its path to the end; None if it is not a path."""
    state, found = built.start, []
    for n, piece in enumerate(text.replace("<|coord_", "\0").split("\0")):
        if n:
            role, state = built.slots.get(state, (None, None))
            if role is None:
                return None
            found.append(role)
        state = walk(built, state, piece.split("|>", 1)[-1] if n else piece)
        if state is None:
            return None
    return found if state == built.end else None


@pytest.mark.parametrize("style", STYLES)
def test_rendered_answers_are_paths(style):
    built = automaton.build(style, ("bbox_2d", "poly"), poly_max_points=4)
    box, triangle = Object("cat", 1, [0.0] * 4, bbox_2d=BOX), Object("é \\", 1, [0.0] * 6, poly=[*BOX, *BOX[:2]])
    end = built.format.end_token or ""
    assert roles(render_answer([], style) + end, built) == []
    text = render_answer([box, triangle], style) + end
    assert roles(text, built) == ["x1", "y1", "x2", "y2", "x0", "y", "x", "y", "x", "y"]
    for wrong in (text[:-1], text + " ", text.replace("cat", " "), text.replace("<|coord_1|>", "1")):
        assert roles(wrong, built) is None


def test_polygons_have_three_points_up_to_the_limit():
    style = PromptStyle()
    built = automaton.build(style, ("poly",), poly_max_points=5)
    for points in range(1, 8):
        answer = render_answer([Object("cat", 1, [], poly=[coord_token(0)] * (2 * points))], style)
        assert (roles(answer, built) is not None) == (3 <= points <= 5)


@pytest.mark.parametrize("style", STYLES)
def test_endings_are_the_texts_up_to_the_next_slot(style):
    built = automaton.build(style)
    texts = dict(built.endings(built.start, ("cat", "dog")))
    assert set(texts.values()) <= {built.end, *built.slots}
    assert render_answer([], style) + (built.format.end_token or "") in texts
    for text, state in texts.items():
        assert walk(built, built.start, text) == state
    named = [text for text in texts if "cat" in text]
    assert len(named) == (style.object_field_order == "desc_first")
