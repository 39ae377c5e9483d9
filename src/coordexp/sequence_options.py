"""Sections `custom.prefix` and `custom.rollout` of a recipe: what the model reads of earlier objects in training."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from coordexp.losses.options import growth

Fraction = Annotated[float, Meta(ge=0, le=1)]


class PrefixOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model reads of earlier objects instead of the exact ones, redrawn in every epoch; off by default."""

    noise: Annotated[
        Fraction,
        Meta(description="fraction of the objects whose input coordinates are perturbed; their targets stay exact"),
    ] = 0.0
    noise_scale: Annotated[
        float, Meta(gt=0, description="standard deviation of the noise, as a fraction of the object's width or height")
    ] = 0.15
    wildcard: Annotated[
        Fraction, Meta(description="fraction of the objects whose input coordinates are replaced by `<|coord_*|>`")
    ] = 0.0
    continued: Annotated[
        Fraction,
        Meta(description="fraction of the samples that begin with a perturbed prefix, which is not part of the loss"),
    ] = 0.0
    dropped: Annotated[
        Fraction, Meta(description="fraction of the objects missing from such a prefix; they follow it as targets")
    ] = 0.3
    swapped: Annotated[
        Fraction, Meta(description="fraction of the objects swapped with the next one in such a prefix")
    ] = 0.1
    repeated: Annotated[
        Fraction, Meta(description="fraction of the objects followed by a near copy in such a prefix")
    ] = 0.1

    start: Annotated[
        Fraction,
        Meta(description="fraction of the epochs during which prefixes stay exact, rounded up to whole epochs"),
    ] = 0.0
    full: Annotated[
        Fraction,
        Meta(
            description="fraction of the epochs after which the fractions above apply; they grow linearly from `start`"
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        if self.noise + self.wildcard > 1:
            raise ValueError(f"noise + wildcard: expected at most 1, found {self.noise + self.wildcard}")
        if self.start > self.full:
            raise ValueError(f"expected start <= full, found start {self.start} and full {self.full}")

    def at(self, progress: float) -> PrefixOptions:
        """The options in an epoch that begins at `progress` (fraction of the epochs done, in [0, 1])."""
        factor = growth(progress, self.start, self.full)
        shares = {name: factor * getattr(self, name) for name in ("noise", "wildcard", "continued")}
        return msgspec.structs.replace(self, **shares)

    @property
    def active(self) -> bool:
        """Whether any prefix is perturbed."""
        return bool(self.noise or self.wildcard or self.continued)


class RolloutOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rollouts: the model answers some of its training images, and learns to correct these answers; off by default."""

    share: Annotated[
        float,
        Meta(ge=0, le=0.5, description="fraction of the samples that are rollouts, from `full` on; 0: none"),
    ] = 0.0
    start: Annotated[Fraction, Meta(description="fraction of training before which there are no rollouts")] = 0.3
    full: Annotated[
        Fraction, Meta(description="fraction of training from which `share` of the samples are rollouts")
    ] = 0.5
    every: Annotated[
        int, Meta(ge=1, description="rollouts only in every N-th optimizer step, to decode more answers at a time")
    ] = 1
    temperature: Annotated[
        float, Meta(ge=0, description="temperature at which answers are sampled; 0: the most likely answer")
    ] = 0.0
    missed: Annotated[
        Literal["insert", "append"],
        Meta(
            description="where objects that the answer misses are added: `insert`: before the first object that the "
            "training order would list later; `append`: after the answer"
        ),
    ] = "insert"
    false_positives: Annotated[
        Literal["keep", "drop"],
        Meta(
            description="`keep`: objects that match no annotation stay in the sequence, without being targets (see the "
            "loss term `unlikelihood`); `drop`: they are removed"
        ),
    ] = "keep"
    min_iou: Annotated[float, Meta(gt=0, le=1, description="minimum IoU at which an object matches an annotation")] = (
        0.5
    )
    duplicate_iou: Annotated[
        float,
        Meta(gt=0, le=1, description="minimum IoU at which objects with the same description are near-duplicates"),
    ] = 0.8
    max_objects: Annotated[
        int, Meta(ge=1, description="answers with more objects are discarded; the annotations are used instead")
    ] = 100
    max_new_tokens: Annotated[
        int, Meta(ge=1, description="maximum length of an answer; truncated answers are discarded")
    ] = 2048
    batch_size: Annotated[int, Meta(ge=1, description="number of answers decoded at the same time")] = 32

    def __post_init__(self) -> None:
        if self.start > self.full:
            raise ValueError(f"expected start <= full, found start {self.start} and full {self.full}")

    @property
    def active(self) -> bool:
        """Whether there are rollouts."""
        return self.share > 0

    def share_at(self, step: int, progress: float) -> float:
        """Fraction of the samples of optimizer step `step` that are rollouts; `progress` is in [0, 1]."""
        return 0.0 if step % self.every else self.share * growth(progress, self.start, self.full)
