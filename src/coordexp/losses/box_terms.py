"""Terms of a box. Boxes [N, 4] of (x1, y1, x2, y2) in [0, 1]; one value a box, [N], with gradients."""

from __future__ import annotations

import math

import torch

EPS = 1e-7


def ordered(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes with x1 <= x2 and y1 <= y2; an expected box may come out crossed early in training."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([torch.minimum(low, high), torch.maximum(low, high)], dim=-1)


def l1(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error over the four coordinates."""
    return (predicted - target).abs().mean(dim=-1)


def giou_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - GIoU, in [0, 2] (Rezatofighi et al., 2019)."""
    a, b = ordered(predicted), ordered(target)
    inter, union = _inter_union(a, b)
    hull = _area(torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], dim=-1))
    return 1 - inter / (union + EPS) + (hull - union) / (hull + EPS)


def ciou_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - CIoU: IoU, centre distance over the hull's diagonal, aspect ratio (Zheng et al., 2020)."""
    a, b = ordered(predicted), ordered(target)
    inter, union = _inter_union(a, b)
    overlap = inter / (union + EPS)
    diagonal = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    centre = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    distance = (centre**2).sum(dim=-1) / ((diagonal**2).sum(dim=-1) + EPS)
    aspect = (4 / math.pi**2) * (_angle(b) - _angle(a)) ** 2
    with torch.no_grad():
        weight = aspect / (1 - overlap + aspect + EPS)
    return 1 - overlap + distance + weight * aspect


def _angle(boxes: torch.Tensor) -> torch.Tensor:
    sides = boxes[..., 2:] - boxes[..., :2]
    return torch.atan2(sides[..., 0], sides[..., 1] + EPS)


def _area(boxes: torch.Tensor) -> torch.Tensor:
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def _inter_union(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    inner = torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], dim=-1)
    inter = _area(inner)
    return inter, _area(a) + _area(b) - inter
