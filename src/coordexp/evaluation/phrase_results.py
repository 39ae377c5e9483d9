"""The types of the `phrases` block of eval.json."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from coordexp.evaluation.result_types import ConfidenceIntervals, Count, Numbers, Result

NumberOfTargets = Literal["none", "one", "several"]


class PhraseRow(Result):
    """The phrases with no target, one target, or several targets; matches are at IoU 0.5."""

    targets: Annotated[NumberOfTargets, Meta(description="number of objects that the phrase describes")]
    phrases: Count
    objects: Annotated[Count, Meta(description="targets of these phrases")]
    boxes: Annotated[Count, Meta(description="boxes in the answers")]
    true_positives: Annotated[Count, Meta(description="boxes that match a target")]
    false_positives: Annotated[Count, Meta(description="boxes that match no target, or one that is already matched")]
    without_boxes: Annotated[Count, Meta(description="phrases answered without a box")]
    exact: Annotated[Count, Meta(description="phrases whose targets are all matched, without a false positive")]
    truncated: Annotated[
        Count,
        Meta(description="phrases with a truncated answer; without a box, it is wrong even if there is no target"),
    ]


class PhraseExample(Result):
    """One phrase and its answer."""

    image_id: int | str
    text: str
    targets: Count
    boxes: Count
    true_positives: Count


class PhraseResult(Result):
    """Results of the protocol `phrases`: every phrase of an image is asked separately and scored by itself."""

    description: str
    phrases: Annotated[Count, Meta(description="phrases scored")]
    images: Annotated[Count, Meta(description="images with such a phrase")]
    without_record: Annotated[
        Count, Meta(description="annotated phrases that are not scored because no record has them")
    ]
    metrics: Annotated[Numbers, Meta(description="value by metric; null without phrases to compute it from")]
    metric_descriptions: Annotated[dict[str, str], Meta(description="what each metric measures")]
    intervals: ConfidenceIntervals
    baselines: Annotated[
        Numbers, Meta(description="accuracy_50 of answers that ignore the phrase, by what they consist of")
    ]
    by_targets: list[PhraseRow]
    best: Annotated[list[PhraseExample], Meta(description="exact answers, those with the most targets first")]
    worst: Annotated[list[PhraseExample], Meta(description="other answers, most false positives and misses first")]
