"""Results of the diagnostic of image use: whether a model looks at the image or continues the pattern of its answer.

Coordinates: the likelihood of annotated coordinates, teacher-forced. Answers: what the model writes on its own. Both
with the right image, with another one and with a blank one.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from coordexp.geometry.boxes import iou
from coordexp.records import Detection

MIN_GAIN = 0.1  # nats per coordinate: the right image makes each coordinate 10% more likely
SAME_ANSWERS = 0.8  # agreement from which answers barely depend on the image
SAME_IOU = 0.5


class ImageUse(msgspec.Struct, frozen=True):
    """Mean log probability (natural) of the annotated coordinate bins, teacher-forced, over all coordinates.

    right: with the image of the record. other: with the image of another record, in the same size. blank: with a grey
    image. images, coordinates: how many were measured.
    """

    images: int
    coordinates: int
    right: float
    other: float
    blank: float

    @property
    def gain(self) -> float:
        """What the right image adds to the log probability of a coordinate, over the better of the other two."""
        return self.right - max(self.other, self.blank)

    @property
    def uses_image(self) -> bool:
        """Whether `gain` is at least `MIN_GAIN`."""
        return self.gain >= MIN_GAIN


class AnswerUse(msgspec.Struct, frozen=True):
    """What a model writes on its own. AP of the answers (to phrases: `exact_50`), None if undefined, over `images`.

    right, other, blank: as in `ImageUse`. agreement: mean over images of the agreement (`agreement`) of the answers
    with the right and with another image.
    """

    images: int
    right: float | None
    other: float | None
    blank: float | None
    agreement: float

    @property
    def uses_image(self) -> bool:
        """Whether the answers change with the image: `agreement` is below `SAME_ANSWERS`."""
        return self.agreement < SAME_ANSWERS


def combined(parts: Sequence[ImageUse]) -> ImageUse:
    """One result from those of several disjoint sets of images."""
    count = sum(part.coordinates for part in parts)
    means = [sum(getattr(p, name) * p.coordinates for p in parts) / count for name in ("right", "other", "blank")]
    return ImageUse(sum(part.images for part in parts), count, *means)


def agreement(some: Sequence[Detection], others: Sequence[Detection]) -> float:
    """F1 in [0, 1] of two answers to one prompt: detections with one description agree at an IoU of `SAME_IOU`.

    Each agrees with one of the other answer at most, assigned greedily; 1 for two empty answers.
    """
    if not some or not others:
        return float(len(some) == len(others))
    overlap = iou(np.array([d.norm for d in some]), np.array([d.norm for d in others]))
    overlap[[[a.desc != b.desc for b in others] for a in some]] = 0.0
    matched = 0
    while overlap.max() >= SAME_IOU:
        i, j = np.unravel_index(overlap.argmax(), overlap.shape)
        overlap[i, :] = overlap[:, j] = 0.0
        matched += 1
    return 2 * matched / (len(some) + len(others))


def caution(gain: float | None, same: float | None) -> str | None:
    """A sentence about a model that does not use the image; `gain` of the coordinates, agreement `same` of answers."""
    reasons = []
    if gain is not None and gain < MIN_GAIN:
        reasons.append(f"the right image adds only {gain:.2f} nats per coordinate")
    if same is not None and same >= SAME_ANSWERS:
        reasons.append(f"{same:.0%} of the boxes are the same with another image")
    return f"the model barely uses the image: {' and '.join(reasons)}" if reasons else None
