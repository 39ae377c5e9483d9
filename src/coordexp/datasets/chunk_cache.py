"""Finished chunks of a conversion, kept beside the output until all are done.

A chunk is one file: the checksum of what follows, its counts, its records, each on lines of their own.
A damaged one (a machine that lost power) is recognised and made again, so nothing waits for the disk.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from coordexp.datasets.conversion_stats import Tally
from coordexp.records import Record
from coordexp.runtime import tuning
from coordexp.runtime.io import atomic_open

_encoder = msgspec.json.Encoder()


def folder(jsonl: Path, name: str) -> Path:
    """Where the chunks of configuration `name` are kept until `jsonl` is written; those of others are thrown away."""
    above = jsonl.parent / f".{jsonl.name}.parts"
    if above.exists():
        for other in above.iterdir():
            if other.name != name:
                shutil.rmtree(other)
    (above / name).mkdir(parents=True, exist_ok=True)
    return above / name


def write(parts: Path, k: int, tally: Tally, records: Sequence[Record]) -> None:
    """Keep chunk `k`."""
    counts, lines = _encoder.encode(tally) + b"\n", _encoder.encode_lines(records)
    with atomic_open(_path(parts, k), durable=False) as handle:
        handle.write(b"%08x\n" % zlib.crc32(lines, zlib.crc32(counts)))
        handle.write(counts)
        handle.write(lines)


def read_tally(parts: Path, k: int) -> Tally | None:
    """Counts of chunk `k`; None when it is not there or damaged."""
    try:
        data = _path(parts, k).read_bytes()
    except FileNotFoundError:
        return None
    checksum, _, rest = data.partition(b"\n")
    if checksum != b"%08x" % zlib.crc32(rest):
        return None
    return Tally.from_json(rest.partition(b"\n")[0])


def count(parts: Path) -> int:
    """How many chunks are there, sound or not."""
    return sum(1 for _ in parts.glob("[0-9]*.part"))


def join(jsonl: Path, parts: Path, count: int) -> int:
    """Concatenate the records of chunks 0..count-1 to `jsonl`; returns the bytes written."""
    with atomic_open(jsonl) as out:
        for k in range(count):
            with _path(parts, k).open("rb") as part:
                part.readline()
                part.readline()
                shutil.copyfileobj(part, out, tuning.JOIN_BYTES)
        return out.tell()


def _path(parts: Path, k: int) -> Path:
    return parts / f"{k:06d}.part"
