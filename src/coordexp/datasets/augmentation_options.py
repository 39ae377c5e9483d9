"""Options of the augmentation of training images."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Fraction = Annotated[float, Meta(ge=0, le=1)]
Share = Annotated[float, Meta(gt=0, le=1)]
Factor = Annotated[float, Meta(gt=0)]


class Augmentation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Augmentation of the training images, drawn independently in every epoch; off by default."""

    flip: Annotated[Fraction, Meta(description="probability of a horizontal flip")] = 0.0
    flip_words: Annotated[
        tuple[str, ...],
        Meta(description="no flip if a description or category contains a word that starts with one of these"),
    ] = ("left", "right")
    vertical_flip: Annotated[Fraction, Meta(description="probability of a vertical flip")] = 0.0
    vertical_flip_words: Annotated[
        tuple[str, ...],
        Meta(description="no vertical flip if a description or category contains a word that starts with one of these"),
    ] = ("top", "bottom", "upper", "lower", "above", "below", "under", "beneath", "highest", "lowest")
    scale: Annotated[
        tuple[Factor, Factor], Meta(description="smallest and largest factor by which both sides are scaled")
    ] = (1.0, 1.0)
    crop: Annotated[Fraction, Meta(description="probability of a random crop")] = 0.0
    crop_area: Annotated[
        tuple[Share, Share], Meta(description="smallest and largest fraction of the image area that a crop keeps")
    ] = (0.5, 1.0)
    crop_on_object: Annotated[
        Fraction,
        Meta(
            description="fraction of the crops that are placed so that a random object of the answer is entirely "
            "inside, if it fits"
        ),
    ] = 0.0
    object_side: Annotated[
        tuple[Share, Share] | None,
        Meta(
            description="smallest and largest fraction of a crop's width or height, whichever is larger, that the "
            "object of `crop_on_object` takes up, so that small and large objects are shown at similar sizes; null: "
            "these crops have the size of the others (`crop_area`)"
        ),
    ] = None
    empty_answers: Annotated[
        bool,
        Meta(
            description="whether a prompt still names a category after a crop has removed all of its objects; the "
            "answer may then be empty. Otherwise the prompt does not name it, and the image is not cropped if no "
            "category is left"
        ),
    ] = False
    min_visible: Annotated[
        Fraction, Meta(description="objects with a smaller fraction of their area inside the crop are removed")
    ] = 0.3
    max_blocks: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="maximum number of tiles of an augmented image; null: as many as the original has"),
    ] = None

    def __post_init__(self) -> None:
        for name in ("scale", "crop_area", "object_side"):
            low, high = getattr(self, name) or (0.0, 0.0)
            if low > high:
                raise ValueError(f"{name}: expected the smaller value first, found [{low}, {high}]")

    @property
    def active(self) -> bool:
        """Whether any image may be changed."""
        return bool(self.flip or self.vertical_flip or self.crop or self.scale != (1.0, 1.0))
