"""Disk and time estimates: what a long stage will take, announced before it starts.

A stage that does not fit on the disk is refused before it writes anything.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from coordexp.runtime.errors import SpaceError, located

RESERVE = 0.02  # share of the estimate that must stay free: file systems slow down when they are nearly full
SAMPLED_ITEMS = 16  # items that are processed to measure size and rate
MEASURED_FROM = 1000  # number of items from which measuring pays off


def announce(
    stage: str,
    count: int,
    unit: str,
    *,
    folder: str | Path | None = None,
    size: float = 0.0,
    rate: float | None = None,
    basis: str = "",
) -> None:
    """Write on stderr how much work `stage` has, how much disk it needs and how long it takes.

    `count` is in `unit`, `size` in bytes to be written under `folder`, `rate` in units per second; `basis` says where
    rate and size come from. SpaceError if `folder`, which need not exist yet, lacks the space.
    """
    parts = [f"{count:,} {unit}"]
    if folder is not None:
        parts.append(f"about {format_bytes(size)} on disk ({format_bytes(free_bytes(folder))} free)")
    if rate:
        parts.append(f"about {clock(count / rate)} at {rate:,.1f} {unit}/s")
    print(f"{stage}: {', '.join(parts)}{f' ({basis})' if basis else ''}", file=sys.stderr, flush=True)
    if folder is not None:
        require_space(folder, size, stage)


def announce_shards(
    stage: str, out: Path, shards: Mapping[str, int], linked: Iterable[Path], other_bytes: int = 0
) -> None:
    """Announce a stage that writes a checkpoint to `out`: `shards` (bytes by file name) and `other_bytes` more.

    Files in `linked` are hard links, or copies where `out` is on another file system.
    """
    linked = list(linked)
    copies = copied_bytes(linked, out)
    total = len(shards) + sum(file.suffix == ".safetensors" for file in linked)
    basis = "other files are copied: another file system" if copies else "other files are linked"
    size = sum(shards.values()) + other_bytes + copies
    announce(stage, len(shards), f"of {total} shards to write", folder=out, size=size, basis=basis)


def announce_measured(
    stage: str, unit: str, total: int, remaining: int, workers: int, folder: Path, process: Callable[[int, str], None]
) -> None:
    """Announce a stage with `remaining` of `total` items, after processing a few of them in a temporary folder.

    `process(i, scratch)` processes item i (0-based) into the folder `scratch`; hard links do not count as written.
    `folder` is where the files will be written, `workers` the number of processes that will write them.
    """
    if remaining < MEASURED_FROM:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".estimate.") as scratch:
        start = time.monotonic()
        for n in range(SAMPLED_ITEMS):
            process(n * total // SAMPLED_ITEMS, scratch)
        seconds = max(time.monotonic() - start, 1e-9)
        stats = [file.stat() for file in Path(scratch).rglob("*") if file.is_file()]
    item_bytes = sum(stat.st_size for stat in stats if stat.st_nlink == 1) / SAMPLED_ITEMS
    rate, basis = workers * SAMPLED_ITEMS / seconds, f"measured on {SAMPLED_ITEMS}, for {workers} processes"
    announce(stage, remaining, unit, folder=folder, size=remaining * item_bytes, rate=rate, basis=basis)


def copied_bytes(files: Iterable[Path], folder: Path) -> int:
    """Bytes that hard links to `files` take in `folder`: 0 on the same file system, the files' size on another."""
    device = nearest_existing_dir(folder).stat().st_dev
    return sum(stat.st_size for stat in (file.stat() for file in files) if stat.st_dev != device)


def require_space(folder: str | Path, size: float, stage: str) -> None:
    """SpaceError if the file system of `folder` has less than `size` bytes and a small reserve free."""
    free, required = free_bytes(folder), size * (1 + RESERVE)
    if required > free:
        fix = f"free some space, or choose another folder; {stage} then continues and keeps what is finished"
        problem = f"not enough disk space for {stage}"
        raise SpaceError(
            located(problem, file=folder, expected=f"{format_bytes(required)} free", found=format_bytes(free), fix=fix)
        )


def free_bytes(folder: str | Path) -> int:
    """Bytes that can still be written under `folder`, which need not exist yet."""
    return shutil.disk_usage(nearest_existing_dir(folder)).free


def nearest_existing_dir(folder: str | Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def format_bytes(size: float) -> str:
    """`1.2 GB`, `340 MB`; decimal units."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def clock(seconds: float) -> str:
    """`1:02:03` for hours, minutes and seconds."""
    seconds = int(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
