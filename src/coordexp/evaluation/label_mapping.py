"""From a free description to a category of the benchmark, with an account of how.

The steps, the first that answers wins: `exact` (the category's name, as it is or in its pretty spelling),
`normalised` (case, accents of spelling such as `_` and `-`, surrounding quotes and stops, an article in
front), `synonym` (the data set's own synonyms, normalised). A text that two categories share at a step is
`ambiguous` and stays unmapped; nothing else is guessed.
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
    """Where a description went: index of the category or None, how, and the candidates when ambiguous."""

    category: int | None
    how: How
    candidates: tuple[str, ...] = ()


def normalise(text: str) -> str:
    """Canonical spelling used for comparison: compatible unicode, lower case, single spaces, no article."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _SEPARATORS.sub(" ", text).strip(_EDGES)
    return _ARTICLE.sub("", text)


class LabelMap:
    """Maps descriptions to the indices of `categories`; answers are remembered."""

    def __init__(self, categories: Sequence[Category]):
        self.categories = categories
        exact = _table((c.name, i) for i, c in enumerate(categories))
        for text, owners in _table((pretty(c.name), i) for i, c in enumerate(categories)).items():
            exact.setdefault(text, owners)
        names = _table((normalise(c.name), i) for i, c in enumerate(categories))
        synonyms = _table((normalise(s), i) for i, c in enumerate(categories) for s in c.synonyms)
        self._steps: list[tuple[How, dict[str, list[int]], bool]] = [
            ("exact", exact, False),
            ("normalised", names, True),
            ("synonym", synonyms, True),
        ]
        self._known: dict[str, Label] = {}

    def __call__(self, desc: str) -> Label:
        """The label of one description."""
        label = self._known.get(desc)
        if label is None:
            label = self._known[desc] = self._find(desc)
        return label

    def _find(self, desc: str) -> Label:
        plain = normalise(desc)
        for how, table, normalised in self._steps:
            owners = table.get(plain if normalised else desc, [])
            if len(owners) == 1:
                return Label(owners[0], how)
            if owners:
                return Label(None, "ambiguous", tuple(self.categories[i].name for i in owners))
        return Label(None, "unknown")


def _table(pairs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    for text, index in pairs:
        owners = table.setdefault(text, [])
        if index not in owners:
            owners.append(index)
    return table
