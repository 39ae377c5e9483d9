"""Finished chunks of a conversion, kept next to the output until all are done.

A chunk is one file: a line with the checksum of the rest, a line with its counts, and its records, one per line. A
damaged chunk (after a power failure) is recognised and converted again, so writing one need not wait for the disk.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from coordexp.datasets.conversion_stats import ConversionCounts
from coordexp.records import Record
from coordexp.runtime import tuning
from coordexp.runtime.io import atomic_open

_encoder = msgspec.json.Encoder()


def chunk_folder(jsonl: Path, key: str) -> Path:
    """The folder for the chunks of conversion `key`; those of other conversions to `jsonl` are deleted."""
    parent = jsonl.parent / f".{jsonl.name}.chunks"
    if parent.exists():
        for other in parent.iterdir():
            if other.name != key:
                shutil.rmtree(other)
    (parent / key).mkdir(parents=True, exist_ok=True)
    return parent / key


def write_chunk(folder: Path, k: int, counts: ConversionCounts, records: Sequence[Record]) -> None:
    """Store chunk `k`."""
    head, lines = _encoder.encode(counts) + b"\n", _encoder.encode_lines(records)
    with atomic_open(_path(folder, k), durable=False) as handle:
        handle.write(b"%08x\n" % zlib.crc32(lines, zlib.crc32(head)))
        handle.write(head)
        handle.write(lines)


def read_counts(folder: Path, k: int) -> ConversionCounts | None:
    """The counts of chunk `k`; None if it is missing or damaged."""
    try:
        data = _path(folder, k).read_bytes()
    except FileNotFoundError:
        return None
    checksum, _, rest = data.partition(b"\n")
    if checksum != b"%08x" % zlib.crc32(rest):
        return None
    return ConversionCounts.from_json(rest.partition(b"\n")[0])


def stored_chunks(folder: Path) -> int:
    """Number of chunks in the folder, damaged ones included."""
    return sum(1 for _ in folder.glob("[0-9]*.chunk"))


def join_chunks(jsonl: Path, folder: Path, count: int) -> int:
    """Concatenate the records of chunks 0..count-1 to `jsonl`; returns the number of bytes written."""
    with atomic_open(jsonl) as out:
        for k in range(count):
            with _path(folder, k).open("rb") as chunk:
                chunk.readline()
                chunk.readline()
                shutil.copyfileobj(chunk, out, tuning.JOIN_BYTES)
        return out.tell()


def _path(folder: Path, k: int) -> Path:
    return folder / f"{k:06d}.chunk"
