"""Distributions over the 1,000 coordinate bins: from logits, and Gaussian targets around a coordinate.

Coordinates are in [0, 1]; bin k represents the coordinate phi_k = k / 999.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from coordexp.records import COORD_BINS

LAST_BIN = COORD_BINS - 1


class GaussianTargets(NamedTuple):
    """F distributions, each over a window of 2r+1 bins. bins: [F, 2r+1] int64. q: [F, 2r+1], rows sum to 1."""

    bins: torch.Tensor
    q: torch.Tensor


def bin_coordinates(like: torch.Tensor) -> torch.Tensor:
    """phi_k = k / 999, [1000], on the device and in the dtype of `like`."""
    return torch.arange(COORD_BINS, device=like.device, dtype=like.dtype) / LAST_BIN


def log_probabilities(z: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """log softmax(z / T) over coordinate ids, for logits z [S, 1000]."""
    return (z if temperature == 1.0 else z / temperature).log_softmax(dim=-1)


def expectation(p: torch.Tensor) -> torch.Tensor:
    """Expected coordinate in [0, 1], e = sum_k phi_k p_k, for probabilities p [..., 1000]."""
    return p @ bin_coordinates(p)


def gaussian_targets(coords: torch.Tensor, sigma: float, truncate: int) -> GaussianTargets:
    """q_i ~ exp(-(i - 999 c)^2 / (2 sigma^2)), zero beyond `truncate` bins from the bin nearest to c.

    coords: [F] in [0, 1], unrounded. sigma: in bins. q is zero where the window leaves 0..999.
    """
    centre = coords * LAST_BIN
    offsets = torch.arange(-truncate, truncate + 1, device=coords.device)
    index = (centre + 0.5).floor().clamp(0, LAST_BIN).long()[:, None] + offsets
    distance = index.to(coords.dtype) - centre[:, None]
    exponent = -(distance**2) / (2 * sigma**2)
    exponent = exponent.masked_fill((index < 0) | (index > LAST_BIN), float("-inf"))
    return GaussianTargets(index.clamp(0, LAST_BIN), exponent.softmax(dim=-1))
