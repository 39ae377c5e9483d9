"""Maps free-text descriptions to categories.

Rules are tried in this order: `exact` (the category name, as annotated or in readable spelling), `normalised` (ignoring
case, `_`, `-`, surrounding punctuation and a leading article), `synonym` (synonyms from the annotation file,
normalised). A description that two categories share under a rule is `ambiguous` and stays unmapped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from coordexp.datasets.categories import Category, pretty

How = Literal["exact", "normalised", "synonym", "ambiguous", "unknown"]
MAPPED: tuple[How, ...] = ("exact", "normalised", "synonym")

_SEPARATORS = re.compile(r"[\s_\-/]+")
_ARTICLE = re.compile(r"^(?:(?:a|an|the)\s+)+(?=\S)")
_EDGES = " \t\r\n.,;:!?\"'`"


@dataclass(frozen=True)
class Label:
    """Result for one description: category index or None, the rule, and the candidates if ambiguous."""

    category: int | None
    how: How
    candidates: tuple[str, ...] = ()


def normalise(text: str) -> str:
    """Canonical spelling for comparison: NFKC, lower case, single spaces, no surrounding punctuation or article."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _SEPARATORS.sub(" ", text).strip(_EDGES)
    return _ARTICLE.sub("", text)


class LabelMap:
    """Maps descriptions to indices of `categories`; results are cached."""

    def __init__(self, categories: Sequence[Category]):
        self.categories = categories
        exact = _table((c.name, i) for i, c in enumerate(categories))
        for text, indices in _table((pretty(c.name), i) for i, c in enumerate(categories)).items():
            exact.setdefault(text, indices)
        names = _table((normalise(c.name), i) for i, c in enumerate(categories))
        synonyms = _table((normalise(s), i) for i, c in enumerate(categories) for s in c.synonyms)
        self._rules: list[tuple[How, dict[str, list[int]], bool]] = [
            ("exact", exact, False),
            ("normalised", names, True),
            ("synonym", synonyms, True),
        ]
        self._cache: dict[str, Label] = {}

    def __call__(self, desc: str) -> Label:
        """Map one description."""
        label = self._cache.get(desc)
        if label is None:
            label = self._cache[desc] = self._find(desc)
        return label

    def _find(self, desc: str) -> Label:
        normalised_desc = normalise(desc)
        for how, table, normalised in self._rules:
            indices = table.get(normalised_desc if normalised else desc, [])
            if len(indices) == 1:
                return Label(indices[0], how)
            if indices:
                return Label(None, "ambiguous", tuple(self.categories[i].name for i in indices))
        return Label(None, "unknown")


def _table(pairs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    for text, index in pairs:
        indices = table.setdefault(text, [])
        if index not in indices:
            indices.append(index)
    return table
