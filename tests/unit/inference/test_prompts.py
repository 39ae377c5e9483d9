"""The prompts of each protocol."""

from __future__ import annotations

import msgspec
import pytest

from coordexp.inference.options import PredictOptions
from coordexp.inference.prompts import Prompt, prompts_of
from coordexp.records import Metadata, Object, Phrase, Record
from coordexp.runtime.errors import ConfigError

BOX = {"norm": [0.1, 0.1, 0.5, 0.5], "bbox_2d": [3, 3, 16, 16]}
EMPTY = Record(["a.png"], 32, 32, "pixel", [], Metadata(1, 32, 32))
ANIMALS = Record(["a.png"], 32, 32, "pixel", [Object(d, 1, **BOX) for d in ("dog", "cat", "dog")], Metadata(1, 32, 32))


def test_the_open_prompt_names_nothing():
    assert prompts_of(ANIMALS, PredictOptions(), None) == [Prompt()]
    assert prompts_of(ANIMALS, PredictOptions(restrict_labels=True), ["a", "b"]) == [Prompt(None, ("a", "b"))]


def test_all_categories_are_named_in_chunks():
    options = PredictOptions(protocol="all_categories", chunk=2)
    assert prompts_of(ANIMALS, options, ["a", "b", "c"]) == [Prompt(("a", "b")), Prompt(("c",))]
    options = PredictOptions(protocol="all_categories", chunk=2, restrict_labels=True)
    assert prompts_of(EMPTY, options, ["a", "b", "c"]) == [Prompt(("a", "b"), ("a", "b")), Prompt(("c",), ("c",))]


def test_image_categories_are_sorted_and_an_image_without_objects_has_no_prompt():
    options = PredictOptions(protocol="image_categories")
    assert prompts_of(ANIMALS, options, None) == [Prompt(("cat", "dog"))]
    assert prompts_of(EMPTY, options, None) == []


@pytest.mark.parametrize("options", [{"protocol": "all_categories"}, {"restrict_labels": True}])
def test_missing_categories_are_an_error(options):
    with pytest.raises(ConfigError, match="needs a list of categories"):
        prompts_of(EMPTY, PredictOptions(**options), None)


def test_phrases_are_asked_one_by_one_and_are_the_only_labels():
    phrases = [Phrase("the dog", [0]), Phrase("both", [0, 2]), Phrase("the dog", [2]), Phrase("a cow", [])]
    record = msgspec.structs.replace(ANIMALS, phrases=phrases)
    expected = [Prompt(labels=(text,), phrase=text) for text in ("the dog", "both", "a cow")]
    assert prompts_of(record, PredictOptions(protocol="phrases"), None) == expected
    assert prompts_of(ANIMALS, PredictOptions(protocol="phrases"), None) == []
