"""The prompts that a protocol asks about one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from coordexp.inference.options import PredictOptions
from coordexp.records import Record
from coordexp.runtime.errors import ConfigError, located


class Prompt(NamedTuple):
    """One prompt: the categories that it names (None: the open prompt), and the only labels allowed (None: any).

    phrase: asks for the objects of this phrase instead.
    """

    categories: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    phrase: str | None = None


def prompts_of(record: Record, options: PredictOptions, categories: Sequence[str] | None) -> list[Prompt]:
    """The prompts for one record; ConfigError if the protocol needs `categories` and there are none.

    `image_categories` names the descriptions of the record's objects in alphabetical order, so that the prompt reveals
    nothing about their positions; an image without objects gets no prompt. `phrases` asks for every phrase of the
    record once, and nothing about a record without phrases.
    """
    if options.protocol == "phrases":
        return phrase_prompts([phrase.text for phrase in record.phrases])
    if options.protocol == "image_categories":
        return category_prompts(sorted({obj.desc for obj in record.objects}), options)
    if options.protocol == "all_categories":
        return category_prompts(_required(categories, "protocol", "all_categories"), options)
    return [open_prompt(options, categories)]


def open_prompt(options: PredictOptions, categories: Sequence[str] | None = None) -> Prompt:
    """The prompt that asks for every object; ConfigError if labels are restricted and `categories` are missing."""
    return Prompt(labels=tuple(_required(categories, "restrict_labels", True)) if options.restrict_labels else None)


def category_prompts(categories: Sequence[str], options: PredictOptions) -> list[Prompt]:
    """Prompts that name `categories`, `options.chunk` per prompt."""
    chunks = [tuple(categories[i : i + options.chunk]) for i in range(0, len(categories), options.chunk)]
    return [Prompt(chunk, chunk if options.restrict_labels else None) for chunk in chunks]


def phrase_prompts(phrases: Sequence[str]) -> list[Prompt]:
    """One prompt for each different phrase; objects in the answer have the phrase as their description."""
    return [Prompt(labels=(phrase,), phrase=phrase) for phrase in dict.fromkeys(phrases)]


def _required(categories: Sequence[str] | None, option: str, value: object) -> Sequence[str]:
    if not categories:
        problem = f"`{option}: {value}` needs a list of categories"
        raise ConfigError(located(problem, field=f"predict.{option}", fix="pass the names of the categories"))
    return categories


def check_category_grids(options: PredictOptions, categories: Sequence[str] | None) -> None:
    """ConfigError if `options.slices.category_grids` names a category that is not one of `categories`, if given."""
    named = options.slices.category_grids if options.slices and categories else {}
    if unknown := [name for name in named if name not in (categories or ())]:
        facts = {"expected": f"one of {', '.join(list(categories or ())[:20])}", "found": unknown[0]}
        raise ConfigError(located("unknown category", field="predict.slices.category_grids", **facts))
