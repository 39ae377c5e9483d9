"""Every loss term, one decorated function each. `custom.loss.weights` selects terms by their registered names.

A term has a level, which decides what it receives and what its sum is divided by:

| level | receives | returns | divided by the global number of |
|---|---|---|---|
| `text` | `TextLogits`, `LossOptions` | a scalar sum | supervised text tokens |
| `coordinate` | `CoordinateSlots`, `LossOptions` | [S], one value per slot | coordinate slots |
| `box` | predicted [P, 4], target [P, 4] | [P], one value per pair | boxes |
| `rejected` | log probabilities [R], `LossOptions` | [R], one value per rejected token | supervised text tokens |

All tensors are float32 with gradients unless stated otherwise. A user's term, in a file listed under `plugins`:

    from coordexp.losses.terms import loss_term

    @loss_term("smooth_l1", level="box")
    def smooth_l1(predicted, target):
        return torch.nn.functional.smooth_l1_loss(predicted, target, reduction="none").mean(dim=-1)

Its weight is then `custom.loss.weights.smooth_l1`. This module imports torch only inside functions: the workflow
reads the names of the terms in environments without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from coordexp.records import COORD_BINS
from coordexp.runtime.registry import Registry

if TYPE_CHECKING:
    import torch

    from coordexp.losses.coordinate_distribution import GaussianTargets
    from coordexp.losses.options import LossOptions
    from coordexp.losses.targets import SlotTargets

Level = Literal["text", "coordinate", "box", "rejected"]
EPS = 1e-7
MAX_LOG_P = -1e-5  # of a rejected token in `unlikelihood`; closer to 0, float32 is too coarse for 1 - p


class LossTerm(NamedTuple):
    """A registered term: its function, its level, and its weight when the recipe gives none (0: off)."""

    function: Callable[..., Any]
    level: Level
    default_weight: float


LOSS_TERMS: Registry[LossTerm] = Registry("loss term")


def loss_term(name: str, *, level: Level, default_weight: float = 0.0) -> Callable[[Callable], Callable]:
    """Decorator that registers a function as the loss term `name` and returns the function unchanged."""

    def add(function: Callable) -> Callable:
        LOSS_TERMS.register(name)(LossTerm(function, level, default_weight))
        return function

    return add


class TextLogits(NamedTuple):
    """Logits at T supervised text positions with P (position, token) targets; P > T where there are set targets.

    lse: [T] log-sum-exp over the vocabulary. target_logits: [P]. target_weights: [P], summing to 1 per position.
    target_index: [P] int64, non-decreasing index of each target's position among the T.
    """

    lse: torch.Tensor
    target_logits: torch.Tensor
    target_weights: torch.Tensor
    target_index: torch.Tensor


class CoordinateSlots(NamedTuple):
    """Predicted distributions and targets at S coordinate slots; F targets in all, F > S where there are set targets.

    log_p: [S, 1000] log-probabilities over coordinate ids at `LossOptions.temperature`. p: their exponential.
    log_mass: [S] log of the full-vocabulary probability of all coordinate ids together (temperature 1).
    targets: bin, unrounded coordinate and weight of each target. gaussian: the F Gaussian targets around them.
    """

    log_p: torch.Tensor
    p: torch.Tensor
    log_mass: torch.Tensor
    targets: SlotTargets
    gaussian: GaussianTargets


@loss_term("text", level="text", default_weight=1.0)
def text_cross_entropy(text: TextLogits, options: LossOptions) -> torch.Tensor:
    """Cross-entropy at text positions, summed: sum(lse) - sum(weight * target logit).

    With `set_targets: marginal`, the `marginal` of the targets of a position, mixed with their mean by `balance`.
    """
    if options.set_targets != "marginal":
        return text.lse.sum() - (text.target_weights * text.target_logits).sum()
    values = text.lse[text.target_index] - text.target_logits
    any_target = marginal(values, text.target_index, text.lse.shape[0]).sum()
    return any_target.lerp((text.target_weights * values).sum(), options.balance)


@loss_term("ce", level="coordinate", default_weight=1.0)
def hard_cross_entropy(slots: CoordinateSlots, options: LossOptions) -> torch.Tensor:
    """-log p_t over coordinate ids, t the target bin; see `_combine_in_slots` for several targets."""
    target = slots.targets
    return _combine_in_slots(-slots.log_p[target.slot, target.bins], slots, options)


@loss_term("soft_ce", level="coordinate")
def soft_cross_entropy(slots: CoordinateSlots, options: LossOptions) -> torch.Tensor:
    """-sum_i q_i log p_i, q the Gaussian target around the unrounded coordinate (`sigma`, `truncate`)."""
    return _combine_in_slots(_soft_cross_entropies(slots), slots, options)


@loss_term("w1", level="coordinate")
def wasserstein1(slots: CoordinateSlots, options: LossOptions) -> torch.Tensor:
    """Wasserstein-1 distance between p and the Gaussian target q, in [0, 1]: sum_i |CDF_p(i) - CDF_q(i)| / 999.

    Where a slot has several targets, q is their mean: weighted, or with `set_targets: marginal` by how likely the model
    means each of them (the posterior under `soft_ce`, without gradient).
    """
    target, (bins, q) = slots.targets, slots.gaussian
    weight = _posterior(slots, options) if options.set_targets == "marginal" else target.weight
    index = (target.slot[:, None].expand_as(bins), bins)
    difference = slots.p.index_put(index, -weight[:, None] * q, accumulate=True)
    return difference.cumsum(dim=-1)[:, :-1].abs().sum(dim=-1) / (COORD_BINS - 1)


@loss_term("coord_mass", level="coordinate", default_weight=1.0)
def coordinate_mass(slots: CoordinateSlots, options: LossOptions) -> torch.Tensor:
    """-log of the probability mass on coordinate ids: logsumexp(z) - logsumexp(z_C).

    At temperature 1, `ce` + `coord_mass` is the full-vocabulary cross-entropy.
    """
    return -slots.log_mass


@loss_term("unlikelihood", level="rejected")
def unlikelihood(log_p: torch.Tensor, options: LossOptions) -> torch.Tensor:
    """-log(1 - p) of tokens that must not follow (Welleck et al., 2020), with log p at most `MAX_LOG_P`.

    A token that is more probable still has a gradient: the logits of a certain mistake must fall, too.
    """
    bounded = log_p + (log_p.clamp(max=MAX_LOG_P) - log_p).detach()
    return -(-bounded.expm1()).log()


@loss_term("l1", level="box")
def l1(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error over the four coordinates, in [0, 1]."""
    return (predicted - target).abs().mean(dim=-1)


