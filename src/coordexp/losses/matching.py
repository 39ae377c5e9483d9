"""Which target each predicted box is held to: its own, or the one that it fits best in the image's set.

Cost of a pair: L1 + (1 - GIoU), plus `class_cost` where the descriptions differ. No gradient flows through
the matching. Under teacher forcing the prefix has already named the object, so the matching is close to
the identity; it differs where objects of one description stand close together.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment

from coordexp.losses.box_terms import giou_loss, l1

Kind = Literal["none", "hungarian", "sinkhorn"]


class Pairs(NamedTuple):
    """P pairs of a predicted and a target box, [P] int64 each; weights [P] sum to 1 for each prediction."""

    predicted: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


@torch.no_grad()
def match(
    predicted: torch.Tensor,
    target: torch.Tensor,
    images: torch.Tensor,
    classes: torch.Tensor,
    kind: Kind,
    *,
    class_cost: float = 1.0,
    epsilon: float = 0.05,
) -> Pairs:
    """Pairs of boxes [N, 4] in [0, 1], matched within each image.

    images, classes: [N] int64, the image and the description of each box (of prediction and target i alike:
    the answer names object i before its box). epsilon: sharpness of the Sinkhorn plan.
    """
    everyone = torch.arange(predicted.shape[0], device=predicted.device)
    if kind == "none" or not predicted.numel():
        return Pairs(everyone, everyone, torch.ones_like(everyone, dtype=predicted.dtype))
    parts = []
    for image in images.unique():
        members = everyone[images == image]
        cost = pair_cost(predicted[members], target[members], classes[members], class_cost)
        rows, columns, weight = _assign(cost) if kind == "hungarian" else _spread(sinkhorn(cost, epsilon))
        parts.append((members[rows], members[columns], weight))
    return Pairs(*(torch.cat(part) for part in zip(*parts, strict=True)))


def pair_cost(predicted: torch.Tensor, target: torch.Tensor, classes: torch.Tensor, class_cost: float) -> torch.Tensor:
    """Cost [n, n] of holding prediction i (row) to target j (column)."""
    rows, columns = predicted[:, None].expand(-1, target.shape[0], 4), target[None].expand(predicted.shape[0], -1, 4)
    return l1(rows, columns) + giou_loss(rows, columns) + class_cost * (classes[:, None] != classes[None])


def sinkhorn(cost: torch.Tensor, epsilon: float, iterations: int = 50) -> torch.Tensor:
    """Doubly stochastic plan [n, n] of entropic optimal transport (Cuturi, 2013), in the log domain; rows sum to 1."""
    scores = -cost.double() / epsilon
    for _ in range(iterations):
        scores = scores - scores.logsumexp(dim=0, keepdim=True)
        scores = scores - scores.logsumexp(dim=1, keepdim=True)
    return scores.exp().to(cost.dtype)


def _assign(cost: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, columns = linear_sum_assignment(cost.nan_to_num().cpu().double().numpy())  # NaN is the loss's to report
    place = {"device": cost.device}
    return (
        torch.as_tensor(rows, **place),
        torch.as_tensor(columns, **place),
        torch.ones(len(rows), dtype=cost.dtype, **place),
    )


def _spread(plan: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, columns = torch.meshgrid(*(torch.arange(n, device=plan.device) for n in plan.shape), indexing="ij")
    return rows.flatten(), columns.flatten(), plan.flatten()
