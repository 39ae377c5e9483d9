"""From a coordinate slot's distribution over the 1,000 bins to a coordinate, its certainty and its spread."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from coordexp.inference.options import Decode
from coordexp.records import COORD_BINS


@dataclass(frozen=True)
class DecodedCoordinate:
    """One slot. `bin` is the mode (norm1000), `value` the decoded coordinate in bins, 0..999 and continuous.

    spread: standard deviation in bins. logprob: of the mode. mass: probability within the radius of the mode.
    """

    bin: int
    value: float
    spread: float
    logprob: float
    mass: float


def read_slots(
    logits: torch.Tensor, low: torch.Tensor, high: torch.Tensor, decode: Decode, temperature: float, radius: int
) -> list[DecodedCoordinate]:
    """Readings of slots with `logits` float32 [N, 1000], of which bins `low`..`high` (int64 [N]) may stand."""
    bins = torch.arange(COORD_BINS, device=logits.device)
    allowed = (bins >= low[:, None]) & (bins <= high[:, None])
    logprobs = (logits / temperature).masked_fill(~allowed, -torch.inf).log_softmax(-1)
    probs = logprobs.exp()
    mode = logprobs.argmax(-1)
    near = probs * ((bins - mode[:, None]).abs() <= radius)
    mass = near.sum(-1)
    mean = probs @ bins.to(probs.dtype)
    variance = (probs * (bins - mean[:, None]) ** 2).sum(-1)
    if decode == "argmax":
        value = mode.to(probs.dtype)
    elif decode == "local":
        value = (near @ bins.to(probs.dtype)) / mass
    else:
        value = mean
    best = logprobs.gather(-1, mode[:, None])[:, 0]
    columns = (mode, value, variance.clamp_min(0).sqrt(), best, mass.clamp_max(1.0))
    return [DecodedCoordinate(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
