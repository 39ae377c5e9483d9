"""The `custom.loss` section of a recipe: weights of the loss terms and the parameters that they share."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from coordexp.losses.terms import LOSS_TERMS
from coordexp.runtime.config_io import choice
from coordexp.runtime.errors import nearest

Weight = Annotated[float, Meta(ge=0)]
Matching = Literal["none", "hungarian", "sinkhorn"]


class GeometryWarmup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Linear warm-up of the box terms."""

    start: Annotated[
        float, Meta(ge=0, le=1, description="fraction of training up to which box terms have weight 0")
    ] = 0.0
    end: Annotated[float, Meta(ge=0, le=1, description="fraction of training from which they have full weight")] = 0.0

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise ValueError(f"expected start <= end, found start {self.start} and end {self.end}")

    def factor(self, progress: float) -> float:
        """Factor of the box terms, in [0, 1], at `progress` (fraction of training done)."""
        return growth(progress, self.start, self.end)


def growth(progress: float, start: float, full: float) -> float:
    """A factor that is 0 before `start` and grows linearly from there to 1 at `full`."""
    if progress < start:
        return 0.0
    return min((progress - start) / (full - start), 1.0) if full > start else 1.0


class LossOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The training loss. docs/method.md has the formulas; `coordexp.losses.terms` has one function per term."""

    weights: Annotated[
        dict[choice(LOSS_TERMS), Weight],
        Meta(
            description="weight of each loss term, 0 to disable it; a term that is not listed keeps its default, "
            "which is the one shown here or 0"
        ),
    ] = msgspec.field(default_factory=dict)
    temperature: Annotated[float, Meta(gt=0, description="temperature of the softmax over coordinate ids")] = 1.0
    sigma: Annotated[float, Meta(gt=0, description="standard deviation of the Gaussian targets, in bins")] = 1.0
    truncate: Annotated[int, Meta(ge=0, description="bins on either side that a Gaussian target covers")] = 8
    matching: Annotated[
        Matching,
        Meta(
            description="how predicted boxes are paired with ground-truth boxes of the same image for the box terms: "
            "`none` pairs each with its own, `hungarian` finds the cheapest assignment, `sinkhorn` a soft one"
        ),
    ] = "none"
    class_cost: Annotated[
        float,
        Meta(ge=0, description="cost that the matching adds when the descriptions differ (L1 + 1 - GIoU is the rest)"),
    ] = 1.0
    set_targets: Annotated[
        Literal["none", "remaining", "marginal"],
        Meta(
            description="target at the first token at which the answers of the remaining objects differ: `none` uses "
            "the next object of the answer alone; `remaining` spreads the target evenly over all remaining objects; "
            "`marginal` maximises the summed probability of all remaining objects, so any of them satisfies the loss"
        ),
    ] = "none"
    balance: Annotated[
        float,
        Meta(ge=0, le=1, description="with `set_targets: marginal`, weight of the loss of `remaining` in a mixture"),
    ] = 0.0
    geometry_warmup: Annotated[
        GeometryWarmup, Meta(description="linear increase of the box terms from 0 to their weights")
    ] = msgspec.field(default_factory=GeometryWarmup)

    def __post_init__(self) -> None:
        """Complete the weights with the registered defaults; terms that are off by default and unused are left out."""
        for name in self.weights:
            if name not in LOSS_TERMS:
                known = LOSS_TERMS.names()
                raise ValueError(
                    f"unknown loss term {name!r}{nearest(name, known)}; expected one of {', '.join(known)}"
                )
        defaults = {name: LOSS_TERMS[name].default_weight for name in LOSS_TERMS.names()}
        weights = {name: float(self.weights.get(name, default)) for name, default in defaults.items()}
        kept = {name: weight for name, weight in weights.items() if weight or defaults[name]}
        msgspec.structs.force_setattr(self, "weights", kept)

    def uses(self, level: str) -> bool:
        """Whether a term of this level ("text", "coordinate", "box") has a weight above 0."""
        return any(weight and LOSS_TERMS[name].level == level for name, weight in self.weights.items())
