"""Stages `tiny_split` and `calibration_split`: small random subsets that more data hardly changes."""

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


def tiny(src: str | Path, dst: str | Path, count: int, seed: int, space: CoordSpace = "pixel") -> int:
    """Write `count` records of `src` (all, if there are fewer) to `dst` in their order; returns how many.

    Images are ranked by a hash of seed and image id, so the same seed picks the same images in
    every space, and a new image takes at most one other's place.
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
    """Take `count` images out of training: their pixel-space records go to `calibration`, the others to `rest`.

    `records` and `tokens` are the same images in pixel and in token space, as are `rest` and `rest_tokens`.
    The other end of `tiny`'s ranking is taken, so the tiny split stays with the training images; returns how
    many of those are left.
    """
    ranks = [
        (stable_hash(seed, record.metadata.image_id), n) for n, record in enumerate(read_records(records, "pixel"))
    ]
    if not 1 <= count < len(ranks):
        expected = f"1 to {len(ranks) - 1}, as something has to be left to train on"
        fix = "set calibrate.images to less than the training split has"
        raise ConfigError(
            located("cannot hold out", file=records, field="calibrate.images", expected=expected, found=count, fix=fix)
        )
    held = {n for _, n in heapq.nlargest(count, ranks)}
    left = set(range(len(ranks))) - held
    write_jsonl(calibration, _moved(_pick(records, held, "pixel"), records, calibration))
    write_jsonl(rest, _moved(_pick(records, left, "pixel"), records, rest))
    return write_jsonl(rest_tokens, _moved(_pick(tokens, left, "token"), tokens, rest_tokens))


def _moved(records: Iterable[Record], src: str | Path, dst: str | Path) -> Iterator[Record]:
    """`records` of `src` with their image paths relative to `dst`."""
    old, new = Path(src).parent, Path(dst).parent
    if old.resolve() == new.resolve():
        yield from records
    else:
        for record in records:
            yield msgspec.structs.replace(record, images=[os.path.relpath(old / i, new) for i in record.images])
