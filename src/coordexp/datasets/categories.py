"""Category tables: ids, names, synonyms, LVIS frequency, and the descriptions that the model is trained on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from coordexp.datasets.annotation_entries import InvalidElement, decode_elements
from coordexp.datasets.annotation_file import Int64
from coordexp.datasets.json_spans import element_spans, read_spans
from coordexp.datasets.source import OnBad
from coordexp.runtime.errors import DataError, listed, located

DescStyle = Literal["pretty", "raw"]


class Category(msgspec.Struct, frozen=True):
    """One category. In LVIS, `synonyms` includes the name and `frequency` is r, c or f."""

    id: Int64
    name: str = ""
    synonyms: list[str] = []
    frequency: str | None = None


_decode = msgspec.json.Decoder(list[Category]).decode


def load_categories(
    annotation_path: str | Path, on_bad: OnBad = "error", spans: np.ndarray | None = None
) -> list[Category]:
    """Categories of a COCO or LVIS file, in file order; the rest of the file is not loaded.

    `spans` [N, 2] are their byte spans, if known. DataError for categories without a name or with a repeated id; with
    `on_bad="skip"` they are left out.
    """
    if spans is None:
        spans = element_spans(annotation_path, ("categories",)).get("categories", ())
    if not len(spans):
        fix = "pass the path of a COCO or LVIS annotation file"
        raise DataError(located("the list is missing or empty", file=annotation_path, field="categories", fix=fix))
    fd = os.open(annotation_path, os.O_RDONLY)
    try:
        table = decode_elements(read_spans(fd, spans), _decode)
    finally:
        os.close(fd)
    problems = list(_problems(table))
    if problems and on_bad == "error":
        lines = [f"categories[{index}]: {problem}" for index, problem in problems]
        fix = "correct the file, or set data.on_bad: skip to leave such categories out"
        raise DataError(located(listed(lines), file=annotation_path, fix=fix))
    bad = {index for index, _ in problems}
    return [category for index, category in enumerate(table) if index not in bad]


def pretty(name: str) -> str:
    """A category name without underscores: `baseball_bat` -> `baseball bat`."""
    return " ".join(name.replace("_", " ").split())


def descriptions(categories: Iterable[Category], style: DescStyle) -> dict[int, str]:
    """The description of each category id; DataError if two categories have the same description."""
    texts: dict[int, str] = {}
    owners: dict[str, Category] = {}
    for category in categories:
        text = pretty(category.name) if style == "pretty" else category.name
        other = owners.setdefault(text, category)
        if other is not category:
            fix = "rename one of them" if category.name == other.name else "set data.desc: raw"
            names = f"{other.id} ({other.name!r}) and {category.id} ({category.name!r})"
            problem = f"categories {names} have the same description {text!r}"
            raise DataError(located(problem, field="categories", fix=fix))
        texts[category.id] = text
    return texts


def category_ids(categories: Iterable[Category], style: DescStyle) -> dict[str, int]:
    """The inverse of `descriptions`: the category id of each description."""
    return {text: category_id for category_id, text in descriptions(categories, style).items()}


def _problems(table: list[Category | InvalidElement]) -> Iterable[tuple[int, str]]:
    seen: set[int] = set()
    for index, category in enumerate(table):
        if isinstance(category, InvalidElement):
            yield index, f"category {category.id}: {category.problem}"
        elif not category.name.strip():
            yield index, f"category {category.id} has no name"
        elif category.id in seen:
            yield index, f"category id {category.id} is repeated"
        else:
            seen.add(category.id)
