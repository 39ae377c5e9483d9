"""The exact text of prompts and answers."""

from __future__ import annotations

import msgspec
import pytest

from coordexp.answers.render import PromptStyle, chat, hf_chat, render_answer, user_text
from coordexp.records import Object, coord_token

CAT = Object('a "cat"', 1, [0.0] * 4, bbox_2d=[coord_token(k) for k in (1, 20, 300, 999)])
DOG = Object("犬", 2, [0.0] * 6, poly=[coord_token(k) for k in (0, 1, 2, 3, 4, 5)])


@pytest.mark.parametrize(
    ("style", "text", "empty"),
    [
        (
            PromptStyle(),
            '{"objects": [{"desc": "a \\"cat\\"", "bbox_2d": [<|coord_1|>, <|coord_20|>, <|coord_300|>, <|coord_999|>]}'
            ', {"desc": "犬", '
            '"poly": [<|coord_0|>, <|coord_1|>, <|coord_2|>, <|coord_3|>, <|coord_4|>, <|coord_5|>]}]}',
            '{"objects": []}',
        ),
        (
            PromptStyle(object_field_order="geometry_first", json_format="compact", coordinates="integer"),
            '{"objects":[{"bbox_2d":[1,20,300,999],"desc":"a \\"cat\\""},{"poly":[0,1,2,3,4,5],"desc":"犬"}]}',
            '{"objects":[]}',
        ),
    ],
)
def test_answers(style, text, empty):
    assert render_answer([CAT, DOG], style) == text
    assert render_answer([], style) == empty


def test_prompts():
    style = PromptStyle(category_prompt="Find {categories}!")
    assert user_text(style) == "Detect every object in the image."
    assert user_text(style, ["cat", "dog"]) == "Find cat, dog!"
    assert (
        user_text(style, phrase="the {left} dog") == "Detect every object that this phrase describes: the {left} dog."
    )
    text = hf_chat(style, phrase="it")[0]["content"][1]["text"]
    assert chat(style, phrase="it")[0]["content"] == f"<image>{text}"
    assert chat(style, ["cat"], "answer") == [
        {"role": "user", "content": "<image>Find cat!"},
        {"role": "assistant", "content": "answer"},
    ]
    assert hf_chat(style) == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Detect every object in the image."}]}
    ]


def test_every_option_has_a_description():
    for field in msgspec.inspect.type_info(PromptStyle).fields:
        assert field.type.extra_json_schema["description"], field.name
