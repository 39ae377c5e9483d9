"""Prefixes that cannot be copied: what the model reads of earlier objects differs from what it is trained to write.

Under teacher forcing every earlier object is exact, so the next one can be guessed from the pattern of the previous
ones without looking at the image. Here the earlier objects are noisy, hidden, missing or repeated.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from coordexp.records import COORD_BINS, Object, coord_bin, coord_token
from coordexp.sequence_options import PrefixOptions

NEIGHBOUR = 0.03  # standard deviation of a repeated object's coordinates, as a fraction of its size


class PrefixedAnswer(NamedTuple):
    """Objects of an answer in their order; the first `given` are read but not supervised."""

    objects: list[Object]
    given: int


def with_perturbed_prefix(objects: Sequence[Object], options: PrefixOptions, rng: random.Random) -> PrefixedAnswer:
    """An answer that begins as the model's own might: with objects missing, swapped and repeated.

    A part of the `objects` (in token space) is given. Of it, `dropped` are missing and follow it as targets, in
    their original order with the rest; `swapped` are swapped with the next; `repeated` are followed by a near copy.
    """
    cut = rng.randint(1, len(objects))
    kept, missing = [], []
    for obj in objects[:cut]:
        (missing if rng.random() < options.dropped else kept).append(obj)
    for n in range(len(kept) - 1):
        if rng.random() < options.swapped:
            kept[n], kept[n + 1] = kept[n + 1], kept[n]
    given = []
    for obj in kept:
        given.append(obj)
        if rng.random() < options.repeated:
            given.append(_moved(obj, NEIGHBOUR, rng))
    return PrefixedAnswer([*given, *missing, *objects[cut:]], len(given))


def read_bins(objects: Sequence[Object], options: PrefixOptions, rng: random.Random) -> list[Sequence[int | None]]:
    """Bins (norm1000) of each object's coordinates as the model reads them; None for the wildcard."""
    read: list[Sequence[int | None]] = []
    for obj in objects:
        draw = rng.random()
        if draw < options.wildcard:
            read.append([None] * len(obj.coords))
        elif draw < options.wildcard + options.noise:
            read.append(_bins(_moved(obj, options.noise_scale, rng)))
        else:
            read.append(_bins(obj))
    return read


def _bins(obj: Object) -> list[int]:
    return [coord_bin(str(token)) for token in obj.coords]


def _moved(obj: Object, scale: float, rng: random.Random) -> Object:
    """The object with normal noise on every coordinate, of `scale` times its extent; boxes keep an extent of a bin."""
    bins = _bins(obj)
    extents = [max(axis) - min(axis) for axis in (bins[0::2], bins[1::2])]
    moved = [
        min(max(round(bin + rng.gauss(0, scale * extents[n % 2])), 0), COORD_BINS - 1) for n, bin in enumerate(bins)
    ]
    if obj.bbox_2d is None:
        return msgspec.structs.replace(obj, poly=[coord_token(bin) for bin in moved])
    for low, high in ((0, 2), (1, 3)):
        moved[low], moved[high] = sorted((moved[low], moved[high]))
        if moved[low] == moved[high]:
            moved[low], moved[high] = (moved[low] - 1, moved[low]) if moved[low] else (0, 1)
    return msgspec.structs.replace(obj, bbox_2d=[coord_token(bin) for bin in moved])
