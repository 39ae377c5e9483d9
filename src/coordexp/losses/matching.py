"""Pairs of predicted and ground-truth boxes for the box terms: each with its own, or matched within the image.

Cost of a pair: L1 + (1 - GIoU), plus `class_cost` where the descriptions differ. No gradient flows through the
matching. Under teacher forcing the prefix has already named the object, so the matching is close to the identity;
it differs where objects with the same description are close together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment

from coordexp.losses.options import Matching
from coordexp.losses.terms import giou, l1


class Pairs(NamedTuple):
    """P pairs of indices of a predicted and a target box, [P] int64 each; weights [P] sum to 1 per prediction."""

    predicted: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


@torch.no_grad()
def match(
    predicted: torch.Tensor,
    target: torch.Tensor,
    images: torch.Tensor,
    classes: torch.Tensor,
    method: Matching,
    *,
    class_cost: float = 1.0,
    epsilon: float = 0.05,
) -> Pairs:
    """Pairs of boxes [N, 4] in [0, 1], matched within each image.

    images, classes: [N] int64, the image and the description of box i, for predictions and targets (the answer names
    object i before its box). epsilon: regularisation of the Sinkhorn plan; smaller is closer to an assignment.
    """
    indices = torch.arange(predicted.shape[0], device=predicted.device)
    if method == "none" or not predicted.numel():
        return Pairs(indices, indices, torch.ones_like(indices, dtype=predicted.dtype))
    parts = []
    for image in images.unique():
        members = indices[images == image]
        cost = pair_cost(predicted[members], target[members], classes[members], class_cost)
        rows, columns, weight = _assignment(cost) if method == "hungarian" else _all_pairs(sinkhorn(cost, epsilon))
        parts.append((members[rows], members[columns], weight))
    return Pairs(*(torch.cat(part) for part in zip(*parts, strict=True)))


def pair_cost(predicted: torch.Tensor, target: torch.Tensor, classes: torch.Tensor, class_cost: float) -> torch.Tensor:
    """Cost [n, n] of pairing prediction i (row) with target j (column)."""
    rows, columns = predicted[:, None].expand(-1, target.shape[0], 4), target[None].expand(predicted.shape[0], -1, 4)
    return l1(rows, columns) + giou(rows, columns) + class_cost * (classes[:, None] != classes[None])


def sinkhorn(cost: torch.Tensor, epsilon: float, iterations: int = 50) -> torch.Tensor:
    """Doubly stochastic plan [n, n] of entropic optimal transport (Cuturi, 2013), in the log domain; rows sum to 1."""
    scores = -cost.double() / epsilon
    for _ in range(iterations):
        scores = scores - scores.logsumexp(dim=0, keepdim=True)
        scores = scores - scores.logsumexp(dim=1, keepdim=True)
    return scores.exp().to(cost.dtype)


def _assignment(cost: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, columns = linear_sum_assignment(cost.nan_to_num().cpu().double().numpy())  # the criterion reports NaN
    return (
        torch.as_tensor(rows, device=cost.device),
        torch.as_tensor(columns, device=cost.device),
        torch.ones(len(rows), dtype=cost.dtype, device=cost.device),
    )


def _all_pairs(plan: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, columns = torch.meshgrid(*(torch.arange(n, device=plan.device) for n in plan.shape), indexing="ij")
    return rows.flatten(), columns.flatten(), plan.flatten()
