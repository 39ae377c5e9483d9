"""Stage `tiny_split`: a small random subset that more data hardly changes."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path

from coordexp.contract import CoordSpace, Record
from coordexp.data.order import stable_hash
from coordexp.errors import ConfigError, located
from coordexp.io import read_records, write_jsonl


def tiny(src: str | Path, dst: str | Path, count: int, seed: int, space: CoordSpace = "pixel") -> int:
    """Write `count` records of `src` (all, if there are fewer) to `dst` in their order; returns how many.

    Pictures are ranked by a hash of seed and image id, so the same seed picks the same pictures in
    every space, and a new picture takes at most one other's place.
    """
    if count < 1:
        raise ConfigError(located("expected at least one picture", field="data.tiny", found=count))
    ranks = (stable_hash(seed, record.metadata.image_id) for record in read_records(src, space))
    chosen = heapq.nsmallest(count, ((rank, line) for line, rank in enumerate(ranks)))
    lines = {line for _, line in chosen}
    return write_jsonl(dst, _pick(src, lines, space))


def _pick(src: str | Path, lines: set[int], space: CoordSpace) -> Iterator[Record]:
    return (record for line, record in enumerate(read_records(src, space)) if line in lines)
