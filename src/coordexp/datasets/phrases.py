"""Phrases of an annotation file to phrases of a record, which name objects by their index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from coordexp.datasets.annotation_entries import ImageEntry
from coordexp.datasets.objects import SkippedItem
from coordexp.records import Phrase

OBJECT_MISSING = "an object of the phrase was left out"


class PhraseBatch(NamedTuple):
    """Phrases of one image; those without all of their objects; those that are wrong, which may be errors."""

    phrases: list[Phrase]
    skipped: list[SkippedItem]
    bad: list[SkippedItem]


def phrases_of(image: ImageEntry, annotation_ids: Sequence[int | str]) -> PhraseBatch:
    """The phrases of an image whose record has the objects of `annotation_ids`, in this order.

    A phrase is left out if the conversion left out one of its objects: the others would be a wrong answer.
    """
    index_of = {str(annotation_id): i for i, annotation_id in enumerate(annotation_ids)}
    batch = PhraseBatch([], [], [])
    for entry in image.phrases or ():
        indices = [index_of.get(str(annotation_id)) for annotation_id in entry.annotation_ids]
        if problem := phrase_problem(entry.text):
            batch.bad.append(SkippedItem("phrase", "invalid phrase", image.id, None, image.path, problem))
        elif None in indices:
            detail = f"{entry.text!r}: annotations {entry.annotation_ids}"
            batch.skipped.append(SkippedItem("phrase", OBJECT_MISSING, image.id, None, image.path, detail))
        else:
            batch.phrases.append(Phrase(entry.text, sorted(set(indices))))
    return batch


def phrase_problem(text: object) -> str | None:
    """Why a text cannot be a phrase; None if it can."""
    if not isinstance(text, str) or not text.strip():
        return f"expected a phrase, found {text!r}"
    if "<|" in text:
        return f"{text!r} contains '<|', which starts a special token"
    if not text.isprintable() or any("\ud800" <= c <= "\udfff" for c in text):
        return f"{text!a} contains control characters or is not Unicode text"
    return None
