"""Training sequences from the model's own answers: matched to the annotations, corrected and completed.

The model reads its own coordinates of earlier objects, as at inference, and is trained towards the annotations:
matched objects have the annotated box as their target, missed objects are added, and other objects are no targets.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from coordexp.answers.formats import AnswerFormat
from coordexp.answers.parsed_answer import ParsedObject
from coordexp.geometry import boxes
from coordexp.inference.repetition import SuppressedCopies
from coordexp.records import COORD_BINS, Object, coord_bin, coord_token
from coordexp.sequence_options import RolloutOptions

LAST_BIN = COORD_BINS - 1
FORBIDDEN = 1e3  # cost of a pair that must not match; above the total cost of any matching of allowed pairs


class RolloutCounts(NamedTuple):
    """Objects of an answer: matched to an annotation, near-duplicates, and all others; and annotations it misses.

    unverified: false positives that may be objects without an annotation.
    """

    matched: int
    missed: int
    false_positives: int
    duplicates: int
    unverified: int = 0


class RolloutAnswer(NamedTuple):
    """A training sequence.

    objects: in their order; an annotation, or what the model wrote where that matches none. read: the bins of each as
    the model reads them. supervised: which of them are targets. rejected: which of them the image certainly lacks.
    """

    objects: list[Object]
    read: list[list[int]]
    supervised: list[bool]
    rejected: list[bool]
    counts: RolloutCounts


def rollout_answer(
    answered: Sequence[ParsedObject],
    annotated: Sequence[Object],
    options: RolloutOptions,
    verified: Collection[str] | None = None,
) -> RolloutAnswer | None:
    """The training sequence for an answer; None for one with too many objects.

    annotated: boxes in token space, in the order of training. verified: descriptions of which all objects are
    annotated; None: all descriptions.
    """
    if len(answered) > options.max_objects:
        return None
    kept = without_duplicates([obj for obj in answered if obj.kind == "bbox_2d"], options.duplicate_iou)
    match = match_boxes(kept, annotated, options.min_iou)
    sequence: list[tuple[int | None, Object, list[int]]] = []  # index of the annotation, target, bins to read
    for n, obj in enumerate(kept):
        if n in match:
            sequence.append((match[n], annotated[match[n]], obj.bins))
        elif options.false_positives == "keep":
            sequence.append((None, as_object(obj), obj.bins))
    missed = sorted(set(range(len(annotated))) - set(match.values()))
    for index in missed:
        entry = (index, annotated[index], [coord_bin(str(token)) for token in annotated[index].coords])
        sequence.insert(_position(index, sequence) if options.missed == "insert" else len(sequence), entry)
    wrong = [obj.desc for n, obj in enumerate(kept) if n not in match]
    unverified = 0 if verified is None else sum(desc not in verified for desc in wrong)
    counts = RolloutCounts(len(match), len(missed), len(wrong), len(answered) - len(kept), unverified)
    return RolloutAnswer(
        objects=[obj for _, obj, _ in sequence],
        read=[bins for *_, bins in sequence],
        supervised=[n is not None for n, *_ in sequence],
        rejected=[n is None and (verified is None or obj.desc in verified) for n, obj, _ in sequence],
        counts=counts,
    )


def arranged(rollout: RolloutAnswer, answer_format: AnswerFormat) -> RolloutAnswer:
    """The sequence in the order in which the format lists its objects; in the given order where it has no rule."""
    index = {id(obj): n for n, obj in enumerate(rollout.objects)}
    order = [index[id(obj)] for obj in answer_format.arrange(rollout.objects)]
    return RolloutAnswer(*([column[n] for n in order] for column in rollout[:-1]), rollout.counts)


def without_duplicates(answered: Sequence[ParsedObject], iou: float) -> list[ParsedObject]:
    """The boxes without those that are near-duplicates of an earlier one that is kept."""
    seen = SuppressedCopies(iou)
    return [obj for obj in answered if seen.add(obj.desc, tuple(obj.bins))]


def match_boxes(answered: Sequence[ParsedObject], annotated: Sequence[Object], min_iou: float) -> dict[int, int]:
    """Index of the annotation of each matched box: as many pairs as possible, and of those the highest total IoU.

    A pair has the same description and an IoU of at least `min_iou`.
    """
    if not answered or not annotated:
        return {}
    iou = boxes.iou(np.array([obj.bins for obj in answered]) / LAST_BIN, np.array([obj.norm_box for obj in annotated]))
    same = np.array([[a.desc == b.desc for b in annotated] for a in answered])
    allowed = same & (iou >= min_iou)
    pairs = zip(*linear_sum_assignment(np.where(allowed, 1 - iou, FORBIDDEN)), strict=True)
    return {int(row): int(column) for row, column in pairs if allowed[row, column]}


def as_object(answered: ParsedObject) -> Object:
    """What the model wrote, in token space."""
    tokens = [coord_token(bin) for bin in answered.bins]
    return Object(answered.desc, 0, [bin / LAST_BIN for bin in answered.bins], bbox_2d=tokens)


def _position(index: int, sequence: Sequence[tuple[int | None, Object, list[int]]]) -> int:
    """Where annotation `index` goes: before the first object of the sequence that follows it in the training order."""
    return next((n for n, (other, *_) in enumerate(sequence) if other is not None and other > index), len(sequence))


def departure(own: Sequence[int], allowed: Sequence[Continuation], coord_ids: range) -> int:
    """Position of the first token of `own` with which it departs from all `allowed` continuations.

    If its last token still agrees with one of them, that is the position.
    """
    alive, slot = list(allowed), 0
    for position, token in enumerate(own):
        is_slot = token in coord_ids
        alive = [c for c in alive if c.agrees(position, token, slot if is_slot else None)]
        if not alive:
            return position
        slot += is_slot
    return len(own) - 1


class Continuation(NamedTuple):
    """Tokens that may follow in an answer, and by how many bins each of its coordinates may differ from them."""

    tokens: list[int]
    tolerances: list[int]

    def agrees(self, position: int, token: int, slot: int | None) -> bool:
        """Whether `token` may be at `position`; slot: which coordinate it is, None for text."""
        if position >= len(self.tokens):
            return False
        distance = abs(token - self.tokens[position])
        return distance <= (self.tolerances[slot] if slot is not None and slot < len(self.tolerances) else 0)
