"""Stages `tiny_split` and `calibration_split`: seeded random subsets that stay stable when images are added."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from coordexp.datasets.ordering import stable_hash
from coordexp.records import CoordSpace, Record, read_records
from coordexp.runtime.errors import ConfigError, located
from coordexp.runtime.io import write_jsonl


def tiny_split(src: str | Path, dst: str | Path, count: int, seed: int, space: CoordSpace = "pixel") -> int:
    """Write `count` records of `src` (all, if it has fewer) to `dst`, in their order; returns their number.

    Images are ranked by a hash of seed and image id: a seed selects the same images in every space, and an added image
    replaces at most one other.
    """
    if count < 1:
        raise ConfigError(located("expected at least one image", field="data.tiny", found=count))
    order = _ranking(src, seed, space)
    return write_jsonl(dst, itertools.compress(read_records(src, space), _mask(order, order[:count])))


def _ranking(src: str | Path, seed: int, space: CoordSpace) -> np.ndarray:
    """The record numbers of `src` (from 0), int64 [N], in the order of the hashes of seed and image id."""
    hashes = (stable_hash(seed, record.metadata.image_id) for record in read_records(src, space))
    return np.argsort(np.fromiter(hashes, np.uint64), kind="stable")


def _mask(order: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """Bool [N]: whether the record of each number is `selected`."""
    mask = np.zeros(len(order), dtype=bool)
    mask[selected] = True
    return mask


def calibration_split(
    records: str | Path,
    tokens: str | Path,
    calibration: str | Path,
    rest: str | Path,
    rest_tokens: str | Path,
    count: int,
    seed: int,
) -> int:
    """Take `count` images out of training: write their pixel-space records to `calibration`, the others to `rest`.

    `records` and `tokens` are the same images in pixel and in token space, as are `rest` and `rest_tokens`. Images are
    taken from the other end of the ranking of `tiny_split`, so the tiny split stays among the training images. Returns
    the number of images that remain for training.
    """
    order = _ranking(records, seed, "pixel")
    if not 1 <= count < len(order):
        facts = {"expected": f"1 to {len(order) - 1}", "found": count}
        fix = "set calibrate.images to fewer images than the training split has"
        problem = "too many images are reserved for calibration"
        raise ConfigError(located(problem, file=records, field="calibrate.images", fix=fix, **facts))
    selected = _mask(order, order[-count:])
    del order

    def part(src: str | Path, space: CoordSpace, mask: np.ndarray, dst: str | Path) -> int:
        return write_jsonl(dst, _relocated(itertools.compress(read_records(src, space), mask), src, dst))

    part(records, "pixel", selected, calibration)
    part(records, "pixel", ~selected, rest)
    return part(tokens, "token", ~selected, rest_tokens)


def _relocated(records: Iterable[Record], src: str | Path, dst: str | Path) -> Iterator[Record]:
    """`records` of `src`, with image paths relative to `dst`."""
    old, new = Path(src).parent, Path(dst).parent
    if old.resolve() == new.resolve():
        yield from records
    else:
        for record in records:
            yield msgspec.structs.replace(record, images=[os.path.relpath(old / i, new) for i in record.images])
