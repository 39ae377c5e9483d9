"""The one place that renders a prompt or an answer; training and inference both come here.

Answer, one line: {"objects": [{"desc": "black cat", "bbox_2d": [<|coord_110|>, <|coord_310|>, ...]}]}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from coordexp.records import Object, coord_bin

IMAGE_TAG = "<image>"
OPEN_PROMPT = "Detect every object in the image."
CATEGORY_PROMPT = "Detect every object of these categories in the image: {categories}."


class PromptStyle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Knobs of the rendered text. The same style must be used for training and inference.

    user_prompt: text of the open prompt.
    category_prompt: text of the category prompt, with the place `{categories}`.
    object_field_order: whether an object names itself before or after its geometry.
    json_format: `standard` writes ", " and ": ", `compact` writes "," and ":".
    coordinates: bins as coordinate tokens, or as plain integers 0..999 for a base without them.
    """

    user_prompt: str = OPEN_PROMPT
    category_prompt: str = CATEGORY_PROMPT
    object_field_order: Literal["desc_first", "geometry_first"] = "desc_first"
    json_format: Literal["standard", "compact"] = "standard"
    coordinates: Literal["token", "integer"] = "token"

    @property
    def comma(self) -> str:
        """Separator of items."""
        return ", " if self.json_format == "standard" else ","

    @property
    def colon(self) -> str:
        """Separator of key and value."""
        return ": " if self.json_format == "standard" else ":"


def user_text(style: PromptStyle, categories: Sequence[str] | None = None) -> str:
    """The question: open, or limited to `categories` in the order given."""
    if categories is None:
        return style.user_prompt
    return style.category_prompt.format(categories=", ".join(categories))


def chat(
    style: PromptStyle, categories: Sequence[str] | None = None, answer: str | None = None
) -> list[dict[str, str]]:
    """Messages with the image as `<image>`, the layout that ms-swift reads."""
    messages = [{"role": "user", "content": IMAGE_TAG + user_text(style, categories)}]
    return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]


def hf_chat(style: PromptStyle, categories: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The same question as Hugging Face chat content, for `processor.apply_chat_template`."""
    content = [{"type": "image"}, {"type": "text", "text": user_text(style, categories)}]
    return [{"role": "user", "content": content}]


def render_answer(objects: Iterable[Object], style: PromptStyle) -> str:
    """The answer for objects in token space, in the order given."""
    return opening(style) + style.comma.join(render_object(obj, style) for obj in objects) + "]}"


def opening(style: PromptStyle) -> str:
    """What an answer begins with, up to its first object."""
    return f'{{"objects"{style.colon}['


def render_object(obj: Object, style: PromptStyle) -> str:
    """One object of an answer, for an object in token space."""
    name = "bbox_2d" if obj.bbox_2d is not None else "poly"
    tokens = style.comma.join(obj.coords if style.coordinates == "token" else (str(coord_bin(c)) for c in obj.coords))
    desc = f'"desc"{style.colon}{json.dumps(obj.desc, ensure_ascii=False)}'
    geometry = f'"{name}"{style.colon}[{tokens}]'
    fields = (desc, geometry) if style.object_field_order == "desc_first" else (geometry, desc)
    return "{" + style.comma.join(fields) + "}"
