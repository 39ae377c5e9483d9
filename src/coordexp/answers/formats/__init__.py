"""Answer formats: each defines the text around the coordinates of an answer, and how an answer is parsed.

To add a format, write a module with a registered `AnswerFormat` and import it below, or register one in a plug-in file
of your own (`coordexp.runtime.plugins`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from coordexp.answers.formats.base import FORMATS, AnswerFormat, Item

if TYPE_CHECKING:
    from coordexp.answers.render import PromptStyle

__all__ = ["FORMATS", "AnswerFormat", "Item", "format_of"]


@lru_cache(maxsize=64)
def format_of(style: PromptStyle) -> AnswerFormat:
    """The format in which answers are written in `style`."""
    return FORMATS[style.answer_format](style)


# Registers the formats; last, so that their modules can import the names above from this package, like a plug-in.
from coordexp.answers.formats import box_tokens, grouped, json_objects  # noqa: E402, F401
