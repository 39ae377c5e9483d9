"""What the prompt names: nothing, all categories in chunks, or the image's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from coordexp.inference.options import PredictOptions
from coordexp.records import Record
from coordexp.runtime.errors import ConfigError


class Question(NamedTuple):
    """One prompt: the categories that it names (None: the open prompt), and the labels an answer is limited to."""

    categories: tuple[str, ...] | None
    labels: tuple[str, ...] | None


def questions(record: Record, options: PredictOptions, categories: Sequence[str] | None) -> list[Question]:
    """The prompts for one record; ConfigError when the protocol needs `categories` and there are none.

    `image_categories` names the descriptions of the record's objects in alphabetical order, so that the
    prompt says nothing about their places; a image without objects has nothing to ask.
    """
    if options.protocol == "image_categories":
        return listed_questions(sorted({obj.desc for obj in record.objects}), options)
    if options.protocol == "all_categories":
        return listed_questions(_required(categories, "protocol all_categories"), options)
    labels = tuple(_required(categories, "restrict_labels")) if options.restrict_labels else None
    return [Question(None, labels)]


def listed_questions(categories: Sequence[str], options: PredictOptions) -> list[Question]:
    """Prompts that name `categories`, `options.chunk` at a time."""
    chunks = [tuple(categories[i : i + options.chunk]) for i in range(0, len(categories), options.chunk)]
    return [Question(chunk, chunk if options.restrict_labels else None) for chunk in chunks]


def _required(categories: Sequence[str] | None, why: str) -> Sequence[str]:
    if not categories:
        raise ConfigError(f"predict: {why} needs the list of categories\n  -> pass the data set's category names")
    return categories
