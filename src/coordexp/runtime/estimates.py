"""What a long stage says before it begins: how much work, how much disk, how long; and whether the disk has room."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from coordexp.runtime.errors import SpaceError, located

KEPT_FREE = 0.02  # share of what is written that stays free: file systems slow down and reserve at their end


def announce(
    what: str,
    count: int,
    unit: str,
    *,
    folder: str | Path | None = None,
    size: float = 0.0,
    rate: float | None = None,
    basis: str = "",
) -> None:
    """Say on stderr what stage `what` is about to do; SpaceError when `folder` has no room for `size` bytes.

    `count` pieces of work are called `unit`; `rate` is pieces a second, and `basis` says where rate and size
    come from. `folder` need not be there yet.
    """
    parts = [f"{count:,} {unit}"]
    if folder is not None:
        parts.append(f"about {gigabytes(size)} on disk ({gigabytes(free(folder))} free)")
    if rate:
        parts.append(f"about {clock(count / rate)} at {rate:,.1f} {unit}/s")
    print(f"{what}: {', '.join(parts)}{f' ({basis})' if basis else ''}", file=sys.stderr, flush=True)
    if folder is not None:
        need_space(folder, size, what)


def need_space(folder: str | Path, size: float, what: str) -> None:
    """SpaceError when the file system of `folder` has no room for `size` bytes and a little more."""
    room, wanted = free(folder), size * (1 + KEPT_FREE)
    if wanted > room:
        fix = f"make room, or give the workflow another place; what is finished is kept: {what} then goes on"
        problem = f"not enough disk for {what}"
        raise SpaceError(
            located(problem, file=folder, expected=f"{gigabytes(wanted)} free", found=gigabytes(room), fix=fix)
        )


def free(folder: str | Path) -> int:
    """Bytes that may still be written below `folder`, which need not be there yet."""
    return shutil.disk_usage(there(folder)).free


def there(folder: str | Path) -> Path:
    """`folder`, or the nearest one above it that is there."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def gigabytes(size: float) -> str:
    """`1.2 GB`, `340 MB`; decimal units."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def clock(seconds: float) -> str:
    """`1:02:03` for hours, minutes and seconds."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
