"""Section `custom.rollout` of a recipe: training on the model's own answers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Fraction = Annotated[float, Meta(ge=0, le=1)]


class RolloutOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rollouts: the model answers some of its training images, and learns to correct these answers; off by default."""

    share: Annotated[
        float,
        Meta(ge=0, le=0.5, description="fraction of the samples that the model answers, from `full` on; 0: none"),
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
            description="where the objects follow that the answer misses: `insert`: before the first object that the "
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
    min_iou: Annotated[float, Meta(gt=0, le=1, description="smallest IoU at which an object matches an annotation")] = (
        0.5
    )
    duplicate_iou: Annotated[
        float,
        Meta(gt=0, le=1, description="objects with the same description are near-duplicates from this IoU on"),
    ] = 0.8
    max_objects: Annotated[
        int, Meta(ge=1, description="answers with more objects are discarded; the annotations are used instead")
    ] = 100
    max_new_tokens: Annotated[
        int, Meta(ge=1, description="answers are truncated here, and truncated answers are discarded")
    ] = 2048
    batch_size: Annotated[int, Meta(ge=1, description="answers decoded at the same time")] = 32

    def __post_init__(self) -> None:
        if self.start > self.full:
            raise ValueError(f"expected start <= full, found start {self.start} and full {self.full}")

    @property
    def active(self) -> bool:
        """Whether there are rollouts."""
        return self.share > 0

    def share_at(self, step: int, progress: float) -> float:
        """Fraction of the samples of optimizer step `step` that are rollouts; `progress` is in [0, 1]."""
        if step % self.every or progress < self.start:
            return 0.0
        ramp = self.full - self.start
        return self.share * (min((progress - self.start) / ramp, 1.0) if ramp else 1.0)
