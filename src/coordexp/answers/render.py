"""Render prompts and answers, for training and for inference.

An answer is one line of JSON: {"objects": [{"desc": "black cat", "bbox_2d": [<|coord_110|>, <|coord_310|>, ...]}]}

There is one answer format. Its variants (field order, spacing, notation of coordinates) are options of `PromptStyle`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from coordexp.answers.parse import Coordinates
from coordexp.records import Object, coord_bin

FieldOrder = Literal["desc_first", "geometry_first"]
JsonFormat = Literal["standard", "compact"]

IMAGE_TAG = "<image>"
OPEN_PROMPT = "Detect every object in the image."
CATEGORY_PROMPT = "Detect every object of these categories in the image: {categories}."


class PromptStyle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How prompts and answers are written; must be the same in training and inference."""

    user_prompt: Annotated[str, Meta(description="text of the prompt that names no category")] = OPEN_PROMPT
    category_prompt: Annotated[
        str, Meta(description="text of the prompt that names categories, inserted at `{categories}`")
    ] = CATEGORY_PROMPT
    object_field_order: Annotated[
        FieldOrder,
        Meta(description="whether the description of an object precedes or follows its geometry"),
    ] = "desc_first"
    json_format: Annotated[
        JsonFormat,
        Meta(description='`standard` separates with ", " and ": ", `compact` with "," and ":"'),
    ] = "standard"
    coordinates: Annotated[
        Coordinates,
        Meta(description="bins as coordinate tokens, or as integers 0..999 for a model without coordinate tokens"),
    ] = "token"

    @property
    def comma(self) -> str:
        """The separator of items."""
        return ", " if self.json_format == "standard" else ","

    @property
    def colon(self) -> str:
        """The separator of key and value."""
        return ": " if self.json_format == "standard" else ":"


def user_text(style: PromptStyle, categories: Sequence[str] | None = None) -> str:
    """The text of the prompt: open, or naming `categories` in the given order."""
    if categories is None:
        return style.user_prompt
    return style.category_prompt.format(categories=", ".join(categories))


def chat(
    style: PromptStyle, categories: Sequence[str] | None = None, answer: str | None = None
) -> list[dict[str, str]]:
    """Messages in the format of ms-swift, with the image as `<image>`; without `answer`, the prompt alone."""
    messages = [{"role": "user", "content": IMAGE_TAG + user_text(style, categories)}]
    return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]


def hf_chat(style: PromptStyle, categories: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The same prompt as Hugging Face chat messages, for `processor.apply_chat_template`."""
    content = [{"type": "image"}, {"type": "text", "text": user_text(style, categories)}]
    return [{"role": "user", "content": content}]


def render_answer(objects: Iterable[Object], style: PromptStyle) -> str:
    """The answer for objects in token space, in the given order."""
    return opening(style) + style.comma.join(render_object(obj, style) for obj in objects) + "]}"


def opening(style: PromptStyle) -> str:
    """The start of every answer, up to its first object."""
    return f'{{"objects"{style.colon}['


def render_object(obj: Object, style: PromptStyle) -> str:
    """The text of one object in token space."""
    name = "bbox_2d" if obj.bbox_2d is not None else "poly"
    tokens = style.comma.join(obj.coords if style.coordinates == "token" else (str(coord_bin(c)) for c in obj.coords))
    desc = f'"desc"{style.colon}{json.dumps(obj.desc, ensure_ascii=False)}'
    geometry = f'"{name}"{style.colon}[{tokens}]'
    fields = (desc, geometry) if style.object_field_order == "desc_first" else (geometry, desc)
    return "{" + style.comma.join(fields) + "}"
