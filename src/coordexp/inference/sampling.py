"""Sampling of tokens: reproducible for each answer, whatever else is decoded in the same batch.

A token is drawn by inverting the cumulative distribution at one uniform number, which depends only on the seed, the
request, the sample and the position in the answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

BLOCK = 256  # uniform numbers drawn at a time


class Sampler:
    """The random numbers of one sampled answer.

    seed, request, sample: they determine all numbers; `request` identifies image and prompt.
    temperature: divides the logits of every choice.
    """

    def __init__(self, seed: int, request: object, sample: int, temperature: float):
        self.temperature = temperature
        digest = hashlib.sha256(repr((seed, request, sample)).encode()).digest()
        self._random = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
        self._uniforms: list[float] = []

    def uniform(self, position: int) -> float:
        """A number in [0, 1) for the token at `position` of the answer, always the same one."""
        while position >= len(self._uniforms):
            self._uniforms += self._random.random(BLOCK).tolist()
        return self._uniforms[position]


def draw(logits: torch.Tensor, uniforms: Sequence[float]) -> torch.Tensor:
    """A column for each of the N rows of `logits` [N, V], at N numbers in [0, 1) of its distribution; int64 [N].

    -inf in `logits`: impossible.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    levels = cumulative.new_tensor(uniforms)[:, None] * cumulative[:, -1:]  # float64: below the last column
    return (cumulative <= levels).sum(-1)
