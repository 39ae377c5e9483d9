"""The `custom.loss` section of a recipe: weights of the terms and their shape parameters."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Factor = Annotated[float, msgspec.Meta(gt=0)]


class GeometryWarmup(msgspec.Struct, forbid_unknown_fields=True):
    """Geometry terms rise linearly from nothing to their weight.

    start: fraction of training until which geometry has weight 0. end: fraction from which it has its own.
    """

    start: Fraction = 0.0
    end: Fraction = 0.0

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise ValueError(f"expected start at or before end, found {self.start} and {self.end}")


class LossOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Weights of the terms (zero switches one off) and their shape parameters; docs/method.md has the formulas.

    text: weight of cross-entropy at text positions. ce, soft_ce, w1, coord_mass: weight of this term at coordinate
    slots. l1, giou, ciou: weight of this term of boxes from expected coordinates. sigma: width of the soft
    targets, in bins. truncate: bins either side that they reach. temperature: of the coordinate softmax.
    matching: which target a box's geometry is held to; class_cost: cost of another description in that matching.
    set_targets: `remaining` spreads the target at branch positions over all objects that may come next.
    """

    text: float = 1.0
    ce: float = 1.0
    soft_ce: float = 0.0
    w1: float = 0.0
    coord_mass: float = 1.0
    l1: float = 0.0
    giou: float = 0.0
    ciou: float = 0.0
    temperature: Factor = 1.0
    sigma: Factor = 1.0
    truncate: Annotated[int, msgspec.Meta(ge=0)] = 8
    matching: Literal["none", "hungarian", "sinkhorn"] = "none"
    class_cost: float = 1.0
    set_targets: Literal["none", "remaining"] = "none"
    geometry_warmup: GeometryWarmup = msgspec.field(default_factory=GeometryWarmup)
