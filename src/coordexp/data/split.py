"""Stages `tiny_split` and `hold_out`: small random subsets that more data hardly changes."""

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


def hold_out(
    records: str | Path,
    tokens: str | Path,
    held_out: str | Path,
    rest: str | Path,
    rest_tokens: str | Path,
    count: int,
    seed: int,
) -> int:
    """Take `count` pictures out of training: their pixel-space records go to `held_out`, the others to `rest`.

    `records` and `tokens` are the same pictures in pixel and in token space, as are `rest` and `rest_tokens`.
    The other end of `tiny`'s ranking is taken, so the tiny split stays with the training pictures; returns how
    many of those are left.
    """
    ranks = [
        (stable_hash(seed, record.metadata.image_id), n) for n, record in enumerate(read_records(records, "pixel"))
    ]
    if not 1 <= count < len(ranks):
        expected = f"1 to {len(ranks) - 1}, as something has to be left to train on"
        fix = "set calibrate.held_out to less than the training split has"
        raise ConfigError(
            located(
                "cannot hold out", file=records, field="calibrate.held_out", expected=expected, found=count, fix=fix
            )
        )
    held = {n for _, n in heapq.nlargest(count, ranks)}
    left = set(range(len(ranks))) - held
    write_jsonl(held_out, _pick(records, held, "pixel"))
    write_jsonl(rest, _pick(records, left, "pixel"))
    return write_jsonl(rest_tokens, _pick(tokens, left, "token"))