@loss_term("giou", level="box")
def giou(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - GIoU, in [0, 2] (Rezatofighi et al., 2019)."""
    from torchvision.ops import generalized_box_iou_loss

    return generalized_box_iou_loss(sort_corners(predicted), sort_corners(target), eps=EPS)


@loss_term("ciou", level="box")
def ciou(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - CIoU: IoU, distance of the centres over the diagonal of the hull, and aspect ratio (Zheng et al., 2020).

    Only the first two come from torchvision: the gradient of its `complete_box_iou_loss` is NaN for a box without
    height, which an expected box may be.
    """
    import torch
    from torchvision.ops import distance_box_iou_loss

    a, b = sort_corners(predicted), sort_corners(target)
    aspect = (4 / math.pi**2) * (_diagonal_angle(b) - _diagonal_angle(a)) ** 2
    with torch.no_grad():
        overlap = a[..., 2:].minimum(b[..., 2:]) - a[..., :2].maximum(b[..., :2])
        intersection = overlap.clamp(min=0).prod(dim=-1)
        iou = intersection / (_area(a) + _area(b) - intersection + EPS)
        alpha = aspect / (1 - iou + aspect + EPS)
    return distance_box_iou_loss(a, b, eps=EPS) + alpha * aspect


def marginal(values: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """-log sum exp(-values) of each position, [count]: the negative log probability of any of its targets."""
    least = values.new_full((count,), math.inf).scatter_reduce(0, index, values.detach(), "amin")
    return least - values.new_zeros(count).index_add(0, index, (least[index] - values).exp()).log()


def _combine_in_slots(values: torch.Tensor, slots: CoordinateSlots, options: LossOptions) -> torch.Tensor:
    """Loss of each slot, [S], from the losses `values` [F] of its targets.

    It is their weighted mean; with `set_targets: marginal` it is their `marginal`, mixed with the mean by `balance`.
    Objects with the same bin share a token, whose probability is summed once.
    """
    target, count = slots.targets, slots.log_p.shape[0]
    mean = values.new_zeros(count).index_add(0, target.slot, target.weight * values)
    if options.set_targets != "marginal":
        return mean
    return marginal(values + _log_multiplicity(target), target.slot, count).lerp(mean, options.balance)


def _log_multiplicity(target: SlotTargets) -> torch.Tensor:
    """Log of the number of targets of the same slot with the same bin, [F]; mostly 0."""
    key = target.slot * COORD_BINS + target.bins
    _, inverse, counts = key.unique(return_inverse=True, return_counts=True)
    return counts[inverse].float().log()


def _soft_cross_entropies(slots: CoordinateSlots) -> torch.Tensor:
    """-sum_i q_i log p_i of each target, [F]."""
    bins, q = slots.gaussian
    return -(q * slots.log_p[slots.targets.slot[:, None], bins]).sum(dim=-1)


def _posterior(slots: CoordinateSlots, options: LossOptions) -> torch.Tensor:
    """How likely the model means each target, [F]: its share in the `marginal` of `soft_ce`, mixed by `balance`."""
    target = slots.targets
    values = _soft_cross_entropies(slots).detach() + _log_multiplicity(target)
    total = marginal(values, target.slot, slots.log_p.shape[0])
    return (total[target.slot] - values).exp().lerp(target.weight, options.balance)


def sort_corners(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes [..., 4] with x1 <= x2 and y1 <= y2; expected boxes may have swapped corners early in training."""
    import torch

    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat([first.minimum(second), first.maximum(second)], dim=-1)


def _diagonal_angle(boxes: torch.Tensor) -> torch.Tensor:
    """atan(width / height), finite with finite gradients when the height is 0."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return sides[..., 0].atan2(sides[..., 1] + EPS)


def _area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
