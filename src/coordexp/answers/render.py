"""Render prompts and answers, for training and for inference, in the style that `PromptStyle` describes.

The answer formats are in `answers.formats`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from coordexp.answers.formats import FORMATS, format_of
from coordexp.answers.parsed_answer import Coordinates
from coordexp.records import Object
from coordexp.runtime.config_io import choice

FieldOrder = Literal["desc_first", "geometry_first"]
JsonFormat = Literal["standard", "compact"]

IMAGE_TAG = "<image>"
OPEN_PROMPT = "Detect every object in the image."
CATEGORY_PROMPT = "Detect every object of these categories in the image: {categories}."
PHRASE_PROMPT = "Detect every object that this phrase describes: {phrase}."


class PromptStyle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How prompts and answers are written; must be the same in training and inference."""

    user_prompt: Annotated[str, Meta(description="text of the prompt that names no category")] = OPEN_PROMPT
    category_prompt: Annotated[
        str, Meta(description="text of the prompt that names categories, inserted at `{categories}`")
    ] = CATEGORY_PROMPT
    answer_format: choice(FORMATS, "how answers list objects, see docs/method.md#answer-formats") = "json"
    phrase_prompt: Annotated[
        str, Meta(description="text of the prompt that asks for the objects of a phrase, inserted at `{phrase}`")
    ] = PHRASE_PROMPT
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


def user_text(style: PromptStyle, categories: Sequence[str] | None = None, phrase: str | None = None) -> str:
    """The text of the prompt: open, naming `categories` in the given order, or asking for the objects of a phrase."""
    if phrase is not None:
        return style.phrase_prompt.format(phrase=phrase)
    if categories is None:
        return style.user_prompt
    return style.category_prompt.format(categories=", ".join(categories))


def chat(
    style: PromptStyle,
    categories: Sequence[str] | None = None,
    answer: str | None = None,
    phrase: str | None = None,
) -> list[dict[str, str]]:
    """Messages in the format of ms-swift, with the image as `<image>`; without `answer`, the prompt alone."""
    messages = [{"role": "user", "content": IMAGE_TAG + user_text(style, categories, phrase)}]
    return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]


def hf_chat(
    style: PromptStyle, categories: Sequence[str] | None = None, phrase: str | None = None
) -> list[dict[str, Any]]:
    """The same prompt as Hugging Face chat messages, for `processor.apply_chat_template`."""
    content = [{"type": "image"}, {"type": "text", "text": user_text(style, categories, phrase)}]
    return [{"role": "user", "content": content}]


def render_answer(objects: Iterable[Object], style: PromptStyle) -> str:
    """The answer for objects in token space, in the given order."""
    return format_of(style).render(objects)
