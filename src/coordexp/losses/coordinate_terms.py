"""Terms at one coordinate slot. S slots, 1,000 bins; coordinates in [0, 1], bins in norm1000 space.

Every function returns one value a slot, [S] float32; averaging is the objective's business.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from coordexp.records import COORD_BINS

LAST_BIN = COORD_BINS - 1


class SlotTargets(NamedTuple):
    """F targets, each for one slot; the weights of a slot's targets sum to 1.

    slot: [F] int64 places among the slots. bins: [F] int64 target bins. coords: [F] float32 unrounded targets
    in [0, 1]. weight: [F] float32. A slot with several targets is one where several objects may come next.
    """

    slot: torch.Tensor
    bins: torch.Tensor
    coords: torch.Tensor
    weight: torch.Tensor


def hard_targets(bins: torch.Tensor, coords: torch.Tensor) -> SlotTargets:
    """One target a slot: bins [S] and coordinates [S]."""
    return SlotTargets(torch.arange(bins.numel(), device=bins.device), bins, coords, torch.ones_like(coords))


def bin_centres(like: torch.Tensor) -> torch.Tensor:
    """phi_k = k / 999, [1000], on the device and in the dtype of `like`."""
    return torch.arange(COORD_BINS, device=like.device, dtype=like.dtype) / LAST_BIN


def log_probabilities(z: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """log p = log softmax(z / T) over coordinate ids, for z [S, 1000]: what the other terms start from."""
    return (z if temperature == 1.0 else z / temperature).log_softmax(dim=-1)


def expectation(p: torch.Tensor) -> torch.Tensor:
    """Continuous coordinate in [0, 1]: e = sum_k phi_k p_k, for p [..., 1000]."""
    return p @ bin_centres(p)


def hard_ce(log_p: torch.Tensor, wanted: SlotTargets) -> torch.Tensor:
    """-log p_t over coordinate ids alone (its mean over a slot's targets), for log p [S, 1000]."""
    named = wanted.weight * log_p[wanted.slot, wanted.bins]
    return log_p.new_zeros(log_p.shape[0]).index_add(0, wanted.slot, -named)


def soft_targets(coords: torch.Tensor, sigma: float, truncate: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian on the bins around the unrounded coordinate, zero beyond `truncate` bins of the nearest one.

    coords: [F] in [0, 1]. Returns (index [F, 2r+1] int64, q [F, 2r+1]); q sums to 1 and is zero where the
    window leaves 0..999. q_i ~ exp(-(i - 999 c)^2 / (2 sigma^2)).
    """
    centre = coords * LAST_BIN
    offsets = torch.arange(-truncate, truncate + 1, device=coords.device)
    index = (centre + 0.5).floor().clamp(0, LAST_BIN).long()[:, None] + offsets
    distance = index.to(coords.dtype) - centre[:, None]
    logits = -(distance**2) / (2 * sigma**2)
    logits = logits.masked_fill((index < 0) | (index > LAST_BIN), float("-inf"))
    return index.clamp(0, LAST_BIN), logits.softmax(dim=-1)


def soft_ce(log_p: torch.Tensor, wanted: SlotTargets, sigma: float, truncate: int) -> torch.Tensor:
    """-sum_i q_i log p_i with `soft_targets`, read at the window's bins alone."""
    index, q = soft_targets(wanted.coords, sigma, truncate)
    named = wanted.weight * (q * log_p[wanted.slot[:, None], index]).sum(dim=-1)
    return log_p.new_zeros(log_p.shape[0]).index_add(0, wanted.slot, -named)


def wasserstein1(p: torch.Tensor, wanted: SlotTargets, sigma: float, truncate: int) -> torch.Tensor:
    """Wasserstein-1 distance in [0, 1] between p [S, 1000] and `soft_targets`: sum |CDF_p - CDF_q| / 999."""
    index, q = soft_targets(wanted.coords, sigma, truncate)
    places = (wanted.slot[:, None].expand_as(index), index)
    difference = p.index_put(places, -wanted.weight[:, None] * q, accumulate=True)
    return difference.cumsum(dim=-1)[:, :-1].abs().sum(dim=-1) / LAST_BIN


def gate(lse_all: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """-log of the probability mass on coordinate ids: logsumexp over the vocabulary minus over z, [S]."""
    return lse_all - z.logsumexp(dim=-1)
