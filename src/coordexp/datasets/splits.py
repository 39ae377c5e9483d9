"""Stages `tiny_split` and `calibration_split`: seeded random subsets that stay stable when images are added."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

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
    ranks = (stable_hash(seed, record.metadata.image_id) for record in read_records(src, space))
    chosen = heapq.nsmallest(count, ((rank, line) for line, rank in enumerate(ranks)))
    lines = {line for _, line in chosen}
    return write_jsonl(dst, _pick(src, lines, space))


def _pick(src: str | Path, lines: set[int], space: CoordSpace) -> Iterator[Record]:
    return (record for line, record in enumerate(read_records(src, space)) if line in lines)


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
    ranks = [
        (stable_hash(seed, record.metadata.image_id), n) for n, record in enumerate(read_records(records, "pixel"))
    ]
    if not 1 <= count < len(ranks):
        facts = {"expected": f"1 to {len(ranks) - 1}", "found": count}
        fix = "set calibrate.images to fewer images than the training split has"
        problem = "too many images are reserved for calibration"
        raise ConfigError(located(problem, file=records, field="calibrate.images", fix=fix, **facts))
    selected = {n for _, n in heapq.nlargest(count, ranks)}
    remaining = set(range(len(ranks))) - selected
    write_jsonl(calibration, _relocated(_pick(records, selected, "pixel"), records, calibration))
    write_jsonl(rest, _relocated(_pick(records, remaining, "pixel"), records, rest))
    return write_jsonl(rest_tokens, _relocated(_pick(tokens, remaining, "token"), tokens, rest_tokens))


def _relocated(records: Iterable[Record], src: str | Path, dst: str | Path) -> Iterator[Record]:
    """`records` of `src`, with image paths relative to `dst`."""
    old, new = Path(src).parent, Path(dst).parent
    if old.resolve() == new.resolve():
        yield from records
    else:
        for record in records:
            yield msgspec.structs.replace(record, images=[os.path.relpath(old / i, new) for i in record.images])
