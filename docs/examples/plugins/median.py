"""Decoding mode `median`: the median of the distribution over bins."""

from coordexp.inference.coordinates import DECODERS


@DECODERS.register("median")
def median(probs, mode, options):
    """Distributions [N, 1000]; returns coordinates in bins, [N]."""
    return (probs.cumsum(-1) < 0.5).sum(-1).clamp(max=999).to(probs.dtype)
