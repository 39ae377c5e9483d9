"""Decoding modes: from the model's distribution over the 1,000 coordinate bins to a continuous coordinate.

A coordinate slot is a position in the answer where the grammar asks for a coordinate token. A decoding mode is one
function registered in `DECODERS`; `predict.decode` names it. See docs/architecture.md for how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from coordexp.records import COORD_BINS
from coordexp.runtime.config_io import choice
from coordexp.runtime.registry import Registry

if TYPE_CHECKING:  # torch is imported where it is used, so that validating a configuration does not load it
    import torch

DecodingMode = Callable[[Any, Any, "CoordinateOptions"], Any]
DECODERS: Registry[DecodingMode] = Registry("decoding mode")
# Ranges in which `coordinate_logits` writes a coordinate: below any log probability, and apart from each other.
VALUE, SPREAD, FAR_MASS = -1000.0, -2000.0, -3000.0
MASS_SCALE = 900.0


class CoordinateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How coordinates are read from the model's output; the part of `PredictOptions` that a decoding mode gets."""

    decode: choice(
        DECODERS,
        "how the distribution over coordinate bins becomes a coordinate; in every mode the token fed back to the model "
        "is the most likely one",
    ) = "local"
    temperature: Annotated[
        float, msgspec.Meta(gt=0, description="divides the logits of the coordinate bins; same as in training")
    ] = 1.0
    local_radius: Annotated[
        int,
        msgspec.Meta(ge=0, description="bins on either side of the mode, for `decode: local` and for the box score"),
    ] = 16


@DECODERS.register("argmax")
def argmax(probs: torch.Tensor, mode: torch.Tensor, options: CoordinateOptions) -> torch.Tensor:
    """The most likely bin.

    This is the signature of every decoding mode. probs: float32 [N, 1000], the distribution of each slot, zero for
    bins that the grammar rules out. mode: int64 [N], the most likely bin. Returns float32 [N], coordinates in bins,
    continuous in [0, 999].
    """
    return mode.to(probs.dtype)


@DECODERS.register("expectation")
def expectation(probs: torch.Tensor, mode: torch.Tensor, options: CoordinateOptions) -> torch.Tensor:
    """The mean over all bins."""
    return probs @ _bins_like(probs)


@DECODERS.register("local")
def local(probs: torch.Tensor, mode: torch.Tensor, options: CoordinateOptions) -> torch.Tensor:
    """The mean over the bins within `local_radius` of the mode."""
    near = _near_mode(probs, mode, options.local_radius)
    return (near @ _bins_like(probs)) / near.sum(-1)


@dataclass(frozen=True)
class DecodedCoordinate:
    """The coordinate of one slot and how certain the model is of it.

    bin: the mode, 0..999 (norm1000); its token is fed back to the model.
    value: the coordinate by the decoding mode, in bins, continuous in [0, 999].
    spread: standard deviation of the distribution, in bins.
    logprob: natural log of the mode's probability.
    mass: probability within `local_radius` bins of the mode, in [0, 1].
    """

    bin: int
    value: float
    spread: float
    logprob: float
    mass: float


def decode_slots(
    logits: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    options: CoordinateOptions,
    choose: Callable[[Any], Any] | None = None,
) -> list[DecodedCoordinate]:
    """Decode N coordinate slots.

    logits: float32 [N, 1000], one column per bin. low, high: int64 [N], the first and last bin that the grammar
    allows; all others get probability zero. choose: the bins, int64 [N], to use instead of the modes, from the log
    probabilities [N, 1000]. ConfigError for a decoding mode that is not registered.
    """
    bins = _bins_like(logits)
    allowed = (bins >= low[:, None]) & (bins <= high[:, None])
    logprobs = (logits / options.temperature).masked_fill(~allowed, float("-inf")).log_softmax(-1)
    probs = logprobs.exp()
    mode = logprobs.argmax(-1) if choose is None else choose(logprobs)
    value = DECODERS[options.decode](probs, mode, options)
    mean = probs @ bins
    variance = (probs * (bins - mean[:, None]) ** 2).sum(-1)
    best = logprobs.gather(-1, mode[:, None])[:, 0]
    mass = _near_mode(probs, mode, options.local_radius).sum(-1)
    columns = (mode, value, variance.clamp_min(0).sqrt(), best, mass.clamp_max(1.0))
    return [DecodedCoordinate(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def coordinate_logits(coordinate: DecodedCoordinate) -> list[float]:
    """A coordinate in the log probabilities of three tokens: its value, its spread, and the mass far from the mode."""
    far = 1.0 - min(max(coordinate.mass, 0.0), 1.0)
    return [VALUE - coordinate.value, SPREAD - coordinate.spread, FAR_MASS - MASS_SCALE * far]


def coordinate_of(k: int, logprob: float, reported: Sequence[float]) -> DecodedCoordinate | None:
    """The coordinate with bin `k` from the log probabilities beside that of its token; None without a coordinate."""
    values = {n: value for value in reported for n in (1, 2, 3) if -1000 * (n + 1) < value <= -1000 * n}
    if len(values) < 3:
        return None
    mass = 1.0 - (FAR_MASS - values[3]) / MASS_SCALE
    return DecodedCoordinate(k, VALUE - values[1], SPREAD - values[2], logprob, mass)


def _bins_like(probs: torch.Tensor) -> torch.Tensor:
    """0..999 in the dtype and on the device of `probs`, [1000]."""
    import torch

    return torch.arange(COORD_BINS, dtype=probs.dtype, device=probs.device)


def _near_mode(probs: torch.Tensor, mode: torch.Tensor, radius: int) -> torch.Tensor:
    """`probs` with every bin farther than `radius` from the mode set to zero, [N, 1000]."""
    return probs * ((_bins_like(probs) - mode[:, None]).abs() <= radius)
