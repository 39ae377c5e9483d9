"""Mapping of descriptions to categories: which rule applies, and what stays unmapped."""

from __future__ import annotations

import pytest

from coordexp.datasets.categories import Category
from coordexp.evaluation.label_mapping import LabelMap, normalise

CATEGORIES = [
    Category(id=1, name="baseball_bat", synonyms=["baseball_bat"]),
    Category(id=2, name="bow_(weapon)", synonyms=["bow_(weapon)", "longbow"]),
    Category(id=3, name="bow_(decorative_ribbons)", synonyms=["bow_(decorative_ribbons)", "ribbon"]),
    Category(id=4, name="sofa", synonyms=["sofa", "couch", "lounge"]),
    Category(id=5, name="chaise_longue", synonyms=["chaise_longue", "lounge"]),
    Category(id=6, name="T-shirt", synonyms=["tee_shirt", "sofa"]),
]


@pytest.mark.parametrize(
    ("desc", "index", "how"),
    [
        ("baseball_bat", 0, "exact"),
        ("baseball bat", 0, "exact"),
        ("Baseball-Bat.", 0, "normalised"),
        ("  a baseball   bat ", 0, "normalised"),
        ("“T–shirt", None, "unknown"),
        ("t shirt", 5, "normalised"),
        ("couch", 3, "synonym"),
        ("The Longbow", 1, "synonym"),
        ("sofa", 3, "exact"),  # a name takes precedence over a synonym of another category
        ("lounge", None, "ambiguous"),
        ("bow", None, "unknown"),
        ("settee", None, "unknown"),
        ("", None, "unknown"),
    ],
)
def test_rules(desc, index, how):
    label = LabelMap(CATEGORIES)(desc)
    assert (label.category, label.how) == (index, how)


def test_ambiguous_names_its_candidates():
    assert LabelMap(CATEGORIES)("Lounge").candidates == ("sofa", "chaise_longue")


def test_categories_of_equal_normalised_name_are_ambiguous():
    labels = LabelMap([Category(id=1, name="hot_dog"), Category(id=2, name="hot dog")])
    assert (labels("hot_dog").category, labels("hot dog").category) == (0, 1)
    assert labels("Hot Dog").how == "ambiguous"


def test_normalise_is_idempotent_and_keeps_inner_words():
    for text in ("A_the cat", "The", "a", "Ｆｕｌｌ width", "rock 'n' roll"):
        assert normalise(normalise(text)) == normalise(text)
    assert normalise("The") == "the" and normalise("a") == "a"
    assert normalise("Ｆｕｌｌ/width") == "full width"
